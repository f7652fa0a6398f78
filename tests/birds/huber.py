"""Digits by flow matching under the pseudo-Huber distance: python huber.py; --help lists --objective.c among the options."""

from eqx_shortcut.data import Digits
from eqx_shortcut.experiment import Config, Experiment
from eqx_shortcut.models import DiTConfig
from eqx_shortcut.optimizer import AdamW
from huber_objective import HuberFlow

NETWORK = DiTConfig(hidden=128, depth=4, heads=4, patch=4)
HUBER = Config(Digits(), NETWORK, HuberFlow(), AdamW(lr=2e-3), steps=2500, batch=64, ema_decay=0.95)
EXPERIMENT = Experiment("huber", {"default": ("Minutes on two CPU cores.", HUBER)}, doc=__doc__)

if __name__ == "__main__":
    EXPERIMENT.main()
