"""The diffusion transformer (Peebles and Xie 2023) conditioned on time and step size, as in Frans et al. (2024)."""

import copy
import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from .. import ranges
from ..ranges import BelowOne, Count, Natural, Positive
from ..types import Number, Point
from . import low_rank
from .attention import Attention, QKNormed, attend, rotary_table, rotate
from .fused import fused_attend
from .guided import TOLD, Condition, GuidedLabel, ToldGuidance, check_observed, embed, label_embedding
from .layers import Dense, ScalarEmbedding, dropout, gated, layer_norm, modulate, position_table, rms_norm, xavier, zeros
from .noise import velocity_by_noise
from .prediction import Prediction, check_prediction, velocity_toward
from .sharded import is_split, keeps

StepEmbedding = Literal["log2", "linear", "none"]
TimeEmbedding = Literal["linear", "reversed", "none"]
Logits = Literal["dim", "root"]
Precision = Literal["auto", "float32", "bfloat16"]
Rematerialise = Literal["none", "elementwise", "mlp", "block"]
Norm = Literal["layer", "rms"]
Positions = Literal["table", "rotary", "both"]
Activation = Literal["gelu", "swiglu"]


@dataclasses.dataclass(frozen=True)
class DiTConfig:
    """Size and options of the diffusion transformer; `preset("B/2")` gives the published sizes."""

    hidden: Count = 768
    """Width of a token (1 or more)."""
    depth: Count = 12
    """Number of blocks (1 or more)."""
    heads: Count = 12
    """Attention heads; must divide `hidden` (1 or more)."""
    patch: Count = 2
    """Side of a patch, pixels; must divide the image (1 or more)."""
    mlp_ratio: Positive = 4.0
    """Width of the MLP over `hidden`; a SwiGLU is two thirds as wide, of as many parameters (more than 0)."""
    mlp: Activation = "gelu"
    """Activation of the MLPs: GELU in its tanh form (reference), or SwiGLU (Shazeer 2020)."""
    norm: Norm = "layer"
    """Norm before attention, MLP and last layer, without parameters: layer norm (reference) or RMS norm."""
    qk_norm: bool = False
    """RMS norm of queries and keys with a learned scale; logits are then divided by sqrt(head_dim), as usual."""
    logits: Logits = "dim"
    """Divisor of queries times keys: head_dim (reference), or its square root (DiT, SiT)."""
    positions: Positions = "table"
    """Position of a patch: a sine-cosine table added to tokens (reference), rotary in attention, or both (LightningDiT)."""
    step: StepEmbedding = "log2"
    """What the network sees of the step size d: log2(1/d) (reference), d itself (also 0), or nothing."""
    time: TimeEmbedding = "linear"
    """What the network sees of the time t: t (reference), 1 - t (MeanFlow), or nothing (improved MeanFlow)."""
    split: Natural = 0
    """Decoupled MeanFlow (Lee et al. 2025): this many blocks see t, the rest t + d, none d; 0: all see t and d (0 or more)."""
    guided: ToldGuidance = "none"
    """What the network sees of the guidance in its condition: nothing, the scale, or also the times at which it holds."""
    observed: Natural = 0
    """Numbers in an observation, such as a robot's, which is then the condition; 0: conditions are labels (0 or more)."""
    predict: Prediction | Literal["noise"] = "velocity"
    """What the last layer predicts: velocity, data (velocity `(data - x) / max(1 - t, 0.05)`), or DiT's diffusion noise."""
    low_rank: Natural = 0
    """Rank of LoRA corrections (Hu et al. 2022), trained in place of the layers of the blocks; 0: none (0 or more)."""
    velocity_head: bool = False
    """A second last layer that predicts the velocity, for objectives that train it beside the average velocity."""
    embed_scale: Positive = 1.0
    """Factor on t and d before their sinusoids: 1 in the reference; small data learn faster with 100 (more than 0)."""
    dropout: BelowOne = 0.0
    """Dropout inside the MLPs during training (0 to below 1)."""
    precision: Precision = "auto"
    """Compute dtype; parameters are always float32. auto: bfloat16 on GPU and TPU, float32 on CPU."""
    remat: Rematerialise = "elementwise"
    """What the backward pass recomputes: nothing, all but matrix products, MLPs, or blocks; always attention weights."""
    attention: Attention = "xla"
    """XLA's attention, or cuDNN's fused kernel (NVIDIA GPUs, bfloat16), whose tangents are XLA's."""
    unroll: Count = 1
    """Blocks per iteration of the scan over depth: more compile longer and may run faster (1 or more)."""

    def __post_init__(self):
        ranges.check(self)
        if self.hidden % self.heads:
            raise ValueError(f"hidden={self.hidden} is not divisible by heads={self.heads}: choose heads that divide it")
        if self.hidden % 4:
            raise ValueError(f"hidden={self.hidden} is not a multiple of 4, which 2-D positions need: round it up")
        if self.qk_norm and self.logits == "root":
            raise ValueError("logits=root with qk_norm, which divides by that root already: leave logits at dim")
        if self.positions != "table" and self.hidden // self.heads % 4:
            raise ValueError(
                f"heads={self.heads} of hidden={self.hidden} have {self.hidden // self.heads} dimensions, not a multiple of 4, "
                f"which positions={self.positions} need: choose other heads"
            )
        if self.split >= self.depth:
            raise ValueError(
                f"split={self.split} of depth={self.depth} leaves no block that sees the end of its step: use fewer"
            )
        if self.split and (self.step != "none" or self.time == "none" or self.predict == "noise"):
            raise ValueError(
                f"split={self.split} shows the step by the time where it ends, with step={self.step}, time={self.time} and "
                f"predict={self.predict}: use step=none, time=linear or reversed, and no noise"
            )
        if self.mlp_width < 1:
            raise ValueError(
                f"mlp_ratio={self.mlp_ratio} of hidden={self.hidden} leaves the MLP no width: use {2 / self.hidden:g}"
            )

    def build(self, shape: tuple[int, ...], classes: int, *, key: PRNGKeyArray) -> "DiT":
        """A network for examples of `shape` and `classes` labels, initialised from `key`.

        A shape is (height, width, channels), or (length, channels) with patches of 1. Raises ValueError for examples of another
        rank, and for cuDNN's attention where there is no GPU or the network computes in float32.
        """
        if len(shape) == 2:
            shape = (shape[0], 1, shape[1])
        if len(shape) != 3:
            raise ValueError(f"a transformer of images for examples of shape {shape}: use a network of your own, or the MLP")
        if self.attention == "cudnn" and (jax.default_backend() != "gpu" or self.dtype() != jnp.bfloat16):
            raise ValueError(
                f"attention=cudnn on {jax.default_backend()} in {jnp.dtype(self.dtype()).name}: it needs an NVIDIA GPU and "
                "bfloat16; choose attention=xla or precision=bfloat16"
            )
        return DiT(self, shape, classes, key=key)

    def check(self, objective: Any) -> None:
        """Raises ValueError for an objective that asks for an input or a head that the network has not."""
        name = type(objective).__name__
        if objective.continuous and self.step == "log2":
            raise ValueError(
                f"{name} asks the network at continuous step sizes, 0 included, where the embedding --network.step log2 is "
                "infinite: use --network.step linear"
            )
        if self.split and objective.only_step is not None:
            raise ValueError(f"{name} knows one step size, and --network.split is for several: leave it at 0")
        check_observed(objective, self.observed, self.guided)
        check_prediction(objective, self.predict)
        if objective.second_head and not self.velocity_head:
            raise ValueError(f"{name} trains a second head, which the network does not have: use --network.velocity-head")

    def faster(self, device: Any) -> str:
        """Options with which one such device trains faster, as far as they are others than here; "" where none were measured.

        On an H100 at B/2 without tangents: 1.57 times as fast, with 1.3 times the memory (docs/performance.md).
        """
        if "NVIDIA" not in device.device_kind or self.dtype() != jnp.bfloat16:
            return ""
        best = {"attention": "cudnn", "remat": "none", "unroll": self.depth}
        return " ".join(f"--network.{name} {value}" for name, value in best.items() if getattr(self, name) != value)

    @property
    def divisor(self) -> float:
        """The divisor of the product of queries and keys."""
        dim = self.hidden // self.heads
        return dim if self.logits == "dim" else math.sqrt(dim)

    @property
    def mlp_width(self) -> int:
        """Numbers between the MLP's layers; of a SwiGLU, whose kernels are three, to a multiple of 8."""
        wide = int(self.hidden * self.mlp_ratio)
        return wide if self.mlp == "gelu" else max(8, 8 * round(wide / 12))

    def flops(self, shape: tuple[int, ...]) -> int:
        """Operations in the matrix products of one forward pass of one example; a multiplication and an addition are two."""
        *sides, channels = shape
        tokens, pixels = math.prod(sides) // self.patch**2, self.patch**2 * channels
        mlp = self.hidden * self.mlp_width * (2 if self.mlp == "gelu" else 3)
        block = 4 * self.hidden**2 + 2 * tokens * self.hidden + mlp
        modulations = (6 * self.depth + 2) * self.hidden**2
        embeddings = (2 + (self.split > 0) + len(TOLD[self.guided])) * (ScalarEmbedding.frequencies + self.hidden) * self.hidden
        return 2 * (tokens * (self.depth * block + 2 * pixels * self.hidden) + modulations + embeddings)

    def dtype(self) -> DTypeLike:
        """The compute dtype, with `auto` resolved for the devices at hand."""
        full = jax.default_backend() == "cpu" if self.precision == "auto" else self.precision == "float32"
        return jnp.float32 if full else jnp.bfloat16


SIZES = {"tiny": (128, 4, 4), "S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16)}
PRESETS = ("tiny", "S/4", "S/2", "B/4", "B/2", "L/2", "XL/2")


def preset(name: str) -> DiTConfig:
    """The published size `name`, as size/patch (Peebles and Xie 2023, table 1); raises ValueError for an unknown one."""
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}: choose one of {', '.join(PRESETS)}")
    size, _, patch = name.partition("/")
    hidden, depth, heads = SIZES[size]
    return DiTConfig(hidden=hidden, depth=depth, heads=heads, patch=int(patch or 2))


NORMS: dict[Norm, Callable[[Array], Array]] = {"layer": layer_norm, "rms": rms_norm}

Rotation = Float[np.ndarray, "2 tokens half"] | None


class Block(eqx.Module):
    """`x + gate * attention(modulated norm)`, then `x + gate * mlp(modulated norm)`, all modulated by the condition."""

    modulation: Dense
    qkv: Dense | QKNormed
    out: Dense
    up: Dense
    down: Dense

    def __init__(self, config: DiTConfig, *, key: PRNGKeyArray):
        k_modulation, k_qkv, k_out, k_up, k_down = jax.random.split(key, 5)
        size, heads, wide = config.hidden, config.heads, config.mlp_width
        # The reference initialises the modulation like any other layer: "adaLN-Zero" is zero in the final layer only.
        self.modulation = Dense(size, (6, size), key=k_modulation)
        qkv = Dense(size, (3, heads, size // heads), key=k_qkv, init=xavier(size), split=2)
        self.qkv = QKNormed(qkv, size // heads) if config.qk_norm else qkv
        self.out = Dense(size, size, key=k_out, split=0)
        if config.mlp == "gelu":
            self.up = Dense(size, wide, key=k_up, split=1)
        else:
            self.up = Dense(size, (2, wide), key=k_up, init=xavier(wide), split=2)
        self.down = Dense(wide, size, key=k_down, split=0)

    def __call__(
        self,
        x: Float[Array, "tokens size"],
        c: Float[Array, " size"],
        config: DiTConfig,
        rotation: Rotation,
        key: PRNGKeyArray | None,
    ) -> Float[Array, "tokens size"]:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(c, x.dtype)
        norm, mlp = NORMS[config.norm], eqx.filter_checkpoint(self.mlp) if config.remat == "mlp" else self.mlp
        x = x + gate_a[None] * self.attention(modulate(norm(x), shift_a, scale_a), rotation, config)
        return x + gate_m[None] * mlp(modulate(norm(x), shift_m, scale_m), config, key)

    def attention(self, x: Float[Array, "tokens size"], rotation: Rotation, config: DiTConfig) -> Float[Array, "tokens size"]:
        """Softmax attention with logits `q . k / divisor`, the reference's scale being `head_dim` (see also QKNormed)."""
        if config.attention == "cudnn":
            q, k, v = self.qkv.apart(x, x.dtype)
            if rotation is not None:
                q, k = (rotate(a.transpose(1, 0, 2), rotation).transpose(1, 0, 2) for a in (q, k))
            y = checkpoint_name(fused_attend(q / config.divisor, k, v), "attention")
            return self.out(y.reshape(x.shape), x.dtype)
        q, k, v = jnp.unstack(self.qkv(x, x.dtype).transpose(1, 2, 0, 3))
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        # Computed again in the backward pass, which costs less than writing the attention weights and reading them.
        y = checkpoint_name(jax.checkpoint(attend)(q / config.divisor, k, v), "attention")
        return self.out(y.transpose(1, 0, 2).reshape(x.shape), x.dtype)

    def mlp(self, x: Float[Array, "tokens size"], config: DiTConfig, key: PRNGKeyArray | None) -> Float[Array, "tokens size"]:
        """Two layers with GELU or a gate between, dropout after each."""
        k_up, k_down = (None, None) if key is None else jax.random.split(key)

        def activation(y):
            return (jax.nn.gelu if config.mlp == "gelu" else gated)(self.up.biased(y))

        # Without this, biased values and tanh would be kept beside the product, the widest array of a block.
        activation = jax.checkpoint(activation) if config.remat == "none" else activation
        y = activation(self.up.product(x, x.dtype))
        return dropout(self.down(dropout(y, config.dropout, k_up), x.dtype), config.dropout, k_down)


class FinalLayer(eqx.Module):
    """Modulated norm and a projection to patches, both zero at first: an untrained network answers 0."""

    modulation: Dense
    out: Dense

    def __init__(self, size: int, outputs: int, *, key: PRNGKeyArray):
        self.modulation = Dense(size, (2, size), key=key, init=zeros)
        self.out = Dense(size, outputs, key=key, init=zeros)

    def __call__(self, x: Float[Array, "tokens size"], c: Float[Array, " size"], norm: Norm) -> Float[Array, "tokens outputs"]:
        shift, scale = self.modulation(c, x.dtype)
        return self.out(modulate(NORMS[norm](x), shift, scale), x.dtype)


class TwoHeads(eqx.Module):
    """The last layer of the average velocity, and that of the velocity (see DiT.velocity)."""

    average: FinalLayer
    velocity: FinalLayer


class DiT(eqx.Module):
    """Average velocity of one example: patches -> blocks modulated by `embed(t) + embed(d) + embed(label)` -> patches.

    Label `classes` stands for no label, as None does; a network built with `guided` takes conditions `Guided` too. Blocks are
    one module with a leading axis `depth` on every array, run by `lax.scan`. `logvar` is the reference's table of log-variances
    by time: it enters no output, and is kept so that its checkpoints and parameter norms carry over. Raises ValueError if the
    patch does not divide the image.
    """

    patches: Dense
    time: ScalarEmbedding
    step: ScalarEmbedding
    label: Float[Array, "labels size"] | GuidedLabel | Dense
    blocks: Block
    final: FinalLayer | TwoHeads
    logvar: Float[Array, " bins"]
    config: DiTConfig = eqx.field(static=True)
    shape: tuple[int, int, int] = eqx.field(static=True)
    classes: int = eqx.field(static=True)
    dtype: DTypeLike = eqx.field(static=True)

    def __init__(self, config: DiTConfig, shape: tuple[int, int, int], classes: int, *, key: PRNGKeyArray):
        height, width, channels = shape
        if height % config.patch or width % config.patch:
            raise ValueError(
                f"an image of {height} x {width} is not divisible by patch={config.patch}: "
                "choose a patch that divides both sides, or resize the images"
            )
        k_patches, k_time, k_step, k_label, k_blocks, k_final = jax.random.split(key, 6)
        size, pixels = config.hidden, config.patch**2 * channels
        self.patches = Dense(pixels, size, key=k_patches)
        self.time = ScalarEmbedding(size, scale=config.embed_scale, key=k_time)
        self.step = ScalarEmbedding(size, scale=config.embed_scale, key=k_step)
        scale, observed = config.embed_scale, config.observed
        self.label = label_embedding(classes, size, config.guided, scale=scale, key=k_label, observed=observed)
        self.blocks = eqx.filter_vmap(lambda k: Block(config, key=k))(jax.random.split(k_blocks, config.depth))
        if config.low_rank:
            k_low = jax.random.fold_in(k_blocks, config.depth)  # a smaller number gives the key of a block
            self.blocks = low_rank.corrected(self.blocks, config.low_rank, key=k_low)
        final = FinalLayer(size, pixels, key=k_final)
        self.final = TwoHeads(final, FinalLayer(size, pixels, key=k_final)) if config.velocity_head else final
        self.logvar = jnp.zeros(256)
        self.config, self.shape, self.classes, self.dtype = config, shape, classes, config.dtype()

    def __call__(self, x: Point, t: Number, d: Number, label: Condition, *, key: PRNGKeyArray | None = None) -> Point:
        if self.config.predict == "noise":
            return velocity_by_noise(lambda x, level: self._answer(x, level, d, label, key), x, t)
        answer = self._answer(x, t, d, label, key)
        return velocity_toward(answer, x, t) if self.config.predict == "data" else answer

    def activations(
        self, x: Float[Array, "height width channels"], t: Number, d: Number, label: Condition
    ) -> dict[str, Float[Array, "..."]]:
        """Every intermediate value of one forward pass by name; `blocks` has a leading axis `depth`."""
        return self._run(x, t, d, label, None, keep=True)[1]

    @property
    def velocity(self) -> "DiT":
        """The same network with its second head for its first. Raises ValueError if it has one only (see velocity_head)."""
        if not isinstance(self.final, TwoHeads):
            raise ValueError("the network has no head for the velocity: build it with velocity_head=True")
        return eqx.tree_at(lambda n: n.final, self, self.final.velocity)

    @property
    def merged(self) -> "DiT":
        """The same function without corrections of low rank, which the layers take in."""
        other = eqx.tree_at(lambda n: n.blocks, self, low_rank.merged(self.blocks))
        object.__setattr__(other, "config", dataclasses.replace(self.config, low_rank=0))
        return other

    @property
    def in_float32(self) -> "DiT":
        """The same network computing in float32."""
        # Static fields have no public way to be replaced, and building another network would draw its weights.
        other = copy.copy(self)
        object.__setattr__(other, "dtype", jnp.float32)
        object.__setattr__(other, "config", dataclasses.replace(self.config, attention="xla"))  # cuDNN's is for bfloat16
        return other

    def log_variance(self, t: Number) -> Number:
        """The table's entry at `t` in [0, 1], times 100 as in the reference (whose lookup is NaN at `t = 1`)."""
        return 100 * self.logvar[jnp.clip(jnp.floor(t * 256).astype(jnp.int32), 0, 255)]

    def held_at(self, d: float) -> "DiT":
        """The network that answers at every step size as this one does at `d`: the kernel behind its step embedding is 0."""
        constant = self.step(_step_input(jnp.asarray(d), self.config.step), self.dtype)
        out = self.step.out
        return eqx.tree_at(lambda n: (n.step.out.kernel, n.step.out.bias), self, (jnp.zeros_like(out.kernel), constant))

    def _answer(self, x, t, d, label, key):
        return self._run(x.reshape(self.shape), t, d, label, key, keep=False)[0].reshape(x.shape)

    def _run(self, x, t, d, label, key, keep):
        patched = self.patches(to_patches(x, self.config.patch), self.dtype)
        position = position_table(self.config.hidden, *self._grid)
        position = np.zeros_like(position) if self.config.positions == "rotary" else position
        seen = (t, t + d) if self.config.split else (t,)
        times = [self.time(_time_input(at, self.config.time), self.dtype) for at in seen]
        step = self.step(_step_input(d, self.config.step), self.dtype)
        named = embed(self.label, label, self.dtype)
        others = [vector for name, vector in named.items() if name != "label"]
        told = [sum(others, start=time + named["label"].astype(time.dtype) + step) for time in times]
        tokens = (patched.astype(jnp.float32) + position).astype(self.dtype)
        tokens, blocks = self._blocks(tokens, [jax.nn.silu(c) for c in told], key, keep)
        final = self.final.average if isinstance(self.final, TwoHeads) else self.final
        out = final(tokens, jax.nn.silu(told[-1]), self.config.norm)
        values = {
            "patches": patched,
            "position": jnp.asarray(position),
            "time": times[0],
            "step": step,
            **named,
            "conditioning": told[0],
            "blocks": blocks,
            "final": out,
        }
        return from_patches(out, self.shape, self.config.patch), values

    @property
    def _grid(self) -> tuple[int, int]:
        height, width, _ = self.shape
        return height // self.config.patch, width // self.config.patch

    def _blocks(self, x, told, key, keep):
        arrays, static = eqx.partition(low_rank.merged(self.blocks), eqx.is_array)
        rotary = self.config.positions != "table"
        rotation = rotary_table(self.config.hidden // self.config.heads, *self._grid) if rotary else None
        keys = None if key is None or self.config.dropout == 0 else jax.random.split(key, self.config.depth)
        early = np.arange(self.config.depth)[:, None] < self.config.split
        own = jnp.where(early, told[0][None], told[1][None]) if self.config.split else None

        def body(x, layer):
            block, k, c = layer
            x = eqx.combine(block, static)(x, told[0] if c is None else c, self.config, rotation, k)
            return x, x if keep else None

        if self.config.remat == "block":
            body = jax.checkpoint(body)
        elif self.config.remat == "elementwise":
            # Within a loop there is no other computation that XLA could merge the second one with; without one there is.
            body = jax.checkpoint(body, policy=_is_product, prevent_cse=self.config.unroll >= self.config.depth)
        elif is_split():
            # Kept for the backward pass, the gathered weights of all blocks would be the whole model on each device.
            body = jax.checkpoint(body, policy=keeps(arrays))
        return jax.lax.scan(body, x, (arrays, keys, own), unroll=min(self.config.unroll, self.config.depth))


def _is_product(primitive: Any, *_: Any, **__: Any) -> bool:
    # A policy of `jax.checkpoint`: what is kept are the outputs of `matmul` and of attention, which is marked by a name.
    return primitive.name in ("rows_matmul", "name")


def _time_input(t: Number, time: TimeEmbedding) -> Number:
    if time == "reversed":
        return 1 - t
    return t if time == "linear" else jnp.zeros_like(t)


def _step_input(d: Number, step: StepEmbedding) -> Number:
    if step == "log2":
        return -jnp.log2(d)
    return d if step == "linear" else jnp.zeros_like(d)


def to_patches(x: Float[Array, "height width channels"], p: int) -> Float[Array, "tokens pixels"]:
    """An image as squares of `p` x `p` pixels, row by row, each a vector of its pixels and their channels."""
    height, width, channels = x.shape
    grid = x.reshape(height // p, p, width // p, p, channels).transpose(0, 2, 1, 3, 4)
    return grid.reshape(-1, p * p * channels)


def from_patches(
    tokens: Float[Array, "tokens pixels"], shape: tuple[int, int, int], p: int
) -> Float[Array, "height width channels"]:
    """The inverse of `to_patches`, for an image of this `shape`."""
    height, width, channels = shape
    grid = tokens.reshape(height // p, width // p, p, p, channels).transpose(0, 2, 1, 3, 4)
    return grid.reshape(shape)
