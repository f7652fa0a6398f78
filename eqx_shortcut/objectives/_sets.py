"""Losses on sets of one-step samples as objectives."""

import dataclasses
import functools
import itertools
import pathlib
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from .. import losses
from ..pretrained.small_classifier import load_classifier
from ..ranges import BelowOne, Count, NotNegative, OneOrMore, Positive
from ..rows import check_groups
from ..storage import checksum
from ..types import Batch, Field, Number
from ._base import Loss, Networks, Objective, OnField


@dataclasses.dataclass(frozen=True)
class _OneStep(OnField, Objective):
    """A base of losses on features of samples: the network is asked for one step from noise to data, and learns no other."""

    hides_labels: ClassVar[bool] = False
    features: tuple[str, ...] = ("pixels",)
    """Features to compare samples in: pixels, pixels/2 (means over 2 x 2), windows/10 (each window of 10 x 10 on its own),
    files of classifier.py; judge in others."""

    @functools.cached_property
    def vectors(self) -> losses.Features:
        """The features as a function of rows. Raises ValueError for what is no such file."""
        if not self.features:
            raise ValueError("features=() compares nothing: name pixels, or files of classifier.py")
        with jax.ensure_compile_time_eval():
            spaces = [_vectors(name) for name in self.features]
        return lambda x: [vectors(x) for vectors in spaces]

    def check(self, batch: int) -> None:
        """Sets of two rows or more, and features that there are."""
        check_groups(batch, self.sets or 1)
        _ = self.vectors

    def trained_in(self) -> tuple[str, ...]:
        """Pixels of any size, windows too, and the files that there are."""
        files = [pathlib.Path(name) for name in self.features if pathlib.Path(name).is_file()]
        pixels = any(name.startswith(("pixels", "windows")) for name in self.features)
        return (*["pixels"] * pixels, *(f"sha256 {checksum([file])[:16]}" for file in files))


@dataclasses.dataclass(frozen=True)
class _OnSets(_OneStep):
    """A base of losses on sets of one class each."""

    groups: Count = 1
    """Sets of one class each that a batch is made of; must divide it (1 or more)."""
    guidance: NotNegative = 1.0
    """Guidance scale inside; 1 is none (0 or more)."""

    @property
    def options(self) -> dict[str, Any]:
        """The options of all losses on sets."""
        return {"groups": self.groups, "features": self.vectors, "guidance": self.guidance}


@dataclasses.dataclass(frozen=True)
class SinkhornFlow(_OnSets):
    """W-Flow (2026): one-step samples move by entropic plans, towards the data and away from a second set of samples."""

    epsilon: Positive = 0.05
    """Entropic regularisation of the plans, in units of their mean cost (more than 0)."""
    iterations: Count = 20
    """Sinkhorn iterations (1 or more)."""
    exponent: Positive = 1.0
    """Exponent of the distance in the cost (more than 0)."""

    def loss(self, field: Field, networks: Networks, batch: Batch, key: PRNGKeyArray, progress: Number) -> Loss:
        plans = {"epsilon": self.epsilon, "iterations": self.iterations, "exponent": self.exponent}
        return losses.sinkhorn_flow(field, batch, key, **plans, **self.options)


@dataclasses.dataclass(frozen=True)
class Drifting(_OnSets):
    """Drifting models (2026): nearby data attract one-step samples, which repel one another."""

    guidance: OneOrMore = 1.0
    """Guidance scale inside; 1 is none (1 or more)."""
    temperatures: tuple[Positive, ...] = (0.02, 0.05, 0.2)
    """Reaches of the kernels, in units of the mean distance (more than 0)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperatures:
            raise ValueError("temperatures=() are the reaches of no kernel: name one or more, such as 0.2")

    def loss(self, field: Field, networks: Networks, batch: Batch, key: PRNGKeyArray, progress: Number) -> Loss:
        return losses.drifting(field, batch, key, temperatures=self.temperatures, **self.options)


@dataclasses.dataclass(frozen=True)
class Frechet(_OneStep):
    """FD-Loss (2026): post-training of any model of one step, by the Frechet distance of its samples to the data.

    Start it with --init-from.
    """

    decay: BelowOne = 0.999
    """Decay per step of the weight of earlier batches in the moments (0 to below 1)."""
    eps: Positive = 0.01
    """A distance below this counts less (more than 0)."""

    def memory(self, shape: tuple[int, ...]) -> losses.Memory:
        """Moments of nothing yet, in each space."""
        spaces = jax.eval_shape(self.vectors, jax.ShapeDtypeStruct((2, *shape), jnp.float32))
        return [losses.Streams(*(losses.Stream.of(space.shape[1]) for _ in range(2))) for space in jax.tree.leaves(spaces)]

    def loss(self, field: Field, networks: Networks, batch: Batch, key: PRNGKeyArray, progress: Number) -> Loss:
        return self._both(field, networks, batch, key)[0]

    def remembered(self, networks: Networks, batch: Batch, key: PRNGKeyArray, progress: Number) -> tuple[Loss, Any]:
        k_draws, k_mask = jax.random.split(key)
        return self._both(networks.field(k_mask), networks, batch, k_draws)

    def _both(self, field, networks, batch, key):
        options = {"memory": networks.memory, "features": self.vectors, "decay": self.decay, "eps": self.eps}
        return losses.frechet(field, batch, key, **options)


def _vectors(name: str) -> losses.Features:
    if name == "pixels":
        return losses.flattened
    kind, _, side = name.partition("/")
    if kind in (squares := {"pixels": _coarse, "windows": _windows}) and side.isdecimal() and int(side):
        return functools.partial(squares[kind], int(side))
    if not name.endswith(".safetensors"):
        raise ValueError(f"features={name}: name pixels, pixels/2, windows/10, or a file FILE.safetensors of classifier.py")
    network, _ = load_classifier(pathlib.Path(name))

    def pooled(x):
        if x.ndim != 4 or x.shape[3] not in (1, 3):
            raise ValueError(
                f"features={name} are of images of 1 or 3 channels, and rows are of shape {x.shape[1:]}: name pixels"
            )
        # Grey images with three equal channels.
        return jax.vmap(network)(jnp.broadcast_to(x, (*x.shape[:3], 3))).pooled

    return pooled


def _coarse(side: int, x: Float[Array, "rows *shape"]) -> Float[Array, "rows f"]:
    _check_square(f"pixels/{side}", side, x)
    rows, height, width, channels = x.shape
    cut = x[:, : height // side * side, : width // side * side]
    return losses.flattened(jnp.mean(cut.reshape(rows, height // side, side, width // side, side, channels), axis=(2, 4)))


def _windows(side: int, x: Float[Array, "rows *shape"]) -> list[Float[Array, "rows f"]]:
    """Evenly spaced windows that overlap, one more along each axis than would cover it."""
    _check_square(f"windows/{side}", side, x)
    starts = [np.unique(np.linspace(0, n - side, -(-n // side) + 1).round().astype(int)) for n in x.shape[1:3]]
    return [losses.flattened(x[:, i : i + side, j : j + side]) for i, j in itertools.product(*starts)]


def _check_square(name: str, side: int, x: Float[Array, "rows *shape"]) -> None:
    if x.ndim != 4 or side > min(x.shape[1:3]):
        raise ValueError(f"features={name} of rows of shape {x.shape[1:]} have no square of {side} x {side}: name pixels")
