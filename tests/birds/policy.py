"""Sixteen actions in the plane for what a robot sees: python policy.py --data.path demonstrations.npz"""

import pathlib

from eqx_shortcut.experiment import Config, Experiment, Quality
from eqx_shortcut.objectives import Shortcut
from eqx_shortcut.optimizer import AdamW
from policy_parts import Demonstrations, PolicyConfig

DATA = Demonstrations(pathlib.Path("demonstrations.npz"))
OBJECTIVE = Shortcut(steps=32, bootstrap_every=4, label_dropout=0.1)
POLICY = Config(DATA, PolicyConfig(), OBJECTIVE, AdamW(lr=1e-3), steps=5000, quality=Quality(steps=()))
EXPERIMENT = Experiment("policy", {"default": ("Minutes on a laptop.", POLICY)}, doc=__doc__)

if __name__ == "__main__":
    EXPERIMENT.main()
