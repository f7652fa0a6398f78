"""Push-T: a policy learnt from 206 human demonstrations pushes a T onto its place, in one step of the network a decision.

    pip install 'eqx_shortcut[robots]'
    python experiments/push_t.py --data.path pusht_cchi_v7_replay.zarr                           # a shortcut policy
    python experiments/push_t.py --data.path pusht_cchi_v7_replay.zarr objective:flow-matching   # its baseline

The data (MIT licence): https://diffusion-policy.cs.columbia.edu/data/training/pusht.zip. Writes runs/push_t/NAME/: scores by
number of steps in evaluation.json and quality.png, an episode in episode.gif and episode.png. The same command again continues.
"""

from eqx_shortcut.interrupts import interruptible

with interruptible():
    from eqx_shortcut.experiment import Experiment
    from eqx_shortcut.experiment.config import Checkpointing, Config, Quality
    from eqx_shortcut.models import MLPConfig
    from eqx_shortcut.objectives import Shortcut
    from eqx_shortcut.optimizer import AdamW
    from eqx_shortcut.robots import PushT
    from eqx_shortcut.robots.demonstrations import OBSERVED

DEFAULT = Config(
    data=PushT(),
    network=MLPConfig(hidden=384, depth=3, observed=OBSERVED, predict="data"),
    objective=Shortcut(steps=8, bootstrap_every=2, bootstrap_weight=4.0, label_dropout=0.0),
    optimizer=AdamW(lr=3e-3, schedule="cosine", warmup=200, weight_decay=0.0, clip=1.0),
    steps=8000,
    batch=256,
    ema_decay=0.95,
    sample_every=8000,
    checkpoint=Checkpointing(every=2000),
    quality=Quality(steps=(1, 2, 4, 16, 100), count=50),
)

EXPERIMENT = Experiment("push_t", {"default": ("Four minutes on two cores.", DEFAULT)}, doc=__doc__)

if __name__ == "__main__":
    EXPERIMENT.main()
