"""Reaching around an obstacle, above or below: what a policy of one step needs, in a minute and without any file.

    python experiments/reach.py                            # a shortcut policy
    python experiments/reach.py objective:flow-matching    # its baseline, which takes the mean of both ways in one step

Writes runs/reach/NAME/: paths.png, and shares of success in evaluation.json and quality.png.
"""

from eqx_shortcut.interrupts import interruptible

with interruptible():
    from eqx_shortcut.experiment import Experiment
    from eqx_shortcut.experiment.config import Checkpointing, Config, Quality
    from eqx_shortcut.models import MLPConfig
    from eqx_shortcut.objectives import Shortcut
    from eqx_shortcut.optimizer import AdamW
    from eqx_shortcut.robots import Reach

DEFAULT = Config(
    data=Reach(),
    network=MLPConfig(hidden=64, depth=2, observed=4, embed_scale=12.0),
    objective=Shortcut(steps=8, bootstrap_every=2, bootstrap_weight=4.0, label_dropout=0.0),
    optimizer=AdamW(lr=4e-3, schedule="cosine", warmup=50, weight_decay=0.0, clip=1.0),
    steps=2500,
    batch=128,
    ema_decay=0.98,
    sample_every=2500,
    checkpoint=Checkpointing(every=2500),
    quality=Quality(steps=(1, 2, 4, 16), count=1000),
)

EXPERIMENT = Experiment("reach", {"default": ("A minute on two cores.", DEFAULT)}, doc=__doc__)

if __name__ == "__main__":
    EXPERIMENT.main()
