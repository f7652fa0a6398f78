"""Writes golden/autoencoder_shapes.json and autoencoders.npz: names and shapes of diffusers' autoencoders, and their answers.

    python tests/pretrained/record_autoencoders.py

needs torch, diffusers (0.42.1) and transformers (5.24.0).
"""

import json
from typing import Any

import numpy as np

import dcaes
import raes
from published import GOLDEN
from torch_build import load

LISTED = ("dc-ae-f32c32-in-1.0", "dc-ae-f32c32-sana-1.0")


def build(config: dcaes.Config, kind: str = "AutoencoderDC") -> Any:
    """A network of theirs."""
    return getattr(load("diffusers"), kind)(**{name: value for name, value in config.items() if name != "_class_name"})


def shapes(config: dcaes.Config, kind: str = "AutoencoderDC") -> dict[str, tuple[int, ...]]:
    """Without the counters of batches."""
    import torch  # pyright: ignore[reportMissingImports]

    with torch.device("meta"):
        state = build(config, kind).state_dict()
    return {name: tuple(value.shape) for name, value in state.items() if not name.endswith("num_batches_tracked")}


def filled(theirs: Any, weights: dict[str, np.ndarray]) -> Any:
    """Theirs with our weights."""
    import torch  # pyright: ignore[reportMissingImports]

    missing, extra = theirs.load_state_dict({at: torch.from_numpy(value) for at, value in weights.items()}, strict=False)
    assert not extra and all(name.endswith("num_batches_tracked") for name in missing)
    return theirs.eval()


def answers(theirs: Any, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The latent of an image, and the image of that."""
    import torch  # pyright: ignore[reportMissingImports]

    with torch.no_grad():
        latent = theirs.encode(torch.from_numpy(image.transpose(2, 0, 1)[None].copy())).latent
        decoded = theirs.decode(latent).sample
    return tuple(value[0].numpy().transpose(1, 2, 0) for value in (latent, decoded))


def main() -> None:
    moments = {name: value.tolist() for name, value in raes.moments().items()}
    found = {name: shapes(config) for name, config in dcaes.SMALL.items()}
    found["rae"] = shapes(raes.SMALL | moments, "AutoencoderRAE")
    found |= {name: shapes(dcaes.PUBLISHED[name]) for name in LISTED}
    lines = [f"{json.dumps(name)}: {json.dumps(listed)}" for name, listed in found.items()]
    (GOLDEN / "autoencoder_shapes.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    dcaes.SHAPES.clear()
    dcaes.SHAPES.update(found)
    recorded = {}
    for name, config in dcaes.SMALL.items():
        theirs = filled(build(config), dcaes.weights(name))
        recorded[f"{name}_latent"], recorded[f"{name}_image"] = answers(theirs, dcaes.image(16, 24))
    theirs = filled(build(raes.SMALL | moments, "AutoencoderRAE"), raes.weights())
    # Its images are in [0, 1].
    latent, image = answers(theirs, (dcaes.image(raes.SIDE, raes.SIDE) + 1) / 2)
    recorded |= {"rae_latent": latent, "rae_image": 2 * image - 1}
    np.savez_compressed(GOLDEN / "autoencoders.npz", **recorded)  # pyright: ignore[reportArgumentType]


if __name__ == "__main__":
    main()
