"""Inception's weights by the rule of tests/golden/README.md, as tensors and as what the original code unpickles."""

import functools
import importlib
import importlib.util
import json
import pathlib
import sys
import types
import zlib
from typing import Any

import equinox as eqx
import jax
import numpy as np
import pytest

from eqx_shortcut.pretrained.inception import Inception, Unit

GOLDEN = pathlib.Path(__file__).parent / "golden" / "fid.npz"
NAMES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
REASON = "needs torch and torch-fidelity: pip install 'eqx_shortcut[parity]'"
Shapes = dict[str, tuple[int, ...]]


@functools.cache
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN, allow_pickle=False) as stored:
        return dict(stored)


def recorded_shapes() -> Shapes:
    """Of the network of the recorded features: without a file the original code makes some branches narrower than it reads."""
    return {name: tuple(shape) for name, shape in json.loads(str(golden()["inception/shapes_json"])).items()}


@functools.cache
def abstract() -> Inception:
    return eqx.filter_eval_shape(lambda key: Inception(key=key), jax.random.key(0))


def named(place: Any) -> str:
    return jax.tree_util.keystr(place, simple=True, separator="/").removeprefix("layers/").replace("/units/", "/")


def published_shapes() -> Shapes:
    units, _ = jax.tree_util.tree_flatten_with_path(abstract(), is_leaf=lambda node: isinstance(node, Unit))
    found = {}
    for place, unit in units:
        if isinstance(unit, Unit):
            name = named(place)
            norm = {f"{name}/bn/{part}": unit.conv.kernel.shape[-1:] for part in ("scale", "bias", "mean", "var")}
            found |= {f"{name}/conv/kernel": unit.conv.kernel.shape, **norm}
    return found


def parameters(shapes: Shapes) -> dict[str, np.ndarray]:
    """By the names of the original code's pickle, `/` between its levels."""
    seed = int(golden()["inception/seed"])
    return {name: draw(seed, name, shape) for name, shape in shapes.items()}


def draw(seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    n = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape)
    rules = {
        "kernel": lambda: n * np.sqrt(2 / np.prod(shape[:-1])),
        "scale": lambda: 1 + 0.1 * n,
        "var": lambda: np.exp(0.2 * n),
    }
    return rules.get(name.rpartition("/")[2], lambda: 0.1 * n)().astype(np.float32)


def images() -> np.ndarray:
    """Those of the recorded features."""
    seed = int(golden()["inception/seed"])
    y, x = np.meshgrid(*2 * [np.linspace(-1, 1, 299)], indexing="ij")
    waves = np.stack([np.sin(3 * y + x), np.cos(5 * x * y), y * x], -1)
    noise = np.random.default_rng([seed, 2]).uniform(-1, 1, (2, 299, 299, 3))
    return np.concatenate([noise, waves[None]]).astype(np.float32)


def nested(named: dict[str, np.ndarray]) -> dict[str, Any]:
    """What the original code unpickles."""
    tree: dict[str, Any] = {}
    for name, value in named.items():
        *path, last = name.split("/")
        level = functools.reduce(lambda level, part: level.setdefault(part, {}), path, tree)
        level[last] = value
        if last == "kernel":
            level["bias"] = None
    return tree


def tensors(named: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The state dictionary of pytorch-fid and torch-fidelity, but for the last layer."""
    found = {}
    for name, value in named.items():
        *path, last = name.split("/")
        torch_name = ".".join([*path, NAMES.get(last, last)])
        found[torch_name] = np.ascontiguousarray(value.transpose(3, 2, 0, 1)) if value.ndim == 4 else value
    return found


def last_layer() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(0, 0.02, (1008, 2048)), rng.normal(0, 1, 1008)
    return {"fc.weight": weight.astype(np.float32), "fc.bias": bias.astype(np.float32)}


def of_shapes(shapes: Shapes) -> Inception:
    """The abstract network without classes, with kernels and biases of these shapes."""
    places, tree = jax.tree_util.tree_flatten_with_path(eqx.tree_at(lambda net: net.fc, abstract(), None))
    leaves = []
    for place, _ in places:
        name = named(place)
        kernel = shapes[name.replace("/bias", "/kernel")]
        shape = kernel if place[-1].name == "kernel" else kernel[-1:]
        leaves.append(jax.ShapeDtypeStruct(shape, np.float32))
    return jax.tree_util.tree_unflatten(tree, leaves)


def fidelity_part(name: str) -> types.ModuleType:
    """A file of torch-fidelity without the package's own start, which needs a torchvision of torch's very build."""
    pytest.importorskip("torch", reason=REASON)
    found = importlib.util.find_spec("torch_fidelity")
    if found is None:
        pytest.skip(REASON)
    package = types.ModuleType("torch_fidelity")
    package.__path__ = found.submodule_search_locations or []
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torch_fidelity", package)
        return importlib.import_module(f"torch_fidelity.{name}")
