"""A small classifier that is trained here: features for images that published networks were not made for."""

import json
import pathlib
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray
from safetensors.numpy import save_file

from .. import storage
from ..models.layers import Dense
from .classifier import Activations
from .convolution import Conv
from .tensors import read_safetensors

WIDTHS = (32, 64, 128, 128)
HEADER = "eqx_shortcut classifier"
"""The key of the file's metadata that holds ours, as JSON."""


class SmallClassifier(eqx.Module):
    """Four convolutions of stride 2, the mean over places, and a linear layer: 0.24 million parameters, under a megabyte.

    The mean, 128 numbers, is what images are compared in. Images have three channels, grey ones three equal ones.
    """

    convolutions: tuple[Conv, ...]
    out: Dense

    def __init__(self, classes: int, *, key: PRNGKeyArray):
        *keys, k_out = jax.random.split(key, len(WIDTHS) + 1)
        sizes = zip((3, *WIDTHS[:-1]), WIDTHS, keys, strict=True)
        self.convolutions = tuple(Conv(inputs, outputs, stride=2, key=k) for inputs, outputs, k in sizes)
        self.out = Dense(WIDTHS[-1], classes, key=k_out)

    def __call__(self, image: Float[Array, "height width 3"]) -> Activations:
        """The activations for an image in [-1, 1]."""
        x = image
        for convolution in self.convolutions:
            x = jax.nn.relu(convolution(x))
        pooled = jnp.mean(x, axis=(0, 1))
        return Activations(pooled, None, self.out(pooled, pooled.dtype))


def save_classifier(path: str | pathlib.Path, network: SmallClassifier, record: dict[str, Any]) -> None:
    """Writes the network as safetensors, with a record of its training."""
    path = pathlib.Path(path)
    tensors = {name: jax.device_get(leaf) for name, leaf in _leaves(network).items()}
    with storage.draft_of(path) as draft:
        save_file(tensors, draft, metadata={HEADER: json.dumps({"classes": len(network.out.bias)} | record)})


def load_classifier(path: str | pathlib.Path) -> tuple[SmallClassifier, dict[str, Any]]:
    """The network of a file that `save_classifier` wrote, and the record of its training. Raises ValueError for other files."""
    path = pathlib.Path(path)
    if not path.is_file():
        raise ValueError(f"no file {path}: train a classifier with classifier.py, or check the path")
    try:
        tensors, stored = read_safetensors(path)
        record = json.loads(stored[HEADER])
        like = eqx.filter_eval_shape(lambda key: SmallClassifier(record["classes"], key=key), jax.random.key(0))
        expected = {name: leaf.shape for name, leaf in _leaves(like).items()}
        if expected != {name: tensor.shape for name, tensor in tensors.items()}:
            raise ValueError("it holds other tensors")
    except Exception as error:  # whatever a file of another making leads to
        raise ValueError(f"{path} is no classifier of classifier.py ({error!r}): name such a file") from error
    return jax.tree.unflatten(jax.tree.structure(like), [jnp.asarray(tensors[name]) for name in expected]), record


def _leaves(network: SmallClassifier) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(network)
    return {jax.tree_util.keystr(place, simple=True, separator="."): leaf for place, leaf in leaves}
