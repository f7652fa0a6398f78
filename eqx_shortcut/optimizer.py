"""The optimizer of a run."""

import dataclasses
import functools
import math
import re
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from . import ranges
from .ranges import BelowOne, Natural, NotNegative, Positive

if TYPE_CHECKING:
    import optax

MATRICES = r"(^|/)blocks/(?!modulation/).*kernel$"
"""Paths of the matrices of blocks: axes depth, inputs, parts (such as queries, keys and values) if there are more, outputs."""
SIZE = 0.2
"""The root mean square of AdamW's updates, which Muon's are given."""


@dataclasses.dataclass(frozen=True)
class Optimizer(ranges.Checked):
    """AdamW with its learning rate over a run, and clipping before it: the base of optimizers, none of which is another."""

    lr: NotNegative = 1e-4
    """Peak learning rate (0 or more)."""
    schedule: Literal["constant", "cosine"] = "constant"
    """After the warm-up: constant, or a cosine down to 0 at the last step."""
    warmup: Natural = 0
    """Steps over which the learning rate rises from 0 (0 or more)."""
    beta1: BelowOne = 0.9
    """Decay of the mean of gradients (0 to below 1)."""
    beta2: BelowOne = 0.999
    """Decay of the mean of squared gradients (0 to below 1)."""
    weight_decay: NotNegative = 0.1
    """Weight decay, multiplied by the learning rate (0 or more)."""
    clip: Positive | None = None
    """Largest norm of the gradient over all parameters; None leaves it (more than 0)."""
    frozen: str | None = None
    """Paths of parameters that stay as they are, as a regular expression: "blocks/", or with --network.low-rank "/kept/"."""

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            re.compile(self.frozen or "")
        except re.error as error:
            raise ValueError(f"frozen={self.frozen!r} is no regular expression ({error}): use blocks/, for example") from error

    def rate(self, steps: int) -> "optax.Schedule":
        """The learning rate as a function of the step, for a run of `steps`."""
        import optax

        decay = optax.cosine_decay_schedule(self.lr, max(1, steps - self.warmup))
        after = decay if self.schedule == "cosine" else optax.constant_schedule(self.lr)
        if not self.warmup:
            return after
        return optax.join_schedules([optax.linear_schedule(0.0, self.lr, self.warmup), after], [self.warmup])

    def build(self, steps: int) -> "optax.GradientTransformation":
        """The gradient transformation for a run of `steps`."""
        import optax

        rule = self.rule(self.rate(steps))
        rule = rule if self.clip is None else optax.chain(optax.clip_by_global_norm(self.clip), rule)
        if self.frozen is None:
            return rule
        return optax.partition({"moved": rule, "frozen": optax.set_to_zero()}, functools.partial(_frozen, self.frozen))

    def rule(self, rate: "optax.Schedule") -> "optax.GradientTransformation":
        """The gradient transformation behind the clipping, at this learning rate."""
        import optax

        return optax.adamw(rate, b1=self.beta1, b2=self.beta2, weight_decay=self.weight_decay)


@dataclasses.dataclass(frozen=True)
class AdamW(Optimizer):
    """AdamW with decoupled weight decay on every parameter (Loshchilov and Hutter 2019); the reference's defaults."""


@dataclasses.dataclass(frozen=True)
class Muon(Optimizer):
    """The matrices of the blocks move by their momentum made orthogonal (Jordan et al. 2024, Muon), all else by AdamW.

    The update is `0.2 sqrt(max(inputs, outputs)) U V^T` for a momentum `U S V^T`, with singular values of 0.7 to 1.2 for 1, as
    five steps of Newton and Schulz leave them. It has the size of AdamW's, so that one learning rate and weight decay serve
    both (Liu et al. 2025, Muon is Scalable for LLM Training). Each block has its own, and so have queries, keys and values.
    Modulations, embeddings, the final layer and biases are AdamW's, as Muon's author has it.
    """

    momentum: BelowOne = 0.95
    """Decay of the momentum of matrices, in Nesterov's form (0 to below 1)."""

    def rule(self, rate: "optax.Schedule") -> "optax.GradientTransformation":
        """Muon on matrices and AdamW on the rest, at this learning rate. Its `init` raises ValueError if there is no matrix."""
        import optax

        muon = optax.chain(
            optax.trace(self.momentum, nesterov=True),
            optax.stateless(lambda momenta, _: jax.tree.map(_orthogonal, momenta)),
            optax.add_decayed_weights(self.weight_decay),
            optax.scale_by_learning_rate(rate),
        )
        return optax.partition({"matrices": muon, "rest": super().rule(rate)}, _labels)


def orthogonal(x: Float[Array, "count rows columns"]) -> Float[Array, "count rows columns"]:
    """`U V^T` for each matrix `U S V^T`, with singular values of 0.7 to 1.2 for 1, or less where that of `x` was nearly 0.

    Five steps `x <- a x + (b x x^T + c (x x^T)^2) x` of the numbers of Jordan et al. (2024), which rise fast at 0 and do not
    converge to 1. A matrix of zeros stays one.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    # The product with its transpose on the shorter side.
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (jnp.sqrt(jnp.sum(jnp.square(x), axis=(1, 2), keepdims=True)) + 1e-8)
    for _ in range(5):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if tall else x


def _orthogonal(momentum: Float[Array, "depth inputs *outputs"]) -> Float[Array, "depth inputs *outputs"]:
    # Axes as MATRICES says.
    depth, inputs = momentum.shape[:2]
    parts = momentum.shape[2] if momentum.ndim > 3 else 1
    split = momentum.reshape(depth, inputs, parts, -1).swapaxes(1, 2)
    matrices = split.reshape(depth * parts, inputs, -1)
    updates = orthogonal(_spread(matrices))[: depth * parts]
    size = SIZE * math.sqrt(max(matrices.shape[1:]))
    return (size * updates).reshape(split.shape).swapaxes(1, 2).reshape(momentum.shape)


def _spread(matrices: Float[Array, "count rows columns"]) -> Float[Array, "more rows columns"]:
    """The matrices over the devices of the mesh in use that share weights, filled up with zeros where these do not divide them.

    Each device has whole ones and sends nothing while it works on them. The partitioner would gather them in every product.
    """
    mesh = jax.sharding.get_abstract_mesh().shape
    # Not over both: the partitioner knows no other way there than to make everything whole on each device.
    axis = next((axis for axis in ("fsdp", "tensor") if mesh.get(axis, 1) > 1), None)
    if axis is None:
        return matrices
    filled = jnp.pad(matrices, ((0, -len(matrices) % mesh[axis]), (0, 0), (0, 0)))
    return jax.lax.with_sharding_constraint(filled, jax.sharding.PartitionSpec(axis))


def _labelled(params: PyTree, pattern: str, inside: str, outside: str) -> PyTree:
    """A label for each parameter, by whether the pattern is in its path."""

    def label(path: Any, _: Any) -> str:
        return inside if re.search(pattern, jax.tree_util.keystr(path, simple=True, separator="/")) else outside

    return jax.tree_util.tree_map_with_path(label, params)


def _frozen(pattern: str, params: PyTree) -> PyTree:
    labels = _labelled(params, pattern, "frozen", "moved")
    if set(jax.tree.leaves(labels)) != {"frozen", "moved"}:
        raise ValueError(f"frozen={pattern!r} is in the paths of all parameters, or of none: blocks/ is in those of the blocks")
    return labels


def _labels(params: PyTree) -> PyTree:
    labels = _labelled(params, MATRICES, "matrices", "rest")
    if "matrices" not in jax.tree.leaves(labels):
        raise ValueError("Muon is for the matrices of a network's `blocks`, and this network has none: use AdamW")
    return labels
