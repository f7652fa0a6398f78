"""Writes golden/autoencoder_shapes.json and autoencoders.npz: names and shapes of diffusers' AutoencoderDC, and its answers.

    python tests/pretrained/record_autoencoders.py

needs torch and diffusers (0.42.1).
"""

import json
from typing import Any

import numpy as np

import dcaes
from published import GOLDEN
from torch_build import load

LISTED = ("dc-ae-f32c32-in-1.0", "dc-ae-f32c32-sana-1.0")


def shapes(config: dcaes.Config) -> dict[str, tuple[int, ...]]:
    """Without the counters of batches."""
    import torch  # pyright: ignore[reportMissingImports]

    with torch.device("meta"):
        state = load("diffusers").AutoencoderDC(**config).state_dict()
    return {name: tuple(value.shape) for name, value in state.items() if not name.endswith("num_batches_tracked")}


def network(name: str) -> Any:
    """A small network of theirs with our weights."""
    import torch  # pyright: ignore[reportMissingImports]

    theirs = load("diffusers").AutoencoderDC(**dcaes.SMALL[name]).eval()
    theirs.load_state_dict({at: torch.from_numpy(value) for at, value in dcaes.weights(name).items()}, strict=False)
    return theirs


def answers(theirs: Any, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The latent of an image, and the image of that."""
    import torch  # pyright: ignore[reportMissingImports]

    with torch.no_grad():
        latent = theirs.encode(torch.from_numpy(image.transpose(2, 0, 1)[None].copy())).latent
        decoded = theirs.decode(latent).sample
    return tuple(value[0].numpy().transpose(1, 2, 0) for value in (latent, decoded))


def main() -> None:
    found = {name: shapes(config) for name, config in dcaes.SMALL.items()}
    found |= {name: shapes(dcaes.PUBLISHED[name]) for name in LISTED}
    lines = [f"{json.dumps(name)}: {json.dumps(listed)}" for name, listed in found.items()]
    (GOLDEN / "autoencoder_shapes.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    dcaes.SHAPES = found
    recorded = {}
    for name in dcaes.SMALL:
        recorded[f"{name}_latent"], recorded[f"{name}_image"] = answers(network(name), dcaes.image(16, 24))
    np.savez_compressed(GOLDEN / "autoencoders.npz", **recorded)  # pyright: ignore[reportArgumentType]


if __name__ == "__main__":
    main()
