"""The outputs of image classifiers, and networks from published tensors."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from ..models.layers import Dense
from .convolution import Conv, Depthwise
from .named import check_names
from .tensors import torch_shape

Network = TypeVar("Network")
Tensors = Mapping[str, Shaped[np.ndarray, "..."]]
"""By their names in PyTorch, with its order of axes."""
Shape = tuple[int, ...]
NORM = ("weight", "bias", "running_mean", "running_var")
"""Tensors of a batch normalisation."""


class Activations(NamedTuple):
    """The outputs of a classifier for one image."""

    pooled: Float[Array, "*batch features"]
    """The mean over all places of the last layer but one."""
    spatial: Float[Array, "*batch places"] | None
    """A layer whose values keep their place in the image, if the network has one that is compared."""
    logits: Float[Array, "*batch classes"] | None
    """Logarithms of class probabilities up to a constant, if the file had what they are made with."""


class Layer(NamedTuple):
    """The names of a layer's tensors before `.weight` and the like."""

    name: str
    norm: str = ""
    """The name of the batch normalisation that follows a convolution."""


def fill(like: Network, tensors: Tensors, names: Callable[[str], Layer], *, epsilon: float, source: str) -> Network:
    """The network with every parameter from `tensors`, and each batch normalisation folded into the convolution before it.

    With `s = scale / sqrt(variance + epsilon)` the kernel becomes `s * kernel`, the bias `bias - s * mean`. `like` may be
    abstract; `names` goes from the place of a layer in it to the names of its tensors. Raises ValueError naming what is
    missing, left over or of another shape.
    """
    places, tree = jax.tree_util.tree_flatten_with_path(like, is_leaf=lambda node: isinstance(node, Conv | Depthwise | Dense))
    layers = [(names(jax.tree_util.keystr(place, simple=True, separator=".")), layer) for place, layer in places]
    # Counters are of use in training alone, and absent from files of early versions of PyTorch.
    given = {name: tensor for name, tensor in tensors.items() if not name.endswith(".num_batches_tracked")}
    try:
        check_names(given, {name: shape for at, layer in layers for name, shape in _shapes(at, layer).items()})
    except ValueError as error:
        raise ValueError(
            f"{source} holds other weights than the network's ({error}): fetch the file again, or name another"
        ) from error
    return jax.tree_util.tree_unflatten(tree, [_filled(layer, at, tensors, epsilon) for at, layer in layers])


def _shapes(at: Layer, layer: Any) -> dict[str, Shape]:
    shapes = {f"{at.name}.weight": torch_shape(layer.kernel.shape)}
    biases = [f"{at.name}.bias"] if isinstance(layer, Dense) else [f"{at.norm}.{part}" for part in NORM]
    return shapes | dict.fromkeys(biases, layer.kernel.shape[-1:])


def _filled(layer: Any, at: Layer, tensors: Tensors, epsilon: float) -> Any:
    weight = np.asarray(tensors[f"{at.name}.weight"], np.float64)
    if isinstance(layer, Dense):
        kernel, bias = weight.T, np.asarray(tensors[f"{at.name}.bias"], np.float64)
    else:
        scale, shift, mean, variance = (np.asarray(tensors[f"{at.norm}.{part}"], np.float64) for part in NORM)
        scale = scale / np.sqrt(variance + epsilon)
        kernel, bias = (weight.transpose(2, 3, 1, 0) * scale).reshape(layer.kernel.shape), shift - scale * mean
    new = tuple(jnp.asarray(value, jnp.float32) for value in (kernel, bias))
    return eqx.tree_at(lambda node: (node.kernel, node.bias), layer, new)
