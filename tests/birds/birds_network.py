"""A small U-Net of one's own: `unet(x, t, d, label, *, key=None)` is the average velocity of one example."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp


class UNet(eqx.Module):
    """Down by two, up again, and a skip connection; times and label are added to every channel."""

    times: eqx.nn.Linear
    labels: eqx.nn.Embedding
    down: eqx.nn.Conv2d
    up: eqx.nn.ConvTranspose2d
    out: eqx.nn.Conv2d

    def __init__(self, width, shape, classes, *, key):
        keys = jax.random.split(key, 5)
        channels = shape[-1]
        self.times = eqx.nn.Linear(2, width, key=keys[0])
        self.labels = eqx.nn.Embedding(classes + 1, width, key=keys[1])
        self.down = eqx.nn.Conv2d(channels, width, 4, 2, padding=1, key=keys[2])
        self.up = eqx.nn.ConvTranspose2d(width, width, 4, 2, padding=1, key=keys[3])
        self.out = eqx.nn.Conv2d(width + channels, channels, 3, padding=1, key=keys[4])

    def __call__(self, x, t, d, label, *, key=None):
        image = jnp.moveaxis(x, -1, 0)
        seen = self.times(jnp.stack([t, d])) + self.labels(label)
        up = self.up(jax.nn.silu(self.down(image) + seen[:, None, None]))
        return jnp.moveaxis(self.out(jnp.concatenate([up, image])), 0, -1)


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    width: int = 64
    """Channels within."""

    def build(self, shape, classes, *, key):
        """The network for images of `shape` and labels below `classes`."""
        return UNet(self.width, shape, classes, key=key)
