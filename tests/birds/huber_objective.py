"""The loss of huber_loss.py for the trainer: its options, what it takes from the networks, and how it is sampled."""

import dataclasses

import jax

from eqx_shortcut.guidance import Guidance
from eqx_shortcut.models.field import NetworkField
from eqx_shortcut.objectives import AtStep, Objective
from huber_loss import huber_flow


@dataclasses.dataclass(frozen=True)
class HuberFlow(Objective):
    steps: int = 128
    """Times are drawn from the grid of this many steps."""
    c: float = 0.03
    """Errors above it count by their size, and not by its square."""
    label_dropout: float = 0.1
    """Probability of hiding a row's label, which guidance at sampling needs."""

    @property
    def only_step(self):
        """The one step size at which the network is trained."""
        return 1 / self.steps

    def __call__(self, networks, batch, key, progress):
        """Loss and metrics of one batch; `progress` is the share of training done."""
        k_draws, k_mask = jax.random.split(key)
        field = networks.field(k_mask)  # the network to train, each row under its own dropout mask
        guidance = Guidance(networks.null, dropout=self.label_dropout)
        return huber_flow(field, batch, k_draws, steps_of_grid=self.steps, c=self.c, guidance=guidance)

    def sampling(self, network):
        """The network at the one step size that it knows, whatever the number of steps."""
        return AtStep(NetworkField(network), self.only_step, fixed=True)
