"""The representation autoencoder on DINOv2 (RAE, Zheng et al. 2025), as diffusers' AutoencoderRAE defines it."""

import dataclasses
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ..models.attention import attend
from ..models.layers import Dense, axis_angles, normal
from .autoencoder import Configured, Posterior
from .convolution import Conv

HEAD = 64
"""Channels of a head of the encoder."""
REGISTERS = 4
"""Tokens of the encoder that stand for no patch, beside the one of the class."""
TRAINED_SIDE = 518
"""Pixels a side of the images whose patches the encoder has positions for; those of others lie between."""
ENCODER_EPSILON, DECODER_EPSILON = 1e-6, 1e-12
"""Epsilon of the layer norms."""
SPREAD = 1e-5
"""Added to the standard deviation that latents are divided by."""

Tokens = Float[Array, "tokens size"]


@dataclasses.dataclass(frozen=True)
class RAEConfig:
    """Sizes of the autoencoder; raises ValueError where patches, heads or positions do not divide."""

    latent_channels: int = 768
    """Channels of the encoder's tokens, which are the latent."""
    encoder_blocks: int = 12
    """Blocks of the encoder."""
    encoder_patch: int = 14
    """Pixels of a patch that the encoder sees, along a side."""
    encoder_side: int = 224
    """Pixels a side of what the encoder sees, to which images are resized."""
    decoder_width: int = 512
    """Channels of the decoder's tokens."""
    decoder_blocks: int = 8
    """Blocks of the decoder."""
    decoder_heads: int = 16
    """Heads of the decoder."""
    decoder_hidden: int = 2048
    """Width between the two layers of the decoder's MLPs."""
    decoder_patch: int = 16
    """Pixels of a patch that the decoder answers, along a side."""
    scaling_factor: float = 1.0
    """Factor that brings raw latents about to unit variance."""
    shift_factor: float = 0.0
    """Number that is taken off raw latents first."""

    def __post_init__(self):
        sizes = dataclasses.astuple(self)[:-2]
        pairs = [(self.encoder_side, self.encoder_patch), (self.latent_channels, HEAD), (self.decoder_width, 4)]
        if min(sizes) < 1 or any(many % few for many, few in [*pairs, (self.decoder_width, self.decoder_heads)]):
            raise ValueError(
                f"{self}: use sizes of 1 or more, of which the patch divides the encoder's side, {HEAD} its channels, and its "
                "heads and 4 the decoder's width"
            )

    @property
    def grid(self) -> int:
        """Patches of an image along a side."""
        return self.encoder_side // self.encoder_patch

    def build(self, *, key: PRNGKeyArray) -> "RAE":
        """An untrained autoencoder; `autoencoder_files.load_autoencoder` reads trained ones."""
        return RAE(self, key=key)


class Block(eqx.Module):
    """`x + scale1 attention(norm1(x))`, then `x + scale2 fc2(gelu(fc1(norm2(x))))`; a scale that there is not is 1."""

    norm1: eqx.nn.LayerNorm
    to_q: Dense
    to_k: Dense
    to_v: Dense
    to_out: Dense
    scale1: Float[Array, " size"] | None
    norm2: eqx.nn.LayerNorm
    fc1: Dense
    fc2: Dense
    scale2: Float[Array, " size"] | None
    heads: int = eqx.field(static=True)

    def __init__(self, size: int, hidden: int, heads: int, *, epsilon: float, scaled: bool, key: PRNGKeyArray):
        *keys, k_first, k_second = jax.random.split(key, 6)
        self.norm1, self.norm2 = eqx.nn.LayerNorm(size, eps=epsilon), eqx.nn.LayerNorm(size, eps=epsilon)
        self.to_q, self.to_k, self.to_v, self.to_out = (Dense(size, size, key=k) for k in keys)
        self.fc1, self.fc2 = Dense(size, hidden, key=k_first), Dense(hidden, size, key=k_second)
        self.scale1, self.scale2 = (jnp.ones(size), jnp.ones(size)) if scaled else (None, None)
        self.heads = heads

    def __call__(self, x: Tokens) -> Tokens:
        x = x + _scaled(self._attention(jax.vmap(self.norm1)(x)), self.scale1)
        y = jax.nn.gelu(self.fc1(jax.vmap(self.norm2)(x), x.dtype), approximate=False)
        return x + _scaled(self.fc2(y, x.dtype), self.scale2)

    def _attention(self, x: Tokens) -> Tokens:
        q, k, v = (
            dense(x, x.dtype).reshape(len(x), self.heads, -1).swapaxes(0, 1) for dense in (self.to_q, self.to_k, self.to_v)
        )
        y = attend(q / math.sqrt(q.shape[-1]), k, v)
        return self.to_out(y.swapaxes(0, 1).reshape(x.shape), x.dtype)


class Encoder(eqx.Module):
    """A standardised image to one token a patch, of mean 0 and variance 1: DINOv2 with registers (Darcet et al. 2024)."""

    projection: Conv
    cls_token: Float[Array, "1 size"]
    register_tokens: Float[Array, "registers size"]
    position_embeddings: Float[Array, "positions size"]
    blocks: tuple[Block, ...]

    def __init__(self, config: RAEConfig, *, key: PRNGKeyArray):
        k_projection, k_tokens, *keys = jax.random.split(key, 2 + config.encoder_blocks)
        size, patch, heads = config.latent_channels, config.encoder_patch, config.latent_channels // HEAD
        self.projection = Conv(3, size, patch, stride=patch, padding=(0, 0), key=k_projection)
        self.cls_token, self.register_tokens = jnp.zeros((1, size)), jnp.zeros((REGISTERS, size))
        self.position_embeddings = normal(k_tokens, (1 + (TRAINED_SIDE // patch) ** 2, size))
        self.blocks = tuple(Block(size, 4 * size, heads, epsilon=ENCODER_EPSILON, scaled=True, key=k) for k in keys)

    def __call__(self, image: Float[Array, "height width 3"]) -> Tokens:
        patches = self.projection(image)
        first, table = self.position_embeddings[:1], self.position_embeddings[1:]
        side = math.isqrt(len(table))
        # torch's antialiased bicubic is JAX's, unlike its plain one (see `bicubic`).
        places = jax.image.resize(table.reshape(side, side, -1), patches.shape, "cubic")
        tokens = (patches + places).reshape(-1, patches.shape[-1])
        x = jnp.concatenate([self.cls_token + first, self.register_tokens, tokens])
        for block in self.blocks:
            x = block(x)
        standardised = eqx.nn.LayerNorm(x.shape[1], eps=ENCODER_EPSILON, use_weight=False, use_bias=False)
        return jax.vmap(standardised)(x[1 + REGISTERS :])


class Decoder(eqx.Module):
    """Tokens to the pixels of their patches, of a standardised image."""

    embed: Dense
    cls_token: Float[Array, "1 size"]
    blocks: tuple[Block, ...]
    norm: eqx.nn.LayerNorm
    pred: Dense

    def __init__(self, config: RAEConfig, *, key: PRNGKeyArray):
        k_embed, k_pred, *keys = jax.random.split(key, 2 + config.decoder_blocks)
        size, hidden, heads = config.decoder_width, config.decoder_hidden, config.decoder_heads
        self.embed = Dense(config.latent_channels, size, key=k_embed)
        self.cls_token = jnp.zeros((1, size))
        self.blocks = tuple(Block(size, hidden, heads, epsilon=DECODER_EPSILON, scaled=False, key=k) for k in keys)
        self.norm = eqx.nn.LayerNorm(size, eps=DECODER_EPSILON)
        self.pred = Dense(size, 3 * config.decoder_patch**2, key=k_pred)

    def __call__(self, tokens: Tokens) -> Float[Array, "patches pixels"]:
        x = self.embed(tokens, tokens.dtype)
        x = jnp.concatenate([self.cls_token, x + positions(x.shape[1], math.isqrt(len(x)))])
        for block in self.blocks:
            x = block(x)
        return self.pred(jax.vmap(self.norm)(x[1:]), x.dtype)


class RAE(Configured):
    """A representation autoencoder in float32; an `Autoencoder` whose posterior is one latent, without a variance.

    Raw latents are the encoder's tokens less `latents_mean`, over `latents_std + 1e-5`, element by element, and images have one
    size. Source: Zheng et al. (2025); diffusers' AutoencoderRAE.
    """

    encoder: Encoder
    decoder: Decoder
    encoder_mean: Float[Array, "3"]
    encoder_std: Float[Array, "3"]
    latents_mean: Float[Array, "rows columns channels"]
    latents_std: Float[Array, "rows columns channels"]
    config: RAEConfig = eqx.field(static=True)

    def __init__(self, config: RAEConfig, *, key: PRNGKeyArray):
        k_encoder, k_decoder = jax.random.split(key)
        self.encoder, self.decoder = Encoder(config, key=k_encoder), Decoder(config, key=k_decoder)
        self.encoder_mean, self.encoder_std = jnp.full(3, 0.5), jnp.full(3, 0.5)
        shape = (config.grid, config.grid, config.latent_channels)
        self.latents_mean, self.latents_std = jnp.zeros(shape), jnp.ones(shape)
        self.config = config

    @property
    def factor(self) -> int:
        """Pixels of the image per pixel of the latent, along a side."""
        return self.config.decoder_patch

    def latent_shape(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """Shape of the latent of an image of `shape`; raises ValueError for images of another size than the decoder's."""
        side = self.config.grid * self.factor
        if shape[:2] != (side, side):
            raise ValueError(f"an image of {shape[0]} x {shape[1]} is not one of {side} x {side}: resize it to that")
        return self.latents_mean.shape  # pyright: ignore[reportReturnType]

    def encode(self, image: Float[Array, "height width 3"]) -> Posterior:
        """The raw latent of an image in [-1, 1]; raises ValueError for images of another size than the decoder's."""
        shape, resize = self.latent_shape(image.shape), bicubic(image.shape[0], self.config.encoder_side)
        resized = jnp.einsum("yh,xw,hwc->yxc", resize, resize, (image + 1) / 2)
        tokens = self.encoder((resized - self.encoder_mean[None, None]) / self.encoder_std[None, None])
        return Posterior((tokens.reshape(shape) - self.latents_mean) / (self.latents_std + SPREAD))

    def decode(self, latent: Float[Array, "rows columns channels"]) -> Float[Array, "height width 3"]:
        """The image of a raw latent, in [-1, 1] up to overshoot."""
        side, patch = latent.shape[0], self.factor
        tokens = latent * (self.latents_std + SPREAD) + self.latents_mean
        pixels = self.decoder(tokens.reshape(-1, latent.shape[-1])).reshape(side, side, patch, patch, 3)
        image = pixels.swapaxes(1, 2).reshape(side * patch, side * patch, 3)
        return (image * self.encoder_std[None, None] + self.encoder_mean[None, None]) * 2 - 1


def positions(size: int, side: int) -> Float[np.ndarray, "tokens size"]:
    """Fixed 2-D sine-cosine positions of `side x side` patches, at places that run from 0 to 16 whatever the side."""
    angles = [16 / side * angle for angle in axis_angles(size // 4, side, side)]
    return np.concatenate([wave(angle) for angle in angles for wave in (np.sin, np.cos)], axis=1).astype(np.float32)


def bicubic(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """The matrix that resizes a side by cubic convolution of parameter -0.75, edges repeated, not antialiased (torch's)."""
    if old == new:
        return np.eye(new, dtype=np.float32)
    a, matrix = -0.75, np.zeros((new, old))
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    for tap in range(-1, 3):
        places = np.floor(centres) + tap
        x = np.abs(centres - places)
        near, far = ((a + 2) * x - (a + 3)) * x**2 + 1, a * (((x - 5) * x + 8) * x - 4)
        np.add.at(matrix, (np.arange(new), np.clip(places, 0, old - 1).astype(int)), np.where(x <= 1, near, far))
    return matrix.astype(np.float32)


def _scaled(y: Tokens, scale: Float[Array, " size"] | None) -> Tokens:
    return y if scale is None else y * scale[None]
