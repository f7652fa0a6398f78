"""Published diffusion transformers as ours, and ours as theirs: SiT, DiT, MeanFlow and ESC, which share names and layouts.

What they mean by time, sign and answer stands in CONVENTIONS, and nowhere else.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ..models.dit import SIZES, DiT, DiTConfig, FinalLayer, StepEmbedding, TimeEmbedding
from ..models.layers import Dense, ScalarEmbedding, position_table
from .named import filled

Kind = Literal["sit", "dit", "meanflow", "esc"]
Tensors = Mapping[str, np.ndarray | Array]
"""Parameters under SiT's names and in PyTorch's layouts: dense `[out, in]`, patches `[out, in, rows, columns]`."""
POSITIONS = "pos_embed"


class Convention(NamedTuple):
    """A published network in our terms, where `t = 0` is noise, `t = 1` data, and the velocity points to the data."""

    time: TimeEmbedding
    """What its time embedding sees of our `t`."""
    step: StepEmbedding
    """What it sees of our step size `d`."""
    sign: Literal[1, -1]
    """Its answer over ours."""
    predict: Literal["velocity", "noise"]
    """What it answers, which the network makes a velocity."""
    branch: str = ""
    """Its name of the embedding of `d`, if it has one."""


CONVENTIONS: dict[Kind, Convention] = {
    # x_t = t data + (1 - t) noise and v = data - noise (SiT, transport/path.py, ICPlan).
    "sit": Convention("linear", "none", 1, "velocity"),
    # Noise at levels 0 (nearly data) to 999 (nearly noise) of a variance-preserving path (DiT, gaussian_diffusion.py).
    "dit": Convention("linear", "none", 1, "noise"),
    # z_t = (1 - t) data + t noise, v = noise - data, shown t and h = t - r: our 1 - t and d (MeanFlow, meanflow.py).
    "meanflow": Convention("reversed", "linear", -1, "velocity", "h_embedder"),
    # The same, under the names of SiT (ESC, arch/sit_adpt.py, loss/esc_loss.py).
    "esc": Convention("reversed", "linear", -1, "velocity", "r_embedder"),
}
WEIGHT = "logvar_linear."
"""Begins the names of what ESC weighs its loss by, which enters no answer."""

NEEDED = {
    "mlp": "gelu",
    "norm": "layer",
    "qk_norm": False,
    "positions": "table",
    "guided": "none",
    "observed": 0,
    "velocity_head": False,
    "split": 0,
    "embed_scale": 1.0,
}
"""Settings that a network must have to be one of theirs."""


def to_tensors(network: DiT, kind: Kind) -> dict[str, Array]:
    """The network's parameters under their names, without the table of positions, which is none.

    `network` has the settings of `kind` (see `architecture`). A step branch that `kind` does not have is left out.
    """
    patch, channels, sign = network.config.patch, network.shape[-1], CONVENTIONS[kind].sign
    assert isinstance(network.final, FinalLayer)
    kernel = network.patches.kernel.reshape(patch, patch, channels, -1)
    out = {name: value if sign == 1 else -value for name, value in _linear("final_layer.linear", network.final.out).items()}
    named = {
        "x_embedder.proj.weight": kernel.transpose(3, 2, 0, 1),
        "x_embedder.proj.bias": network.patches.bias,
        **_linear("t_embedder.mlp.0", network.time.hidden),
        **_linear("t_embedder.mlp.2", network.time.out),
        "y_embedder.embedding_table.weight": network.label,
        **_linear("final_layer.adaLN_modulation.1", network.final.modulation),
        **out,
    }
    if branch := CONVENTIONS[kind].branch:
        named |= _linear(f"{branch}.mlp.0", network.step.hidden) | _linear(f"{branch}.mlp.2", network.step.out)
    for i in range(network.config.depth):
        block = jax.tree.map(lambda a, i=i: a[i], network.blocks)
        parts = {"adaLN_modulation.1": block.modulation, "attn.qkv": block.qkv, "attn.proj": block.out}
        for name, part in {**parts, "mlp.fc1": block.up, "mlp.fc2": block.down}.items():
            named |= _linear(f"blocks.{i}.{name}", part)
    return named


def from_tensors(tensors: Tensors, kind: Kind, *, key: PRNGKeyArray, size: int | None = None, heads: int | None = None) -> DiT:
    """The network that holds these parameters; `size` is the side of its images where no positions tell it.

    Half-precision becomes float32. Learned variances, the second half of the outputs, and ESC's weight of the loss are
    dropped. A step branch that `kind` does not have adds nothing at first and can learn: its last layer is 0 and its first
    drawn from `key`. Raises ValueError for what is missing, left over or of another shape, for positions that were trained,
    and where `size` or `heads` is needed.
    """
    dropped = WEIGHT if kind == "esc" else ()
    tensors = {name: value for name, value in tensors.items() if not name.startswith(dropped)}
    config, shape, classes = architecture(tensors, kind, size=size, heads=heads)
    positions = tensors.pop(POSITIONS, None)
    table = position_table(config.hidden, shape[0] // config.patch, shape[1] // config.patch)
    # One more, of a class for example, is no square of them.
    known = positions is None or (
        positions.size == table.size and np.allclose(np.asarray(positions, np.float32).ravel(), table.ravel(), atol=1e-5)
    )
    if not known:
        raise ValueError(f"{POSITIONS} is not the sine-cosine table of {shape[0]} x {shape[1]}: only that one is known")
    like = eqx.filter_eval_shape(lambda key: config.build(shape, classes, key=key), key)
    network = filled(like, lambda network: to_tensors(network, kind), _without_variances(tensors, config, shape[-1]))
    if not CONVENTIONS[kind].branch:
        network = eqx.tree_at(lambda n: n.step.hidden, network, ScalarEmbedding(config.hidden, scale=1.0, key=key).hidden)
    return network


def architecture(
    tensors: Tensors, kind: Kind, *, size: int | None = None, heads: int | None = None
) -> tuple[DiTConfig, tuple[int, int, int], int]:
    """Settings of the network that the shapes tell, shape of its images, and classes. Raises ValueError as `from_tensors`."""
    hidden, channels, patch, columns = shape_of(tensors, "x_embedder.proj.weight", 4)
    wide, labels = (
        shape_of(tensors, "blocks.0.mlp.fc1.weight", 2)[0],
        shape_of(tensors, "y_embedder.embedding_table.weight", 2)[0],
    )
    depth = len({match[0] for name in tensors if (match := re.match(r"blocks\.\d+\.", name))})
    if patch != columns or labels < 2:
        raise ValueError(f"patches of {patch} x {columns} and {labels} labels: squares, and one class and no class, are known")
    published = {width: heads for width, _, heads in SIZES.values()}
    if heads is None and (heads := published.get(hidden)) is None:
        raise ValueError(f"the number of attention heads at width {hidden} cannot be seen in the tensors: give it with --heads")
    if POSITIONS in tensors:
        told = patch * math.isqrt(tensors[POSITIONS].size // hidden)
        if size not in (None, told):
            raise ValueError(f"--size {size}, and {POSITIONS} is of images of {told} x {told}: leave it out")
        size = told
    if size is None:
        raise ValueError("the side of its images cannot be seen in the tensors: give it with --size, 32 for latents of 256")
    known = CONVENTIONS[kind]
    config = DiTConfig(
        hidden=hidden,
        depth=depth,
        heads=heads,
        patch=patch,
        mlp_ratio=mlp_ratio(wide, hidden),
        logits="root",
        time=known.time,
        step=known.step,
        predict=known.predict,
    )
    return config, (size, size, channels), labels - 1


def exported(network: DiT, only_step: float | None) -> tuple[DiT, Kind]:
    """The same function at the step size `only_step` as a network of SiT, or of DiT if it answers the noise.

    What the step branch adds at that step goes into the bias of the time embedding, and the scale of the logits into the
    queries; neither changes a network that came from one of theirs. Raises ValueError naming what they have no place for.
    """
    network, config = network.merged, network.config
    foreign = [f"{name}={value}" for name in NEEDED if (value := getattr(config, name)) != NEEDED[name]]
    foreign += [f"time={config.time}"] if config.time != "linear" else []
    foreign += [f"predict={config.predict}"] if config.predict == "data" else []
    foreign += [f"images of {network.shape[0]} x {network.shape[1]}"] if network.shape[0] != network.shape[1] else []
    if config.step != "none" and only_step is None:
        foreign.append(f"step={config.step}")
    if foreign:
        raise ValueError(f"a network with {', '.join(foreign)} is none of SiT's or DiT's: write it with --to safetensors")
    added = network.in_float32.held_at(1.0 if only_step is None else only_step).step.out.bias
    network = eqx.tree_at(lambda n: n.time.out.bias, network, network.time.out.bias + added)
    if config.logits == "dim":
        factor = np.ones((3, 1, 1), np.float32)
        factor[0] = 1 / math.sqrt(config.hidden // config.heads)
        scaled = jax.tree.map(lambda a: a * np.broadcast_to(factor, a.shape), network.blocks.qkv)
        network = eqx.tree_at(lambda n: n.blocks.qkv, network, scaled)
    return network, "dit" if config.predict == "noise" else "sit"


def with_positions(network: DiT, kind: Kind) -> dict[str, Float[np.ndarray, "..."]]:
    """Its tensors with the table of positions, which the authors' code asks for."""
    rows, columns = (side // network.config.patch for side in network.shape[:2])
    tensors = {name: np.ascontiguousarray(value) for name, value in to_tensors(network, kind).items()}
    return {POSITIONS: position_table(network.config.hidden, rows, columns)[None], **tensors}


DIFFUSERS = {
    "x_embedder.proj": "pos_embed.proj",
    "final_layer.adaLN_modulation.1": "proj_out_1",
    "final_layer.linear": "proj_out_2",
    "attn.proj": "attn1.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
    "adaLN_modulation.1": "norm1.linear",
}
SHARED = {
    "t_embedder.mlp.0": "norm1.emb.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "norm1.emb.timestep_embedder.linear_2",
    "y_embedder.embedding_table": "norm1.emb.class_embedder.embedding_table",
}
"""Layers of which diffusers keeps a copy in every block."""
QKV = ("attn1.to_q", "attn1.to_k", "attn1.to_v")


def to_diffusers(tensors: Tensors) -> dict[str, Float[np.ndarray, "..."]]:
    """Tensors under the names of diffusers' DiTTransformer2DModel, which keeps no positions."""
    depth = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    found: dict[str, np.ndarray] = {}
    for name, value in tensors.items():
        value, (layer, _, part) = np.asarray(value), name.rpartition(".")
        block, _, inner = layer.removeprefix("blocks.").partition(".") if layer.startswith("blocks.") else ("", "", layer)
        if inner in SHARED:
            found |= {f"transformer_blocks.{i}.{SHARED[inner]}.{part}": value for i in range(depth)}
        elif inner == "attn.qkv":
            for place, third in zip(QKV, np.split(value, 3), strict=True):
                found[f"transformer_blocks.{block}.{place}.{part}"] = np.ascontiguousarray(third)
        elif name != POSITIONS:
            found[f"{f'transformer_blocks.{block}.' if block else ''}{DIFFUSERS[inner]}.{part}"] = value
    return found


def from_diffusers(tensors: Tensors) -> dict[str, Float[np.ndarray, "..."]]:
    """The inverse of `to_diffusers`. Raises ValueError if the copies of a layer in the blocks differ."""
    found: dict[str, Any] = {name: value for name, value in tensors.items() if not name.startswith("transformer_blocks.")}
    back = {theirs: ours for ours, theirs in {**DIFFUSERS, **SHARED}.items()}
    parts: dict[str, list[Any]] = {}
    for name, value in tensors.items():
        block, inner, part = _parsed(name)
        if inner in SHARED.values():
            ours = f"{back[inner]}.{part}"
            if ours in found and not np.array_equal(found[ours], value):
                raise ValueError(f"{name} differs from its copy in another block: one embedding for all blocks is known")
            found[ours] = value
        elif inner in QKV:
            parts.setdefault(f"blocks.{block}.attn.qkv.{part}", [None] * 3)[QKV.index(inner)] = value
        elif inner in back:
            found.pop(name, None)
            found[f"{f'blocks.{block}.' if block else ''}{back[inner]}.{part}"] = value
        else:
            found[name] = value
    joined = {name: np.concatenate(three) for name, three in parts.items() if all(value is not None for value in three)}
    return found | joined


def _parsed(name: str) -> tuple[str, str, str]:
    match = re.fullmatch(r"(?:transformer_blocks\.(\d+)\.)?(.*)\.(weight|bias)", name)
    return (match[1] or "", match[2], match[3]) if match else ("", name, "")


def _without_variances(tensors: Tensors, config: DiTConfig, channels: int) -> dict[str, np.ndarray]:
    pixels, found = config.patch**2, {name: np.asarray(value) for name, value in tensors.items()}
    for name in ("final_layer.linear.weight", "final_layer.linear.bias"):
        if name in found and len(found[name]) == 2 * pixels * channels:
            halves = found[name].reshape(pixels, 2, channels, *found[name].shape[1:])
            found[name] = halves[:, 0].reshape(pixels * channels, *found[name].shape[1:])
    return found


def shape_of(tensors: Tensors, name: str, axes: int) -> tuple[int, ...]:
    """The shape of the tensor of that name. Raises ValueError if it is missing, empty, or of another number of axes."""
    if name not in tensors:
        raise ValueError(f"the tensors lack {name}: they are of another network")
    shape = tuple(tensors[name].shape)
    if len(shape) != axes or 0 in shape:
        raise ValueError(f"the tensor {name} has shape {shape}, and {axes} axes of size 1 or more are asked for")
    return shape


def mlp_ratio(wide: int, hidden: int) -> float:
    """The ratio with `int(hidden * ratio) == wide`, which rounding can leave one short."""
    ratio = wide / hidden
    return ratio if int(hidden * ratio) == wide else math.nextafter(ratio, math.inf)


def _linear(name: str, dense: Any) -> dict[str, Array]:
    assert isinstance(dense, Dense)
    return {f"{name}.weight": dense.kernel.reshape(dense.kernel.shape[0], -1).T, f"{name}.bias": dense.bias.reshape(-1)}


def from_flax(parameters: Tensors) -> dict[str, Float[np.ndarray, "..."]]:
    """Tensors under SiT's names from the parameters of the JAX authors, named by paths with `/`."""
    found = {}
    for path, value in parameters.items():
        name = re.sub(r"/_flax_(linear|embedding)", "", path).replace("layers_", "").replace("/", ".")
        value = np.asarray(value)
        if name.endswith(".kernel"):
            value = value.T if value.ndim == 2 else value.transpose(3, 2, 0, 1)
        found[re.sub(r"\.(kernel|embedding)$", ".weight", name)] = value
    return found
