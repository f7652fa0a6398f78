"""Every tensor of the published files has its place in a network of ours, by names and shapes alone: no weights are made."""

import re
from typing import Any

import equinox as eqx
import jax
import numpy as np
import pytest

import published
from eqx_shortcut.experiment.initial import check_same
from eqx_shortcut.models.layers import position_table
from eqx_shortcut.objectives import FlowMatching
from eqx_shortcut.pretrained import improved_mean_flow, transformers
from eqx_shortcut.pretrained.named import check_names
from eqx_shortcut.pretrained.transformer_files import Family, Published, network_of
from eqx_shortcut.pretrained.transformers import POSITIONS, from_diffusers, from_flax
from eqx_shortcut.trained import Trained
from scripts import script

FILES = published.shapes("published_transformers.json")
SIZES = {
    "SiT-XL-2-256x256.pt": (1152, 28, 16, 2, 32),
    "DiT-XL-2-256x256.pt": (1152, 28, 16, 2, 32),
    "DiT-XL-2-512x512.pt": (1152, 28, 16, 2, 64),
    "facebook/DiT-XL-2-256": (1152, 28, 16, 2, 32),
    "facebook/DiT-XL-2-512": (1152, 28, 16, 2, 64),
    "ESC-B2": (768, 12, 12, 2, 32),
    "ESC-XL2": (1152, 28, 16, 2, 32),
    "MF-B/4": (768, 12, 12, 4, 32),
    "MF-B/2": (768, 12, 12, 2, 32),
    "MF-M/2": (1024, 16, 16, 2, 32),
    "MF-L/2": (1024, 24, 16, 2, 32),
    "MF-XL/2": (1152, 28, 16, 2, 32),
    "iMF-B-2": (768, 12, 12, 2, 32),
    "iMF-M-2": (768, 24, 12, 2, 32),
    "iMF-L-2": (1024, 32, 16, 2, 32),
    "iMF-XL-2": (1024, 48, 16, 2, 32),
}
"""Width, blocks, heads, patch and side of the latents, as their authors state them."""
KINDS: dict[str, Family] = {"SiT": "sit", "DiT": "dit", "facebook": "dit", "ESC": "esc", "MF": "meanflow", "iMF": "imf"}


def read(file: str) -> Published:
    """The tensors as a reader hands them on, views of one number each but for the table of positions."""
    hidden, _, heads, patch, size = SIZES[file]
    tensors: dict[str, Any] = {name: np.broadcast_to(np.float32(0), shape) for name, shape in FILES[file].items()}
    if POSITIONS in tensors:
        tensors[POSITIONS] = position_table(hidden, size // patch, size // patch)[None]
        assert tensors[POSITIONS].shape == FILES[file][POSITIONS]
    kind = KINDS[re.split("[-/]", file)[0]]
    if file.startswith("facebook"):  # whose folder tells heads and size
        return Published(from_diffusers(tensors), kind, heads, size)
    return Published(from_flax(tensors) if kind == "meanflow" else tensors, kind)


@pytest.fixture(autouse=True)
def unfilled(monkeypatch):
    """Names and shapes are compared as ever, and nothing is filled in."""

    def filled(like, name, named):
        check_names(named, {key: leaf.shape for key, leaf in eqx.filter_eval_shape(name, like).items()})
        return like

    for module in (transformers, improved_mean_flow):
        monkeypatch.setattr(module, "filled", filled)


@pytest.mark.parametrize("file", SIZES)
def test_a_published_file_is_taken_whole(file):
    """By a network of its authors' sizes, which answers images of theirs."""
    found = read(file)
    assert found.kind is not None
    network = network_of(found, found.kind, key=jax.random.key(0))
    config, shape = network.config, network.shape
    assert (config.hidden, config.depth, config.heads, config.patch, shape[0]) == SIZES[file]
    assert shape == (shape[0], shape[0], 4) and network.classes == 1000
    x, scalar, label = (jax.ShapeDtypeStruct(of, kind) for of, kind in ((shape, "f"), ((), "f"), ((), "i")))
    assert eqx.filter_eval_shape(lambda n, *given: n(*given), network, x, scalar, scalar, label).shape == shape


@pytest.mark.parametrize(
    ("file", "name", "shape"),
    [("ESC-B2", "r_embedder.mlp.2.bias", (767,)), ("iMF-B-2", "v_heads_7/mlp/w3/_flax_linear/kernel", (768, 2047))],
)
def test_a_tensor_less_or_of_another_size_is_named(file, name, shape):
    found = read(file)
    assert found.kind is not None
    for tensors, said in (
        ({key: value for key, value in found.tensors.items() if key != name}, f"1 missing ({name}), 0 left over"),
        ({**found.tensors, name: np.zeros(shape)}, f"parameter {name} has shape {shape}"),
    ):
        with pytest.raises(ValueError, match=re.escape(said)):
            network_of(found._replace(tensors=tensors), found.kind, key=jax.random.key(0))


def test_all_lists_are_tried():
    assert SIZES.keys() == FILES.keys()


@pytest.mark.parametrize("name", ["from-flow", "from-flow-low-rank", "from-flow-split"])
def test_a_preset_starts_from_the_published_sit(name):
    """Its network has the settings that keep the function, and its objective is one that it can be trained by."""
    network = network_of(read("SiT-XL-2-256x256.pt"), "sit", key=jax.random.key(0))
    config = script("imagenet").EXPERIMENT.parse([name])
    assert config.init_from is not None
    config.network.check(config.objective)
    config.objective.check(config.batch)
    build = lambda key: config.network.build(network.shape, network.classes, key=key)  # noqa: E731
    fresh = eqx.filter_eval_shape(build, jax.random.key(0))
    check_same(fresh, Trained(network, FlowMatching(), network.shape, network.classes, 1), config.init_from)
