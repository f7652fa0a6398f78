"""The input of a network for the guidance that it is told beside a label."""

from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from ..guidance import Guided
from .layers import Dense, ScalarEmbedding, normal

ToldGuidance = Literal["none", "scale", "interval"]
TOLD: dict[ToldGuidance, tuple[str, ...]] = {"none": (), "scale": ("scale",), "interval": ("scale", "start", "stop")}
"""The numbers of a condition `Guided` that a network has inputs for, by its setting."""
UNTOLD = {"scale": 1.0, "start": 0.0, "stop": 1.0}
"""What they are where a condition is a label alone: no guidance."""

Condition = Int[Array, ""] | None | Guided | PyTree[Array]
"""A label, or None, which stands for none as the label `classes` does, with guidance told beside it or not; or an observation,
whose numbers are taken in order."""
LabelTable = Float[Array, "labels size"]


class GuidedLabel(eqx.Module):
    """Embeddings of a label and of the guidance told beside it: of `1 - 1/scale`, and of the times at which it holds.

    The inputs are those of Geng et al. (2025b); they make tokens of them, here they are added to the conditioning.
    """

    label: LabelTable
    numbers: dict[str, ScalarEmbedding]

    def __init__(self, label: LabelTable, told: ToldGuidance, *, scale: float, key: PRNGKeyArray):
        names, size = TOLD[told], label.shape[1]
        self.label = label
        self.numbers = {
            name: ScalarEmbedding(size, scale=scale, key=k)
            for name, k in zip(names, jax.random.split(key, len(names)), strict=True)
        }


def label_embedding(
    classes: int, size: int, told: ToldGuidance, *, scale: float, key: PRNGKeyArray, observed: int = 0
) -> LabelTable | GuidedLabel | Dense:
    """A table of a row for each class and one for none, with inputs for the guidance that is told, if any is.

    The table is the same with or without; `scale` is the factor on the numbers before their sinusoids. A network that is shown
    an observation of `observed` numbers has a layer for them instead.
    """
    if observed:
        return Dense(observed, size, key=key)
    table = normal(key, (classes + 1, size))
    return table if told == "none" else GuidedLabel(table, told, scale=scale, key=jax.random.fold_in(key, 1))


def observation(cond: Condition, dtype: DTypeLike) -> Float[Array, " observed"]:
    """All numbers of an observation, in the order of its parts."""
    return jnp.concatenate([jnp.ravel(leaf).astype(dtype) for leaf in jax.tree.leaves(cond)])


def check_observed(objective: Any, observed: int, guided: ToldGuidance) -> None:
    """Raises ValueError for guidance told beside an observation, or for more of it than the setting `guided` has inputs for."""
    if observed and (guided != "none" or objective.told is not None):
        raise ValueError(f"guidance is told beside labels alone, and the network sees {observed} numbers: tell it none")
    if objective.told is None:
        return
    needed: ToldGuidance = "interval" if objective.told.intervals else "scale"
    if not set(TOLD[needed]) <= set(TOLD[guided]):
        raise ValueError(
            f"{type(objective).__name__} tells the network the {needed} of its guidance, for which --network.guided {guided} "
            f"has no input: use --network.guided {needed}"
        )


def embed(label: LabelTable | GuidedLabel | Dense, cond: Condition, dtype: DTypeLike) -> dict[str, Float[Array, " size"]]:
    """The embedding of the label or observation of a condition, and of each number that the network is told beside it, by name.

    A label alone stands for scale 1 at all times, which is no guidance. Raises ValueError for a condition that tells
    guidance to a network without an input for it.
    """
    if isinstance(label, Dense):
        numbers = observation(cond, dtype)
        if numbers.size != label.kernel.shape[0]:
            raise ValueError(f"{numbers.size} numbers observed, the network sees {label.kernel.shape[0]}: set its `observed`")
        return {"label": label(numbers, dtype)}
    if not isinstance(label, GuidedLabel):
        if isinstance(cond, Guided):
            raise ValueError(
                "the condition tells a guidance scale and the network has no input for one: build it with guided='scale', "
                "or 'interval'"
            )
        return {"label": _row(label, cond).astype(dtype)}
    embeddings = {"label": _row(label.label, cond.cond if isinstance(cond, Guided) else cond).astype(dtype)}
    for name, embedding in label.numbers.items():
        number = getattr(cond, name) if isinstance(cond, Guided) else jnp.asarray(UNTOLD[name])
        embeddings[name] = embedding(1 - 1 / number if name == "scale" else number, dtype)
    return embeddings


def _row(table: LabelTable, label: Int[Array, ""] | None) -> Float[Array, " size"]:
    return table[-1 if label is None else label]
