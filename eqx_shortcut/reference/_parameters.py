"""Parameters of kvfrans/shortcut-models (Flax) as our network, and back."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float

from ..models.dit import SIZES, DiT, DiTConfig, FinalLayer, StepEmbedding
from ..models.layers import Dense
from ..pretrained.named import filled
from ..pretrained.transformers import mlp_ratio, shape_of


class ReferenceCheckpointError(ValueError):
    """A checkpoint of the reference that cannot be used: says what was found, what is asked for, and what to do."""


Parameters = Mapping[str, np.ndarray | Array]
"""The reference's parameters by path, such as `DiTBlock_0/Dense_0/kernel`; dense kernels are `[in, out]`."""


REFERENCE = {"mlp": "gelu", "qk_norm": False, "guided": "none", "velocity_head": False}
"""The reference's choice of the settings that decide which parameters there are."""


def to_parameters(network: DiT) -> dict[str, Float[Array, "..."]]:
    """The network's parameters (or a gradient or average of the same structure) under the reference's names and shapes.

    Raises ReferenceCheckpointError if an option gives it parameters that the reference has no names for.
    """
    settings = {name: getattr(network.config, name) for name in REFERENCE}
    if foreign := [f"{name}={value}" for name, value in settings.items() if value != REFERENCE[name]]:
        raise ReferenceCheckpointError(
            f"a network with {', '.join(foreign)} has parameters that the reference has no names for: keep its checkpoints"
        )
    patch, channels = network.config.patch, network.shape[-1]
    assert isinstance(network.final, FinalLayer)
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

    Raises ReferenceCheckpointError naming a parameter that is missing, left over, or of another shape than `config` asks for.
    """
    network = eqx.filter_eval_shape(lambda key: config.build(shape, classes, key=key), jax.random.key(0))
    try:
        return filled(network, to_parameters, parameters)
    except ValueError as error:
        raise ReferenceCheckpointError(str(error)) from error


def architecture(
    parameters: Parameters, *, heads: int | None = None, step: StepEmbedding = "log2"
) -> tuple[DiTConfig, int, int]:
    """Settings of the network that the shapes of `parameters` tell, its channels, and its classes.

    Shapes do not tell the heads: None takes those of the published size of that width. Raises ReferenceCheckpointError naming
    what is missing or of an impossible shape, or asking for `heads`.
    """
    try:
        patch, other, channels, hidden = shape_of(parameters, "PatchEmbed_0/Conv_0/kernel", 4)
        wide = shape_of(parameters, "DiTBlock_0/MlpBlock_0/Dense_0/kernel", 2)[1]
        labels = shape_of(parameters, "LabelEmbedder_0/Embed_0/embedding", 2)[0]
        if patch != other:
            raise ValueError(f"PatchEmbed_0/Conv_0/kernel has patches of {patch} x {other}: use square ones")
        if labels < 2:
            raise ValueError("LabelEmbedder_0/Embed_0/embedding has 1 row: one class and no class make 2 or more")
        published = {size: heads for name, (size, _, heads) in SIZES.items() if name != "tiny"}
        if heads is None and hidden not in published:
            raise ValueError(
                f"the number of attention heads at width {hidden} cannot be seen in the parameters: give it with --heads"
            )
        config = DiTConfig(
            hidden=hidden,
            depth=len({name.split("/")[0] for name in parameters if name.startswith("DiTBlock_")}),
            heads=published[hidden] if heads is None else heads,
            patch=patch,
            mlp_ratio=mlp_ratio(wide, hidden),
            step=step,
        )
    except ValueError as error:
        raise ReferenceCheckpointError(f"the parameters are of no network known here ({error})") from error
    return config, channels, labels - 1


def nested(parameters: Parameters) -> dict[str, Any]:
    """The reference's `params`, nested dictionaries, from names with `/`."""
    tree: dict[str, Any] = {}
    for name, value in parameters.items():
        *groups, last = name.split("/")
        at = tree
        for group in groups:
            at = at.setdefault(group, {})
        at[last] = value
    return tree


def _dense(name: str, dense: Dense) -> dict[str, Float[Array, "..."]]:
    return {f"{name}/kernel": dense.kernel.reshape(dense.kernel.shape[0], -1), f"{name}/bias": dense.bias.reshape(-1)}
