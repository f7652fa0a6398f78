"""Inception-V3 as FID knows it: the network of TensorFlow's release of 2015-12-05 (Szegedy et al. 2015; Heusel et al. 2017).

Modules bear the names of pytorch-fid's tensors, which is what `load_inception` relies on.
"""

import pathlib
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from ..models.layers import Dense
from ..storage import checksum
from .classifier import Activations, Layer, fill
from .convolution import Conv
from .torchfile import is_torch, read_tensors
from .unpickle import Leaf, Rules, UnpickleError, load

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


def average_pool(x: Inputs) -> Outputs:
    """The mean of each square of 3 x 3, of the pixels alone that are in the image: TensorFlow's, but not PyTorch's, default."""

    total = jax.lax.reduce_window(x, 0.0, jax.lax.add, (3, 3, 1), (1, 1, 1), ((1, 1), (1, 1), (0, 0)))
    # Counted on the host: XLA takes seconds to find out what the same sum of ones is.
    rows, columns = (np.convolve(np.ones(side), np.ones(3), "same") for side in x.shape[:2])
    return total / jnp.asarray(np.outer(rows, columns)[..., None], x.dtype)


class InceptionA(eqx.Module):
    """Branches of 1 x 1, 5 x 5, twice 3 x 3 and an average, side by side."""

    branch1x1: Unit
    branch5x5_1: Unit
    branch5x5_2: Unit
    branch3x3dbl_1: Unit
    branch3x3dbl_2: Unit
    branch3x3dbl_3: Unit
    branch_pool: Unit

    def __init__(self, keys: Keys, inputs: int, pool: int):
        self.branch1x1 = Unit(keys, inputs, 64)
        self.branch5x5_1 = Unit(keys, inputs, 48)
        self.branch5x5_2 = Unit(keys, 48, 64, 5)
        self.branch3x3dbl_1 = Unit(keys, inputs, 64)
        self.branch3x3dbl_2 = Unit(keys, 64, 96, 3)
        self.branch3x3dbl_3 = Unit(keys, 96, 96, 3)
        self.branch_pool = Unit(keys, inputs, pool)

    def __call__(self, x: Inputs) -> Outputs:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        branches = self.branch1x1(x), self.branch5x5_2(self.branch5x5_1(x)), double, self.branch_pool(average_pool(x))
        return jnp.concatenate(branches, axis=-1)


class InceptionB(eqx.Module):
    """Branches of 3 x 3, twice 3 x 3 and a maximum, which halve the image."""

    branch3x3: Unit
    branch3x3dbl_1: Unit
    branch3x3dbl_2: Unit
    branch3x3dbl_3: Unit

    def __init__(self, keys: Keys, inputs: int):
        self.branch3x3 = Unit(keys, inputs, 384, 3, stride=2)
        self.branch3x3dbl_1 = Unit(keys, inputs, 64)
        self.branch3x3dbl_2 = Unit(keys, 64, 96, 3)
        self.branch3x3dbl_3 = Unit(keys, 96, 96, 3, stride=2)

    def __call__(self, x: Inputs) -> Outputs:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return jnp.concatenate((self.branch3x3(x), double, max_pool(x, stride=2, padding=0)), axis=-1)


class InceptionC(eqx.Module):
    """Branches of 1 x 1, 7 x 7, twice 7 x 7, each of these as a row and a column, and an average."""

    branch1x1: Unit
    branch7x7_1: Unit
    branch7x7_2: Unit
    branch7x7_3: Unit
    branch7x7dbl_1: Unit
    branch7x7dbl_2: Unit
    branch7x7dbl_3: Unit
    branch7x7dbl_4: Unit
    branch7x7dbl_5: Unit
    branch_pool: Unit

    def __init__(self, keys: Keys, inputs: int, width: int):
        row, column = (1, 7), (7, 1)
        self.branch1x1 = Unit(keys, inputs, 192)
        self.branch7x7_1 = Unit(keys, inputs, width)
        self.branch7x7_2 = Unit(keys, width, width, row)
        self.branch7x7_3 = Unit(keys, width, 192, column)
        self.branch7x7dbl_1 = Unit(keys, inputs, width)
        self.branch7x7dbl_2 = Unit(keys, width, width, column)
        self.branch7x7dbl_3 = Unit(keys, width, width, row)
        self.branch7x7dbl_4 = Unit(keys, width, width, column)
        self.branch7x7dbl_5 = Unit(keys, width, 192, row)
        self.branch_pool = Unit(keys, inputs, 192)

    def __call__(self, x: Inputs) -> Outputs:
        single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return jnp.concatenate((self.branch1x1(x), single, double, self.branch_pool(average_pool(x))), axis=-1)


class InceptionD(eqx.Module):
    """Branches of 3 x 3, 7 x 7 before 3 x 3 and a maximum, which halve the image."""

    branch3x3_1: Unit
    branch3x3_2: Unit
    branch7x7x3_1: Unit
    branch7x7x3_2: Unit
    branch7x7x3_3: Unit
    branch7x7x3_4: Unit

    def __init__(self, keys: Keys, inputs: int):
        self.branch3x3_1 = Unit(keys, inputs, 192)
        self.branch3x3_2 = Unit(keys, 192, 320, 3, stride=2)
        self.branch7x7x3_1 = Unit(keys, inputs, 192)
        self.branch7x7x3_2 = Unit(keys, 192, 192, (1, 7))
        self.branch7x7x3_3 = Unit(keys, 192, 192, (7, 1))
        self.branch7x7x3_4 = Unit(keys, 192, 192, 3, stride=2)

    def __call__(self, x: Inputs) -> Outputs:
        long = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return jnp.concatenate((self.branch3x3_2(self.branch3x3_1(x)), long, max_pool(x, stride=2, padding=0)), axis=-1)


class InceptionE(eqx.Module):
    """Branches of 1 x 1, a row beside a column of 3, the same after 3 x 3, and a pool: an average, or else a maximum."""

    branch1x1: Unit
    branch3x3_1: Unit
    branch3x3_2a: Unit
    branch3x3_2b: Unit
    branch3x3dbl_1: Unit
    branch3x3dbl_2: Unit
    branch3x3dbl_3a: Unit
    branch3x3dbl_3b: Unit
    branch_pool: Unit
    average: bool = eqx.field(static=True)

    def __init__(self, keys: Keys, inputs: int, *, average: bool):
        row, column = (1, 3), (3, 1)
        self.branch1x1 = Unit(keys, inputs, 320)
        self.branch3x3_1 = Unit(keys, inputs, 384)
        self.branch3x3_2a = Unit(keys, 384, 384, row)
        self.branch3x3_2b = Unit(keys, 384, 384, column)
        self.branch3x3dbl_1 = Unit(keys, inputs, 448)
        self.branch3x3dbl_2 = Unit(keys, 448, 384, 3)
        self.branch3x3dbl_3a = Unit(keys, 384, 384, row)
        self.branch3x3dbl_3b = Unit(keys, 384, 384, column)
        self.branch_pool = Unit(keys, inputs, 192)
        self.average = average

    def __call__(self, x: Inputs) -> Outputs:
        single = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = average_pool(x) if self.average else max_pool(x, stride=1, padding=1)
        branches = (
            self.branch1x1(x),
            self.branch3x3_2a(single),
            self.branch3x3_2b(single),
            self.branch3x3dbl_3a(double),
            self.branch3x3dbl_3b(double),
            self.branch_pool(pooled),
        )
        return jnp.concatenate(branches, axis=-1)


class Inception(eqx.Module):
    """From an image of 299 x 299, about in [-1, 1], to 2048 features; `load_inception` reads trained weights.

    As in the original graph, averages leave out what is beyond the image, and the last block pools by the maximum.
    """

    Conv2d_1a_3x3: Unit
    Conv2d_2a_3x3: Unit
    Conv2d_2b_3x3: Unit
    Conv2d_3b_1x1: Unit
    Conv2d_4a_3x3: Unit
    Mixed_5b: InceptionA
    Mixed_5c: InceptionA
    Mixed_5d: InceptionA
    Mixed_6a: InceptionB
    Mixed_6b: InceptionC
    Mixed_6c: InceptionC
    Mixed_6d: InceptionC
    Mixed_6e: InceptionC
    Mixed_7a: InceptionD
    Mixed_7b: InceptionE
    Mixed_7c: InceptionE
    fc: Dense | None

    def __init__(self, *, classes: int = CLASSES, key: PRNGKeyArray):
        """Without classes there are no logits."""
        k_units, k_classes = jax.random.split(key)
        keys = iter(jax.random.split(k_units, UNITS))
        self.Conv2d_1a_3x3 = Unit(keys, 3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Unit(keys, 32, 32, 3, stride=1)
        self.Conv2d_2b_3x3 = Unit(keys, 32, 64, 3)
        self.Conv2d_3b_1x1 = Unit(keys, 64, 80)
        self.Conv2d_4a_3x3 = Unit(keys, 80, 192, 3, stride=1)
        self.Mixed_5b = InceptionA(keys, 192, 32)
        self.Mixed_5c = InceptionA(keys, 256, 64)
        self.Mixed_5d = InceptionA(keys, 288, 64)
        self.Mixed_6a = InceptionB(keys, 288)
        self.Mixed_6b = InceptionC(keys, 768, 128)
        self.Mixed_6c = InceptionC(keys, 768, 160)
        self.Mixed_6d = InceptionC(keys, 768, 160)
        self.Mixed_6e = InceptionC(keys, 768, 192)
        self.Mixed_7a = InceptionD(keys, 768)
        self.Mixed_7b = InceptionE(keys, 1280, average=True)
        self.Mixed_7c = InceptionE(keys, 2048, average=False)
        self.fc = Dense(2048, classes, key=k_classes) if classes else None

    def __call__(self, image: Float[Array, "height width 3"]) -> Activations:
        """The spatial features are the first 7 channels of the branch of 1 x 1 in `Mixed_6d`, which is `mixed_6/conv:0` of
        TensorFlow's graph (Nash et al. 2021, as in guided-diffusion); the logits are without their bias, as the Inception Score
        has been computed since it was defined on this network (guided-diffusion, torch-fidelity).
        """
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(image)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(max_pool(x, stride=2, padding=0)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(max_pool(x, stride=2, padding=0))))
        mixed_6d = self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(self.Mixed_6e(mixed_6d))))
        pooled = jnp.mean(x, axis=(0, 1))
        # The branch of 1 x 1 comes first in its block.
        spatial = mixed_6d[..., :SPATIAL_CHANNELS].reshape(-1)
        return Activations(pooled, spatial, None if self.fc is None else pooled @ self.fc.kernel)


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
    return Layer(place, f"{place.removesuffix('conv')}bn")


PARTS = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


def _read_pickle(path: pathlib.Path) -> dict[str, Shaped[np.ndarray, "..."]]:
    """`{block: {branch: {conv: {kernel, bias: None}, bn: {scale, bias, mean, var}}}}` by PyTorch's names and order of axes."""
    try:
        with path.open("rb") as file:
            return dict(_walk(load(file, Rules()), "", 0))
    except UnpickleError as error:
        raise ValueError(f"{path} (sha256 {checksum([path])[:8]}...) cannot be read as Inception's weights: {error}") from None
    except Exception as error:  # whatever damaged bytes bring about
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise ValueError(f"{path} cannot be read as Inception's weights ({reason}): copy it again") from error


def _walk(tree: Any, path: str, depth: int) -> Iterator[tuple[str, np.ndarray]]:
    if not isinstance(tree, dict) or depth > 4:
        raise UnpickleError(f"at {path!r} it holds no dictionary of arrays: fetch the file again")
    for name, value in tree.items():
        match value:
            case dict():
                yield from _walk(value, f"{path}{name[:100]}.", depth + 1)
            case Leaf(value=np.ndarray() as array):
                yield f"{path}{PARTS.get(name, name[:100])}", array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
            case None:
                pass  # the bias that no convolution has
            case _:
                raise UnpickleError(f"at {path}{name[:100]} it holds no array: fetch the file again")
