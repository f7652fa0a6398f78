"""The tiny autoencoders of madebyollin/taesd, which imitate those of larger models.

Layers stand at the places that they have in the published files, by which `autoencoder_files` finds their tensors.
"""

import dataclasses
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .autoencoder import Configured, Posterior
from .convolution import Conv, GroupNorm, upsample


@dataclasses.dataclass(frozen=True)
class TAESDConfig:
    """Sizes of the tiny autoencoder; the defaults are those of taesd, and 32 pooled channels those of taef2."""

    latent_channels: int = 4
    """Channels of the latent."""
    width: int = 64
    """Channels between."""
    encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    """Blocks of each level of the encoder; every level but the first begins by halving the image."""
    decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    """Blocks of each level of the decoder; every level but the last ends by doubling the image."""
    pooled: bool = False
    """Begin each block of the smallest level with a branch that is normalised over the whole image, as taef2 does."""
    scaling_factor: float = 1.0
    """Factor that brings raw latents about to unit variance."""
    shift_factor: float = 0.0
    """Number that is taken off raw latents first."""

    def __post_init__(self):
        if len(self.encoder_blocks) != len(self.decoder_blocks) or not self.encoder_blocks:
            raise ValueError(
                f"encoder_blocks={self.encoder_blocks} and decoder_blocks={self.decoder_blocks} are not of as many levels: "
                "give both the same number, at least 1"
            )

    def build(self, *, key: PRNGKeyArray) -> "TAESD":
        """An untrained autoencoder; `autoencoder_files.load_autoencoder` reads trained ones."""
        return TAESD(self, key=key)


class Fixed(eqx.Module):
    """A function without parameters as a layer."""

    function: Callable[[Array], Array] = eqx.field(static=True)

    def __call__(self, x: Float[Array, "height width channels"]) -> Float[Array, "rows columns channels"]:
        return self.function(x)


class Chain(eqx.Module):
    """Layers one after another."""

    layers: tuple[eqx.Module, ...]

    def __call__(self, x: Float[Array, "height width inputs"]) -> Float[Array, "rows columns outputs"]:
        for layer in self.layers:
            x = layer(x)  # pyright: ignore[reportCallIssue]
        return x


class Block(eqx.Module):
    """`relu(x + conv(x))` with three convolutions and ReLU between them; with a pool, of `x + pool(x)` in place of x."""

    conv: Chain
    pool: Chain | None

    def __init__(self, width: int, *, pooled: bool, key: PRNGKeyArray):
        k_conv, k_wide, k_narrow = jax.random.split(key, 3)
        first, second, third = (Conv(width, width, key=k) for k in jax.random.split(k_conv, 3))
        self.conv = Chain((first, Fixed(jax.nn.relu), second, Fixed(jax.nn.relu), third))
        wide, narrow = Conv(width, 4 * width, 1, bias=False, key=k_wide), Conv(4 * width, width, 1, bias=False, key=k_narrow)
        norm = GroupNorm(4, 4 * width, epsilon=1e-5)
        self.pool = Chain((wide, norm, Fixed(jax.nn.relu), narrow)) if pooled else None

    def __call__(self, x: Float[Array, "height width channels"]) -> Float[Array, "height width channels"]:
        x = x if self.pool is None else x + self.pool(x)
        return jax.nn.relu(self.conv(x) + x)


class TAESD(Configured):
    """A tiny autoencoder in float32; an `Autoencoder` whose posterior is one latent, without a variance.

    The published networks see and answer images in [0, 1], to which those of [-1, 1] are mapped here. Their latents need no
    scale (`scale` 1, `shift` 0): those of taef2 have mean 0.03 and standard deviation 0.85 over 1,000 photos of ImageNet.
    Source: madebyollin/taesd, `taesd.py`.
    """

    encoder: Chain
    decoder: Chain
    config: TAESDConfig = eqx.field(static=True)

    def __init__(self, config: TAESDConfig, *, key: PRNGKeyArray):
        k_encoder, k_decoder = jax.random.split(key)
        self.encoder, self.decoder = _encoder(config, k_encoder), _decoder(config, k_decoder)
        self.config = config

    @property
    def factor(self) -> int:
        """Pixels of the image per pixel of the latent, along a side."""
        return 2 ** (len(self.config.encoder_blocks) - 1)

    def encode(self, image: Float[Array, "height width 3"]) -> Posterior:
        """The raw latent of an image in [-1, 1], about in [-3, 3]; raises ValueError if `factor` does not divide a side."""
        self.latent_shape(image.shape)
        return Posterior(self.encoder((image + 1) / 2))

    def decode(self, latent: Float[Array, "rows columns channels"]) -> Float[Array, "height width 3"]:
        """The image of a raw latent, in [-1, 1] up to overshoot; the network bends latents into (-3, 3)."""
        return self.decoder(latent) * 2 - 1


def _bend(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    return jnp.tanh(x / 3) * 3


def _encoder(config: TAESDConfig, key: PRNGKeyArray) -> Chain:
    k_in, k_out, k_levels = jax.random.split(key, 3)
    layers: list[eqx.Module] = [Conv(3, config.width, key=k_in)]
    smallest = len(config.encoder_blocks) - 1
    for level, blocks in enumerate(config.encoder_blocks):
        k_down, *keys = jax.random.split(jax.random.fold_in(k_levels, level), blocks + 1)
        if level:
            layers.append(Conv(config.width, config.width, stride=2, bias=False, key=k_down))
        layers += [Block(config.width, pooled=config.pooled and level == smallest, key=k) for k in keys]
    return Chain((*layers, Conv(config.width, config.latent_channels, key=k_out)))


def _decoder(config: TAESDConfig, key: PRNGKeyArray) -> Chain:
    k_in, k_out, k_levels = jax.random.split(key, 3)
    layers: list[eqx.Module] = [Fixed(_bend), Conv(config.latent_channels, config.width, key=k_in), Fixed(jax.nn.relu)]
    last = len(config.decoder_blocks) - 1
    for level, blocks in enumerate(config.decoder_blocks):
        k_up, *keys = jax.random.split(jax.random.fold_in(k_levels, level), blocks + 1)
        layers += [Block(config.width, pooled=config.pooled and level == 0, key=k) for k in keys]
        if level < last:
            layers += [Fixed(upsample), Conv(config.width, config.width, bias=False, key=k_up)]
    return Chain((*layers, Conv(config.width, 3, key=k_out)))
