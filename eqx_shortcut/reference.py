"""Parameters of kvfrans/shortcut-models (Flax) as our network, and back."""

from collections.abc import Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .models.dit import DiT, DiTConfig
from .models.layers import Dense

Parameters = Mapping[str, np.ndarray | Array]
"""The reference's parameters by path, such as `DiTBlock_0/Dense_0/kernel`; dense kernels are `[in, out]`."""


def to_parameters(network: DiT) -> dict[str, Float[Array, "..."]]:
    """The network's parameters (or a gradient or average of the same structure) under the reference's names and shapes."""
    patch, channels = network.config.patch, network.shape[-1]
    named = {
        **_dense("PatchEmbed_0/Conv_0", network.patches),
        **_dense("TimestepEmbedder_0/Dense_0", network.time.hidden),
        **_dense("TimestepEmbedder_0/Dense_1", network.time.out),
        **_dense("TimestepEmbedder_1/Dense_0", network.step.hidden),
        **_dense("TimestepEmbedder_1/Dense_1", network.step.out),
        "LabelEmbedder_0/Embed_0/embedding": network.label,
        "Embed_0/embedding": network.logvar[:, None],
        **_dense("FinalLayer_0/Dense_0", network.final.modulation),
        **_dense("FinalLayer_0/Dense_1", network.final.out),
    }
    kernel = named["PatchEmbed_0/Conv_0/kernel"]
    named["PatchEmbed_0/Conv_0/kernel"] = kernel.reshape(patch, patch, channels, -1)
    for i in range(network.config.depth):
        block = jax.tree.map(lambda a, i=i: a[i], network.blocks)
        query, key, value = (jax.tree.map(lambda a, j=j: a[..., j, :, :], block.qkv) for j in range(3))
        # The reference declares the key before the query.
        parts = {"Dense_0": block.modulation, "Dense_1": key, "Dense_2": query, "Dense_3": value, "Dense_4": block.out}
        parts |= {"MlpBlock_0/Dense_0": block.up, "MlpBlock_0/Dense_1": block.down}
        for name, part in parts.items():
            named |= _dense(f"DiTBlock_{i}/{name}", part)
    return named


def from_parameters(parameters: Parameters, config: DiTConfig, shape: tuple[int, int, int], classes: int) -> DiT:
    """The network of `config` that holds the reference's `parameters`: the inverse of `to_parameters`.

    Raises ValueError naming a parameter that is missing, left over, or of another shape than `config` asks for.
    """
    network = eqx.filter_eval_shape(lambda key: config.build(shape, classes, key=key), jax.random.key(0))
    arrays, static = eqx.partition(network, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))

    def rename(arrays):
        return to_parameters(eqx.combine(arrays, static))

    expected = jax.eval_shape(rename, arrays)
    _check(parameters, {name: leaf.shape for name, leaf in expected.items()})
    values = {name: jnp.asarray(parameters[name], leaf.dtype) for name, leaf in expected.items()}
    # Renaming only permutes entries, so its transpose is its inverse, and the two cannot disagree.
    (arrays,) = jax.jit(jax.linear_transpose(rename, arrays))(values)
    return eqx.combine(arrays, static)


def _dense(name: str, dense: Dense) -> dict[str, Float[Array, "..."]]:
    return {f"{name}/kernel": dense.kernel.reshape(dense.kernel.shape[0], -1), f"{name}/bias": dense.bias.reshape(-1)}


def _check(parameters: Parameters, expected: dict[str, tuple[int, ...]]) -> None:
    missing, extra = sorted(expected.keys() - parameters.keys()), sorted(parameters.keys() - expected.keys())
    if missing or extra:
        raise ValueError(
            f"not the parameters of this architecture: {len(missing)} missing (first: {missing[:1]}), {len(extra)} left "
            f"over (first: {extra[:1]}); check depth and names"
        )
    for name, shape in expected.items():
        if parameters[name].shape != shape:
            raise ValueError(f"parameter {name} has shape {parameters[name].shape}, the architecture asks for {shape}")
