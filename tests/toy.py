"""Networks of one number, for what holds for any network."""

import equinox as eqx
import jax
import jax.numpy as jnp

from eqx_shortcut.guidance import Guided
from eqx_shortcut.objectives import Networks


class Linear(eqx.Module):
    """A network of one example, `weight x + t - d + cond / 10`; with a key it adds noise, as dropout would."""

    weight: jax.Array

    def __call__(self, x, t, d, cond, *, key=None):
        return self.weight * x + t - d + cond.astype(x.dtype) / 10 + noise(x, key)

    @property
    def velocity(self):
        return Linear(self.weight / 3)


class Bent(eqx.Module):
    """The same, bent in x and told its guidance."""

    weight: jax.Array

    def __call__(self, x, t, d, cond, *, key=None):
        guided = 0.0
        if isinstance(cond, Guided):
            cond, guided = cond.cond, cond.scale / 7 + cond.start / 3 - cond.stop
        return jnp.sin(self.weight * x) + t * x - d * self.weight + cond.astype(x.dtype) / 10 + noise(x, key) + guided

    @property
    def velocity(self):
        return Bent(self.weight / 3)


def noise(x, key):
    """Normal noise of this key, or none without one."""
    return 0.0 if key is None else jax.random.normal(key, x.shape)


def networks(kind: type = Linear, extra=None) -> Networks:
    """Three networks that differ; the null label is 9."""
    online, ema, teacher = (kind(jnp.float32(weight)) for weight in (0.5, -0.7, 0.3))
    return Networks(online, ema, teacher, extra, null=9)
