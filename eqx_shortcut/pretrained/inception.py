"""Inception-V3 as FID knows it: the network of TensorFlow's release of 2015-12-05 (Szegedy et al. 2015; Heusel et al. 2017).

Layers bear the names of pytorch-fid's tensors, which is what `load_inception` relies on.
"""

import functools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from ..errors import first_line
from ..models.layers import Dense
from ..storage import checksum
from .classifier import Activations, Layer, fill
from .convolution import Conv
from .torchfile import is_torch, read_tensors
from .unpickle import Leaf, Rules, UnpickleError, leaves, load

CLASSES = 1008
"""Logits: the classes of ImageNet, and eight that are not used."""
SPATIAL_CHANNELS = 7
EPSILON = 1e-3
"""Epsilon of every batch normalisation."""
UNITS = 94

Inputs = Float[Array, "height width inputs"]
Outputs = Float[Array, "rows columns outputs"]
Keys = Iterator[PRNGKeyArray]


class Unit(eqx.Module):
    """`relu(conv(x))`, with the batch normalisation that was between them folded into the convolution."""

    conv: Conv

    def __init__(self, keys: Keys, inputs: int, outputs: int, size: int | tuple[int, int] = 1, *, stride: int = 0):
        """Zeros around the image keep its size; with a `stride` there are none."""
        padding = (0, 0) if stride else None
        self.conv = Conv(inputs, outputs, size, key=next(keys), stride=stride or 1, padding=padding)

    def __call__(self, x: Inputs) -> Outputs:
        return jax.nn.relu(self.conv(x))


def max_pool(x: Inputs, *, stride: int, padding: int) -> Outputs:
    """The largest of each square of 3 x 3."""
    edges = ((padding, padding), (padding, padding), (0, 0))
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (3, 3, 1), (stride, stride, 1), edges)


halving_pool = functools.partial(max_pool, stride=2, padding=0)
same_pool = functools.partial(max_pool, stride=1, padding=1)


def average_pool(x: Inputs) -> Outputs:
    """The mean of each square of 3 x 3, of the pixels alone that are in the image: TensorFlow's, but not PyTorch's, default."""
    total = jax.lax.reduce_window(x, 0.0, jax.lax.add, (3, 3, 1), (1, 1, 1), ((1, 1), (1, 1), (0, 0)))
    # Counted on the host: XLA takes seconds to find out what the same sum of ones is.
    rows, columns = (np.convolve(np.ones(side), np.ones(3), "same") for side in x.shape[:2])
    return total / jnp.asarray(np.outer(rows, columns)[..., None], x.dtype)


class Convolution(NamedTuple):
    """A `Unit` of a block: its name, its channels, and the rest of its arguments."""

    name: str
    channels: int
    size: int | tuple[int, int] = 1
    stride: int = 0


Chain = tuple[Any, ...]
"""Layers, pools and blocks (tuples of chains) one after another."""


def block_a(pool: int) -> tuple[Chain, ...]:
    """Branches of 1 x 1, 5 x 5, twice 3 x 3 and an average."""
    return (
        (Convolution("branch1x1", 64),),
        (Convolution("branch5x5_1", 48), Convolution("branch5x5_2", 64, 5)),
        (Convolution("branch3x3dbl_1", 64), Convolution("branch3x3dbl_2", 96, 3), Convolution("branch3x3dbl_3", 96, 3)),
        (average_pool, Convolution("branch_pool", pool)),
    )


def block_c(width: int) -> tuple[Chain, ...]:
    """Branches of 1 x 1, 7 x 7, twice 7 x 7, each of these as a row and a column, and an average."""
    row, column = (1, 7), (7, 1)
    return (
        (Convolution("branch1x1", 192),),
        (Convolution("branch7x7_1", width), Convolution("branch7x7_2", width, row), Convolution("branch7x7_3", 192, column)),
        (
            Convolution("branch7x7dbl_1", width),
            Convolution("branch7x7dbl_2", width, column),
            Convolution("branch7x7dbl_3", width, row),
            Convolution("branch7x7dbl_4", width, column),
            Convolution("branch7x7dbl_5", 192, row),
        ),
        (average_pool, Convolution("branch_pool", 192)),
    )


def block_e(pool: Callable[[Array], Array]) -> tuple[Chain, ...]:
    """Branches of 1 x 1, a row beside a column of 3, the same after 3 x 3, and a pool."""
    row, column = (1, 3), (3, 1)
    return (
        (Convolution("branch1x1", 320),),
        (
            Convolution("branch3x3_1", 384),
            ((Convolution("branch3x3_2a", 384, row),), (Convolution("branch3x3_2b", 384, column),)),
        ),
        (
            Convolution("branch3x3dbl_1", 448),
            Convolution("branch3x3dbl_2", 384, 3),
            ((Convolution("branch3x3dbl_3a", 384, row),), (Convolution("branch3x3dbl_3b", 384, column),)),
        ),
        (pool, Convolution("branch_pool", 192)),
    )


BLOCK_B: tuple[Chain, ...] = (
    (Convolution("branch3x3", 384, 3, stride=2),),
    (Convolution("branch3x3dbl_1", 64), Convolution("branch3x3dbl_2", 96, 3), Convolution("branch3x3dbl_3", 96, 3, stride=2)),
    (halving_pool,),
)
"""Branches of 3 x 3, twice 3 x 3 and a maximum, which halve the image."""

BLOCK_D: tuple[Chain, ...] = (
    (Convolution("branch3x3_1", 192), Convolution("branch3x3_2", 320, 3, stride=2)),
    (
        Convolution("branch7x7x3_1", 192),
        Convolution("branch7x7x3_2", 192, (1, 7)),
        Convolution("branch7x7x3_3", 192, (7, 1)),
        Convolution("branch7x7x3_4", 192, 3, stride=2),
    ),
    (halving_pool,),
)
"""Branches of 3 x 3, 7 x 7 before 3 x 3 and a maximum, which halve the image."""


class Mixed(eqx.Module):
    """The branches of a block side by side, their channels one after another."""

    units: dict[str, Unit]
    branches: tuple[Chain, ...] = eqx.field(static=True)

    def __init__(self, keys: Keys, inputs: int, branches: tuple[Chain, ...]):
        self.units, self.branches = dict(_units(keys, inputs, branches)), branches

    def __call__(self, x: Inputs) -> Outputs:
        return self._side_by_side(self.branches, x)

    def _side_by_side(self, branches: tuple[Chain, ...], x: Inputs) -> Outputs:
        return jnp.concatenate([functools.reduce(self._step, chain, x) for chain in branches], axis=-1)

    def _step(self, x: Inputs, step: Any) -> Outputs:
        if isinstance(step, Convolution):
            return self.units[step.name](x)
        return self._side_by_side(step, x) if isinstance(step, tuple) else step(x)


def _units(keys: Keys, inputs: int, branches: tuple[Chain, ...]) -> Iterator[tuple[str, Unit]]:
    for chain in branches:
        channels = inputs
        for step in chain:
            if isinstance(step, Convolution):
                yield step.name, Unit(keys, channels, step.channels, step.size, stride=step.stride)
                channels = step.channels
            elif isinstance(step, tuple):
                yield from _units(keys, channels, step)


class Inception(eqx.Module):
    """From an image of 299 x 299, about in [-1, 1], to 2048 features; `load_inception` reads trained weights.

    As in the original graph, averages leave out what is beyond the image, and the last block pools by the maximum.
    """

    layers: dict[str, Unit | Mixed]
    fc: Dense | None

    def __init__(self, *, classes: int = CLASSES, key: PRNGKeyArray):
        """Without classes there are no logits."""
        k_units, k_classes = jax.random.split(key)
        keys = iter(jax.random.split(k_units, UNITS))
        self.layers = {
            "Conv2d_1a_3x3": Unit(keys, 3, 32, 3, stride=2),
            "Conv2d_2a_3x3": Unit(keys, 32, 32, 3, stride=1),
            "Conv2d_2b_3x3": Unit(keys, 32, 64, 3),
            "Conv2d_3b_1x1": Unit(keys, 64, 80),
            "Conv2d_4a_3x3": Unit(keys, 80, 192, 3, stride=1),
            "Mixed_5b": Mixed(keys, 192, block_a(32)),
            "Mixed_5c": Mixed(keys, 256, block_a(64)),
            "Mixed_5d": Mixed(keys, 288, block_a(64)),
            "Mixed_6a": Mixed(keys, 288, BLOCK_B),
            "Mixed_6b": Mixed(keys, 768, block_c(128)),
            "Mixed_6c": Mixed(keys, 768, block_c(160)),
            "Mixed_6d": Mixed(keys, 768, block_c(160)),
            "Mixed_6e": Mixed(keys, 768, block_c(192)),
            "Mixed_7a": Mixed(keys, 768, BLOCK_D),
            "Mixed_7b": Mixed(keys, 1280, block_e(average_pool)),
            "Mixed_7c": Mixed(keys, 2048, block_e(same_pool)),
        }
        self.fc = Dense(2048, classes, key=k_classes) if classes else None

    def __call__(self, image: Float[Array, "height width 3"]) -> Activations:
        """The spatial features are the first 7 channels of the branch of 1 x 1 in `Mixed_6d`, which is `mixed_6/conv:0` of
        TensorFlow's graph (Nash et al. 2021, as in guided-diffusion); the logits are without their bias, as the Inception Score
        has been computed since it was defined on this network (guided-diffusion, torch-fidelity).
        """
        x = self._through(image, "Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3")
        x = self._through(halving_pool(x), "Conv2d_3b_1x1", "Conv2d_4a_3x3")
        x = self._through(halving_pool(x), "Mixed_5b", "Mixed_5c", "Mixed_5d")
        mixed_6d = self._through(x, "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d")
        x = self._through(mixed_6d, "Mixed_6e", "Mixed_7a", "Mixed_7b", "Mixed_7c")
        pooled = jnp.mean(x, axis=(0, 1))
        # The branch of 1 x 1 comes first in its block.
        spatial = mixed_6d[..., :SPATIAL_CHANNELS].reshape(-1)
        return Activations(pooled, spatial, None if self.fc is None else pooled @ self.fc.kernel)

    def _through(self, x: Inputs, *names: str) -> Outputs:
        for name in names:
            x = self.layers[name](x)
        return x


def load_inception(path: str | pathlib.Path) -> Inception:
    """The network of `pt_inception-2015-12-05-6726825d.pth` (pytorch-fid, torch-fidelity), or of the original code's pickle.

    Nothing in the file is run. Raises ValueError that shows the file's hash, and names the tensors that are missing, left over
    or of another shape.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise ValueError(
            f"no file {path}: download pt_inception-2015-12-05-6726825d.pth from the releases of mseitzer/pytorch-fid and name "
            "it with --inception, or choose other --features (pixels need no file)"
        )
    tensors = read_tensors(path) if is_torch(path) else _read_pickle(path)
    classes = CLASSES if "fc.weight" in tensors else 0
    like = eqx.filter_eval_shape(lambda key: Inception(classes=classes, key=key), jax.random.key(0))
    return fill(like, tensors, _names, epsilon=EPSILON, source=f"{path} (sha256 {checksum([path])[:8]}...)")


def _names(place: str) -> Layer:
    name = place.removeprefix("layers.").replace(".units.", ".")
    return Layer(name, f"{name.removesuffix('conv')}bn")


PARTS = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


def _read_pickle(path: pathlib.Path) -> dict[str, Shaped[np.ndarray, "..."]]:
    """`{block: {branch: {conv: {kernel, bias: None}, bn: {scale, bias, mean, var}}}}` by PyTorch's names and order of axes."""
    try:
        with path.open("rb") as file:
            # A convolution has no bias.
            found = {name: value for name, value in leaves(load(file, Rules()), "its content") if value is not None}
            return dict(_in_torch(name, value) for name, value in found.items())
    except UnpickleError as error:
        raise ValueError(f"{path} (sha256 {checksum([path])[:8]}...) cannot be read as Inception's weights: {error}") from None
    except Exception as error:  # whatever damaged bytes bring about
        raise ValueError(f"{path} cannot be read as Inception's weights ({first_line(error, 200)}): copy it again") from error


def _in_torch(path: str, value: Any) -> tuple[str, np.ndarray]:
    *modules, name = path.split("/")
    match value:
        case Leaf(value=np.ndarray() as array):
            return ".".join([*modules, PARTS.get(name, name)]), array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
    raise UnpickleError(f"at {path} it holds no array: fetch the file again")
