"""Where the actions come from, and a network that sees position and velocity beside them."""

import dataclasses
import pathlib

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from eqx_shortcut.data import ArraySource


@dataclasses.dataclass(frozen=True)
class Demonstrations:
    path: pathlib.Path
    """An .npz of `actions` (rows, 16, 2), `position` (rows, 2) and `velocity` (rows, 2), all about 1 in size."""

    def build(self):
        """Rows to train on, and others held out."""
        with np.load(self.path) as file:
            seen = {"position": file["position"], "velocity": file["velocity"]}
            return ArraySource(file["actions"], seen, held_out=0.1).build()


class Policy(eqx.Module):
    mlp: eqx.nn.MLP

    def __call__(self, x, t, d, seen, *, key=None):
        inputs = jnp.concatenate([x.ravel(), seen["position"], seen["velocity"], jnp.stack([t, d])])
        return self.mlp(inputs).reshape(x.shape)


@dataclasses.dataclass(frozen=True)
class PolicyConfig:
    width: int = 256
    """Width of the hidden layers."""

    def build(self, shape, classes, *, key):
        """The network for actions of `shape`."""
        size = int(np.prod(shape))
        return Policy(eqx.nn.MLP(size + 6, size, self.width, 3, jax.nn.silu, key=key))
