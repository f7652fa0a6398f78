"""Writes golden/transformers.npz: what the authors' own code answers with the weights of published.py.

    python tests/pretrained/record_transformers.py SIT DIT MEANFLOW IMEANFLOW ESC

with folders of willisma/SiT (947f95b), facebookresearch/DiT (ed81ce2), Gsunshine/meanflow (d70cb55), Lyy-iiis/imeanflow
(bf60cd7) and EDAPINENUT/ExplicitShortCut (6090633); needs torch, timm, flax and diffusers. Shapes of the networks are recorded
too, and of the published ones, so that nobody who reads them needs that code.
"""

import importlib
import json
import pathlib
import sys
from typing import Any

import numpy as np

import published
from torch_build import load

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


def code(folder: str, name: str) -> Any:
    """A module of a repository, alone."""
    sys.path.insert(0, folder)
    for known in [module for module in sys.modules if module.split(".")[0] in ("models", "arch")]:
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


def torch_answers(network: Any, *times: np.ndarray) -> np.ndarray:
    import torch  # pyright: ignore[reportMissingImports]

    x = torch.from_numpy(published.images().transpose(0, 3, 1, 2).copy())
    told = [torch.from_numpy(value) for value in (*times, published.LABELS)]
    with torch.no_grad():
        return network(x, *told).numpy().transpose(0, 2, 3, 1)


def shortcut(folder: str) -> tuple[dict[str, np.ndarray], dict[str, tuple[int, ...]]]:
    """The answers of ESC's network at its own times, from `t` to `r`, and the shapes of its parameters."""
    settings = {**published.SETTINGS, "decoder_hidden_size": published.WIDTH}
    network, shapes = torch_network(code(folder, "arch.sit_adpt").SiT, **settings, qk_norm=False)
    return {"esc": torch_answers(network, 1 - published.T - published.D, 1 - published.T)}, shapes


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


def torch_shapes(build: Any, **settings: Any) -> dict[str, tuple[int, ...]]:
    import torch  # pyright: ignore[reportMissingImports]

    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in build(**settings).state_dict().items()}


def flax_shapes(network: Any, asked: int) -> dict[str, tuple[int, ...]]:
    """Shapes of a network that takes images, `asked` numbers, and labels."""
    import jax
    import jax.numpy as jnp
    from flax import traverse_util  # pyright: ignore[reportMissingImports]

    given = jnp.zeros((1, 32, 32, 4)), *(jnp.zeros(1) for _ in range(asked)), jnp.zeros(1, jnp.int32)
    made = jax.eval_shape(lambda: network.init(jax.random.key(0), *given)["params"])
    return {"/".join(path): value.shape for path, value in traverse_util.flatten_dict(made).items()}


def diffusers_shapes(side: int) -> dict[str, tuple[int, ...]]:
    """The network that diffusers' convert_dit_to_diffusers.py makes of DiT-XL/2."""
    diffusers = load("diffusers")
    sizes = {"num_layers": 28, "num_attention_heads": 16, "attention_head_dim": 72, "num_embeds_ada_norm": 1000}
    return torch_shapes(diffusers.DiTTransformer2DModel, sample_size=side, in_channels=4, out_channels=8, **sizes)


def published_shapes(sit: str, dit: str, meanflow: str, imeanflow: str, esc: str) -> dict[str, dict[str, tuple[int, ...]]]:
    """By file, or by size where its authors state one and no file."""
    found = {"SiT-XL-2-256x256.pt": torch_shapes(code(sit, "models").SiT_models["SiT-XL/2"])}
    build = code(dit, "models").DiT_models["DiT-XL/2"]
    found |= {f"DiT-XL-2-{8 * side}x{8 * side}.pt": torch_shapes(build, input_size=side) for side in (32, 64)}
    found |= {f"facebook/DiT-XL-2-{8 * side}": diffusers_shapes(side) for side in (32, 64)}
    models = code(esc, "arch.sit_adpt").SiT_models
    found |= {f"ESC-{size}2": torch_shapes(models[f"SiT-{size}/2"], qk_norm=False) for size in ("B", "XL")}
    models = code(meanflow, "models.models_dit").DiT_models
    sizes = ("B/4", "B/2", "M/2", "L/2", "XL/2")
    found |= {f"MF-{size}": flax_shapes(models[f"DiT-{size}"](num_classes=1000), 2) for size in sizes}
    models = code(imeanflow, "models.imfDiT")
    builds = {size: getattr(models, f"imfDiT_{size}_2") for size in ("B", "M", "L", "XL")}
    return found | {f"iMF-{size}-2": flax_shapes(build(num_classes=1000), 5) for size, build in builds.items()}


def main(sit: str, dit: str, meanflow: str, imeanflow: str, esc: str) -> None:
    load("timm")
    velocity, shapes = torch_network(code(sit, "models").SiT, **published.SETTINGS)
    answers = {"sit": torch_answers(velocity, published.T)}
    noise, _ = torch_network(code(dit, "models").DiT, **published.SETTINGS)
    answers["dit"] = torch_answers(noise, published.LEVELS)
    networks = {"small": shapes}
    for name, record, folder in (("meanflow", mean_flow, meanflow), ("imf", improved, imeanflow), ("esc", shortcut, esc)):
        found, networks[name] = record(folder)
        answers |= found
    np.savez_compressed(GOLDEN / "transformers.npz", **answers)  # pyright: ignore[reportArgumentType]
    write(GOLDEN / "transformer_shapes.json", networks)
    write(GOLDEN / "published_transformers.json", published_shapes(sit, dit, meanflow, imeanflow, esc))


def write(path: pathlib.Path, networks: dict[str, dict[str, tuple[int, ...]]]) -> None:
    """A line a network."""
    lines = [f"{json.dumps(name)}: {json.dumps(published.stacked(shapes))}" for name, shapes in networks.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
