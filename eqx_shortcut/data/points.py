"""Distributions in the plane that methods are tried on: pure functions of a key, all of one size, and a source of them.

Each function draws `n` points independently, in random order, of mean 0 and mean squared length 2: one for each coordinate,
as for the noise.
"""

import dataclasses
from typing import TYPE_CHECKING, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from .. import ranges, storage
from ..ranges import Several
from .memory import ArraySource

if TYPE_CHECKING:
    from ..trained import Trained

Plane = Float[Array, "n 2"]


def moons(key: PRNGKeyArray, n: int, *, width: float = 0.07) -> Plane:
    """Two interleaved half circles, blurred by `N(0, width^2)`: those of `sklearn.datasets.make_moons`, centred and scaled."""
    k_angle, k_sign, k_blur = jax.random.split(key, 3)
    angle = jax.random.uniform(k_angle, (n,), maxval=jnp.pi)
    # Centred, each moon is the other one turned by half a turn.
    moon = jnp.stack([jnp.cos(angle) - 1 / 2, jnp.sin(angle) - 1 / 4], axis=1)
    scale = jnp.sqrt(2 / (21 / 16 - 1 / jnp.pi))
    return _blurred(k_blur, scale * _signs(k_sign, n) * moon, width)


def checkerboard(key: PRNGKeyArray, n: int) -> Plane:
    """Uniform on the eight dark squares of a board of four by four (Grathwohl et al. 2019, FFJORD)."""
    k_x, k_y, k_row = jax.random.split(key, 3)
    x = jax.random.uniform(k_x, (n,), maxval=4)
    row = 2 * jax.random.randint(k_row, (n,), 0, 2) + jnp.floor(x).astype(jnp.int32) % 2
    y = row.astype(x.dtype) + jax.random.uniform(k_y, (n,))
    return (jnp.stack([x, y], axis=1) - 2) * jnp.sqrt(3 / 4)


def spirals(key: PRNGKeyArray, n: int, *, width: float = 0.07) -> Plane:
    """Two arms that wind one and a half times around the middle, as dense at all radii, blurred (Grathwohl et al. 2019)."""
    k_radius, k_sign, k_blur = jax.random.split(key, 3)
    share = jnp.sqrt(jax.random.uniform(k_radius, (n,)))
    angle = 3 * jnp.pi * share
    arm = 2 * share[:, None] * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)
    return _blurred(k_blur, _signs(k_sign, n) * arm, width)


def eight_gaussians(key: PRNGKeyArray, n: int, *, width: float = 0.14) -> Plane:
    """Eight normal distributions of deviation `width` around points of a circle (Grathwohl et al. 2019)."""
    k_which, k_blur = jax.random.split(key)
    angle = jnp.pi / 4 * jax.random.randint(k_which, (n,), 0, 8).astype(jnp.float32)
    return _blurred(k_blur, jnp.sqrt(2.0) * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1), width)


@dataclasses.dataclass(frozen=True)
class PlanePoints(ranges.Checked):
    """Points of a distribution in the plane, the same in every run."""

    distribution: Literal["moons", "checkerboard", "spirals", "eight-gaussians"] = "eight-gaussians"
    """The distribution."""
    count: Several = 2**19
    """Points to train on; 10,000 more are held out."""

    def build(self) -> tuple[ArraySource, ArraySource]:
        """Points to train on, and those held out."""
        draw = {"moons": moons, "checkerboard": checkerboard, "spirals": spirals}.get(self.distribution, eight_gaussians)
        keys = jax.random.split(jax.random.key(1000))
        counts = self.count, 10_000
        train, held_out = (ArraySource(np.asarray(draw(key, n))) for key, n in zip(keys, counts, strict=True))
        return train, held_out

    def draw(self, path: storage.Path, model: "Trained") -> None:
        """Writes the picture of a model of these points (see plane.draw)."""
        from .. import plane

        plane.draw(path, model, self.build()[1].x)


def _signs(key, n):
    return jax.random.rademacher(key, (n, 1), dtype=jnp.float32)


def _blurred(key, x, width):
    # Drawn in so far that the blur keeps the size.
    return jnp.sqrt(1 - width**2) * x + width * jax.random.normal(key, x.shape)
