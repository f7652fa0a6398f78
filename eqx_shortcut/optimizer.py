"""The optimizer of a run."""

import dataclasses
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import optax


@dataclasses.dataclass(frozen=True)
class AdamW:
    """AdamW with decoupled weight decay on every parameter (Loshchilov and Hutter 2019); the reference's defaults."""

    lr: float = 1e-4
    """Peak learning rate."""
    schedule: Literal["constant", "cosine"] = "constant"
    """After the warm-up: constant, or a cosine down to 0 at the last step."""
    warmup: int = 0
    """Steps over which the learning rate rises from 0."""
    beta1: float = 0.9
    """Decay of the mean of gradients."""
    beta2: float = 0.999
    """Decay of the mean of squared gradients."""
    weight_decay: float = 0.1
    """Weight decay, multiplied by the learning rate."""
    clip: float | None = None
    """Largest norm of the gradient over all parameters; None leaves it."""

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

        adamw = optax.adamw(self.rate(steps), b1=self.beta1, b2=self.beta2, weight_decay=self.weight_decay)
        return adamw if self.clip is None else optax.chain(optax.clip_by_global_norm(self.clip), adamw)
