"""Writes golden/transformers.npz: what the authors' own code answers with the weights of published.py.

    python tests/pretrained/record_transformers.py SIT DIT MEANFLOW IMEANFLOW

with folders of willisma/SiT (947f95b), facebookresearch/DiT (ed81ce2), Gsunshine/meanflow (d70cb55) and Lyy-iiis/imeanflow
(bf60cd7); needs torch, timm and flax. Shapes of the networks are recorded too, and of SiT-XL/2 as published, so that nobody who
reads them needs that code.
"""

import importlib
import json
import pathlib
import sys
from typing import Any

import numpy as np

import published

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


def code(folder: str, name: str) -> Any:
    """A module of a repository, alone."""
    sys.path.insert(0, folder)
    for known in [module for module in sys.modules if module.split(".")[0] == "models"]:
        del sys.modules[known]
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(folder)


def torch_network(kind: Any, **settings: Any) -> tuple[Any, dict[str, tuple[int, ...]]]:
    """A network of theirs with our weights, its own table of positions, and the shapes of what was set."""
    import torch  # pyright: ignore[reportMissingImports]

    network = kind(**settings).eval()
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items() if name != "pos_embed"}
    state = {name: torch.from_numpy(value) for name, value in published.weights(shapes).items()}
    network.load_state_dict({**state, "pos_embed": network.pos_embed.data}, strict=True)
    return network, shapes


def torch_answers(network: Any, t: np.ndarray) -> np.ndarray:
    import torch  # pyright: ignore[reportMissingImports]

    x = torch.from_numpy(published.images().transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        return network(x, torch.from_numpy(t), torch.from_numpy(published.LABELS)).numpy().transpose(0, 2, 3, 1)


def mean_flow(folder: str) -> tuple[dict[str, np.ndarray], dict[str, tuple[int, ...]]]:
    """The answers of MeanFlow's network at its own times, and the shapes of its parameters."""
    import jax
    import jax.numpy as jnp
    from flax import traverse_util  # pyright: ignore[reportMissingImports]

    network = code(folder, "models.models_dit").DiT(**published.SETTINGS)
    x, t, h, y = (jnp.asarray(value) for value in (published.images(), 1 - published.T, published.D, published.LABELS))
    made = network.init(jax.random.key(0), x, t, h, y)["params"]
    shapes = {"/".join(path): value.shape for path, value in traverse_util.flatten_dict(made).items()}
    named = {tuple(name.split("/")): jnp.asarray(value) for name, value in published.weights(shapes).items()}
    answers = network.apply({"params": traverse_util.unflatten_dict(named)}, x, t, h, y)
    return {"meanflow": np.asarray(answers)}, shapes


def improved(folder: str) -> tuple[dict[str, np.ndarray], dict[str, tuple[int, ...]]]:
    """The two answers of improved MeanFlow's network, and the shapes of its parameters."""
    import jax
    import jax.numpy as jnp
    from flax import traverse_util  # pyright: ignore[reportMissingImports]

    network = code(folder, "models.imfDiT").imfDiT(**{**published.SETTINGS, "depth": 3}, aux_head_depth=1)
    x, t, h, y = (jnp.asarray(value) for value in (published.images(), 1 - published.T, published.D, published.LABELS))
    asked = (x, t, h, jnp.asarray(published.SCALE), jnp.asarray(1 - published.STOP), jnp.asarray(1 - published.START), y)
    made = network.init(jax.random.key(0), *asked)["params"]
    shapes = {"/".join(path): value.shape for path, value in traverse_util.flatten_dict(made).items()}
    named = {tuple(name.split("/")): jnp.asarray(value) for name, value in published.weights(shapes).items()}
    average, velocity = network.apply({"params": traverse_util.unflatten_dict(named)}, *asked)
    return {"imf": np.asarray(average), "imf_velocity": np.asarray(velocity)}, shapes


def main(sit: str, dit: str, meanflow: str, imeanflow: str) -> None:
    import torch  # pyright: ignore[reportMissingImports]

    velocity, shapes = torch_network(code(sit, "models").SiT, **published.SETTINGS)
    answers = {"sit": torch_answers(velocity, published.T)}
    noise, _ = torch_network(code(dit, "models").DiT, **published.SETTINGS)
    answers["dit"] = torch_answers(noise, published.LEVELS)
    found, theirs = mean_flow(meanflow)
    more, improved_shapes = improved(imeanflow)
    found |= more
    np.savez_compressed(GOLDEN / "transformers.npz", **answers, **found)  # pyright: ignore[reportArgumentType]
    with torch.device("meta"):
        kinds = {"SiT-XL/2": code(sit, "models").SiT_models["SiT-XL/2"]}
        xl = {name: list(value.shape) for name, value in kinds["SiT-XL/2"]().state_dict().items()}
    text = {"small": shapes, "meanflow": theirs, "imf": improved_shapes, "SiT-XL-2-256x256.pt": xl}
    (GOLDEN / "transformer_shapes.json").write_text(json.dumps(text, indent=0) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
