"""Improved MeanFlow's transformer from the parameters of its authors (Flax), and back."""

import re
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from ..models.in_context import TOKENS, InContext, InContextConfig
from .named import Named, filled

MARK = "omega_tokens"
"""A name that its parameters have, and no others."""
EMBEDDERS = {
    "scale": "omega_embedder",
    "earliest": "cfg_t_start_embedder",
    "latest": "cfg_t_end_embedder",
    "step": "h_embedder",
}
LEARNED = dict(zip(TOKENS, ("class_tokens", "omega_tokens", "t_min_tokens", "t_max_tokens", "time_tokens"), strict=True))


def to_parameters(network: InContext) -> dict[str, Array]:
    """The network's parameters under their names. Its velocity points to the noise there: the sign of the answers turns."""
    patch, channels = network.config.patch, network.shape[-1]
    named: dict[str, Array] = {
        "x_embedder/proj/kernel": network.patches.kernel.reshape(patch, patch, channels, -1),
        "x_embedder/proj/bias": network.patches.bias,
        "y_embedder/embedding_table/_flax_embedding/embedding": network.label,
        **{LEARNED[name]: tokens for name, tokens in network.tokens.items()},
    }
    for name, there in EMBEDDERS.items():
        for layer, dense in (("layers_0", network.numbers[name].hidden), ("layers_2", network.numbers[name].out)):
            named |= _linear(f"{there}/mlp/{layer}", dense.kernel, dense.bias)
    named |= _blocks("shared_blocks", network.blocks)
    for letter, head in (("u", network.average), ("v", network.other)):
        named |= _blocks(f"{letter}_heads", head.blocks) | {f"{letter}_final_layer/norm/kernel": head.norm}
        named |= _linear(f"{letter}_final_layer/linear", -head.out.kernel, -head.out.bias)
    return named


def from_parameters(named: Named, *, size: int = 32, heads: int | None = None, key: PRNGKeyArray) -> InContext:
    """The network that holds these parameters, of images of side `size`.

    By default it has heads of 64 dimensions, as those of its authors. Raises ValueError for what is missing, left over or of
    another shape.
    """
    try:
        patch, _, channels, hidden = named["x_embedder/proj/kernel"].shape
        wide = named["shared_blocks_0/mlp/w1/_flax_linear/kernel"].shape[1]
        labels = named["y_embedder/embedding_table/_flax_embedding/embedding"].shape[0]
        tokens = tuple(len(named[LEARNED[name]]) for name in TOKENS)
    except (KeyError, ValueError, IndexError) as error:
        raise ValueError(f"the parameters are of no network of improved MeanFlow ({error})") from error
    shared, own = (
        len({m[0] for name in named if (m := re.match(rf"{part}_\d+/", name))}) for part in ("shared_blocks", "u_heads")
    )
    config = InContextConfig(hidden, shared + own, own, heads or max(1, hidden // 64), patch, wide, tokens)
    like = eqx.filter_eval_shape(lambda key: config.build((size, size, channels), labels - 1, key=key), key)
    return filled(like, to_parameters, named)


def _blocks(name: str, blocks: Any) -> dict[str, Array]:
    depth, size, *_, dim = blocks.qkv.shape
    # Each turns neighbours by an angle there, here the halves of a head: the dimensions of queries and keys change places.
    places = np.argsort(np.concatenate([np.arange(0, dim, 2), np.arange(1, dim, 2)]))
    named: dict[str, Array] = {}
    for i in range(depth):
        block: Any = jax.tree.map(lambda a, i=i: a[i], blocks)
        parts = [block.qkv[:, 0][..., places], block.qkv[:, 1][..., places], block.qkv[:, 2]]
        kernels = dict(zip(("q_proj", "k_proj", "v_proj"), (part.reshape(size, -1) for part in parts), strict=True))
        layers = {**{f"attn/{part}": kernel for part, kernel in kernels.items()}, "attn/out_proj": block.out}
        layers |= {"mlp/w1": block.up[:, 0], "mlp/w3": block.up[:, 1], "mlp/w2": block.down}
        named |= {f"{name}_{i}/{layer}/_flax_linear/kernel": kernel for layer, kernel in layers.items()}
        scales = {"attn/q_norm/kernel": block.query[places], "attn/k_norm/kernel": block.key[places]}
        scales |= {"norm1/kernel": block.norms[0], "norm2/kernel": block.norms[1]}
        scales |= {"attn_scale": block.gates[0], "mlp_scale": block.gates[1]}
        named |= {f"{name}_{i}/{scale}": value for scale, value in scales.items()}
    return named


def _linear(name: str, kernel: Array, bias: Array) -> dict[str, Array]:
    return {f"{name}/_flax_linear/kernel": kernel, f"{name}/_flax_linear/bias": bias}
