"""Improved MeanFlow's transformer (Geng et al. 2025b): what it is told are tokens before the patches, and it has two ends."""

import dataclasses
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from .. import ranges
from ..guidance import Guided
from ..ranges import Count
from ..types import Number, Point
from .attention import attend, rotate
from .dit import from_patches, to_patches
from .guided import UNTOLD, Condition
from .layers import Dense, ScalarEmbedding, gated, normal, rms_norm, xavier, zeros
from .matmul import matmul

TOKENS: tuple[str, ...] = ("label", "scale", "earliest", "latest", "step")
"""What it is told, in the order of the tokens: the times of guidance, as its authors have them, are those of noise, 1 to 0."""


@dataclasses.dataclass(frozen=True)
class InContextConfig:
    """Size of the network; those of its authors are a depth of 12, 24, 32 and 48."""

    hidden: Count = 768
    """Width of a token (1 or more)."""
    depth: Count = 12
    """Number of blocks on the way to an answer (1 or more)."""
    head_depth: Count = 8
    """The last of these, which each of the two answers has of its own (1 or more)."""
    heads: Count = 12
    """Attention heads; must divide `hidden` (1 or more)."""
    patch: Count = 2
    """Side of a patch, pixels; must divide the image (1 or more)."""
    wide: Count = 2048
    """Width between the layers of a SwiGLU (1 or more)."""
    tokens: tuple[Count, ...] = (8, 4, 2, 2, 4)
    """Tokens for label, scale, the two times of guidance, and step (1 or more)."""

    def __post_init__(self):
        ranges.check(self)
        if self.hidden % self.heads or self.hidden // self.heads % 2:
            raise ValueError(f"hidden={self.hidden} makes no even parts for heads={self.heads}: choose other heads")
        if self.head_depth >= self.depth or len(self.tokens) != len(TOKENS):
            raise ValueError(
                f"head_depth={self.head_depth} of depth={self.depth}, tokens={self.tokens}: fewer, and five numbers"
            )

    def build(self, shape: tuple[int, ...], classes: int, *, key: PRNGKeyArray) -> "InContext":
        """A network for images of `shape` (height, width, channels) and `classes` labels, initialised from `key`.

        Raises ValueError for examples of another rank, and sides that the patch does not divide.
        """
        if len(shape) != 3 or shape[0] % self.patch or shape[1] % self.patch:
            raise ValueError(f"examples of shape {shape} are no images divisible by patch={self.patch}: choose another")
        return InContext(self, (shape[0], shape[1], shape[2]), classes, key=key)


class ContextBlock(eqx.Module):
    """`x + gate * attention(norm x)`, then `x + gate * swiglu(norm x)`, with learned scales of norms, and gates 0 at first."""

    qkv: Float[Array, "size 3 heads dim"]
    out: Float[Array, "size size"]
    query: Float[Array, " dim"]
    key: Float[Array, " dim"]
    up: Float[Array, "size 2 wide"]
    down: Float[Array, "wide size"]
    norms: Float[Array, "2 size"]
    gates: Float[Array, "2 size"]

    def __init__(self, config: InContextConfig, *, key: PRNGKeyArray):
        size, dim, wide = config.hidden, config.hidden // config.heads, config.wide
        keys = jax.random.split(key, 4)
        shapes = (size, 3, config.heads, dim), (size, size), (size, 2, wide), (wide, size)
        kernels = [0.32 / math.sqrt(s[0]) * jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)]
        self.qkv, self.out, self.up, self.down = kernels
        self.query, self.key = jnp.ones(dim), jnp.ones(dim)
        self.norms, self.gates = jnp.ones((2, size)), jnp.zeros((2, size))

    def __call__(
        self, x: Float[Array, "tokens size"], rotation: Float[np.ndarray, "2 tokens half"]
    ) -> Float[Array, "tokens size"]:
        q, k, v = jnp.unstack(matmul(rms_norm(x) * self.norms[0][None], self.qkv).transpose(1, 2, 0, 3))
        q, k = (rotate(rms_norm(a) * scale[None, None], rotation) for a, scale in ((q, self.query), (k, self.key)))
        y = attend(q / math.sqrt(q.shape[-1]), k, v).transpose(1, 0, 2).reshape(x.shape)
        x = x + self.gates[0][None] * matmul(y, self.out)
        y = gated(matmul(rms_norm(x) * self.norms[1][None], self.up))
        return x + self.gates[1][None] * matmul(y, self.down)


class ContextHead(eqx.Module):
    """The last blocks of one answer, and its norm and projection, which is 0 at first."""

    blocks: ContextBlock
    norm: Float[Array, " size"]
    out: Dense

    def __init__(self, config: InContextConfig, pixels: int, *, key: PRNGKeyArray):
        self.blocks = _stacked(config, config.head_depth, key)
        self.norm, self.out = jnp.ones(config.hidden), Dense(config.hidden, pixels, key=key, init=zeros)


class InContext(eqx.Module):
    """Average velocity of one example, which sees the step size and no time; in float32, as its authors have it.

    Label `classes` stands for no label, as None does. A label alone stands for no guidance (see guidance.Guided).
    """

    patches: Dense
    label: Float[Array, "labels size"]
    numbers: dict[str, ScalarEmbedding]
    tokens: dict[str, Float[Array, "count size"]]
    blocks: ContextBlock
    average: ContextHead
    other: ContextHead
    config: InContextConfig = eqx.field(static=True)
    shape: tuple[int, int, int] = eqx.field(static=True)
    classes: int = eqx.field(static=True)

    def __init__(self, config: InContextConfig, shape: tuple[int, int, int], classes: int, *, key: PRNGKeyArray):
        k_patches, k_label, k_numbers, k_tokens, k_blocks, k_average, k_other = jax.random.split(key, 7)
        size, pixels = config.hidden, config.patch**2 * shape[2]
        self.patches = Dense(pixels, size, key=k_patches, init=xavier(size))
        self.label = normal(k_label, (classes + 1, size))
        keys = dict(zip(TOKENS[1:], jax.random.split(k_numbers, 4), strict=True))
        self.numbers = {name: ScalarEmbedding(size, scale=1.0, key=k) for name, k in keys.items()}
        counts = zip(TOKENS, config.tokens, jax.random.split(k_tokens, len(TOKENS)), strict=True)
        self.tokens = {name: jax.random.normal(k, (count, size)) / math.sqrt(size) for name, count, k in counts}
        self.blocks = _stacked(config, config.depth - config.head_depth, k_blocks)
        self.average, self.other = (ContextHead(config, pixels, key=k) for k in (k_average, k_other))
        self.config, self.shape, self.classes = config, shape, classes

    @property
    def velocity(self) -> "InContext":
        """The same network with its second last part for its first: the velocity."""
        return eqx.tree_at(lambda n: (n.average, n.other), self, (self.other, self.average))

    def __call__(self, x: Point, t: Number, d: Number, label: Condition, *, key: PRNGKeyArray | None = None) -> Point:
        told = [self.tokens[name] + vector[None] for name, vector in self._told(d, label).items()]
        patches = self.patches(to_patches(x.reshape(self.shape), self.config.patch), jnp.float32)
        tokens = jnp.concatenate([*told, patches])
        rotation = _rotation(self.config.hidden // self.config.heads, len(tokens))
        tokens = _run(self.average.blocks, _run(self.blocks, tokens, rotation), rotation)[sum(self.config.tokens) :]
        out = self.average.out(rms_norm(tokens) * self.average.norm[None], jnp.float32)
        return from_patches(out, self.shape, self.config.patch).reshape(x.shape)

    def _told(self, d, cond):
        scale, start, stop = (
            getattr(cond, name) if isinstance(cond, Guided) else jnp.asarray(UNTOLD[name], jnp.float32) for name in UNTOLD
        )
        label = cond.cond if isinstance(cond, Guided) else cond
        numbers = {"scale": 1 - 1 / scale, "earliest": 1 - stop, "latest": 1 - start, "step": d}
        vectors = {name: self.numbers[name](number, jnp.float32) for name, number in numbers.items()}
        return {"label": self.label[-1 if label is None else label], **vectors}


def _stacked(config, depth, key):
    return eqx.filter_vmap(lambda k: ContextBlock(config, key=k))(jax.random.split(key, depth))


def _run(blocks, x, rotation):
    return jax.lax.scan(lambda x, block: (block(x, rotation), None), x, blocks)[0]


def _rotation(dim: int, count: int) -> Float[np.ndarray, "2 tokens half"]:
    angles = np.outer(np.arange(count), 1e4 ** (-np.arange(dim // 2) / (dim // 2)))
    return np.stack([np.cos(angles), np.sin(angles)]).astype(np.float32)
