"""Class-conditional CIFAR-10 of 32 x 32 from Hugging Face parquet files.

    python experiments/cifar10.py --data.path FOLDER        # a shortcut model; FOLDER holds train-*.parquet, test-*.parquet
    python experiments/cifar10.py quick --data.path FOLDER  # some ten minutes on two CPU cores

The default is meant for a GPU (not measured there).
"""

import dataclasses

from eqx_shortcut.interrupts import interruptible

with interruptible():
    from eqx_shortcut.data import CIFAR10
    from eqx_shortcut.experiment import Experiment
    from eqx_shortcut.experiment.config import Checkpointing, Config, Quality
    from eqx_shortcut.models import DiTConfig
    from eqx_shortcut.models.dit import preset
    from eqx_shortcut.objectives import Shortcut
    from eqx_shortcut.optimizer import AdamW

DEFAULT = Config(
    data=CIFAR10(),
    network=dataclasses.replace(preset("S/2"), embed_scale=100, dropout=0.1),
    objective=Shortcut(steps=128, bootstrap_every=4),
    optimizer=AdamW(lr=3e-4, schedule="cosine", warmup=2000, weight_decay=0.0, clip=1.0),
    steps=200_000,
    batch=256,
    ema_decay=0.9995,
    sample_every=5000,
    checkpoint=Checkpointing(every=5000),
)
QUICK = dataclasses.replace(
    DEFAULT,
    network=DiTConfig(hidden=128, depth=4, heads=4, patch=4, embed_scale=100),
    objective=Shortcut(steps=32, bootstrap_every=2),
    optimizer=AdamW(lr=2e-3, schedule="cosine", warmup=100, weight_decay=0.0, clip=1.0),
    steps=1000,
    batch=64,
    ema_decay=0.95,
    sample_every=500,
    checkpoint=Checkpointing(every=500),
    quality=Quality(steps=(1, 2, 4, 8, 32), count=1000),
)
COMPARE = dataclasses.replace(
    DEFAULT,
    optimizer=AdamW(lr=4e-4, schedule="cosine", warmup=500, weight_decay=0.0, clip=1.0),
    steps=12_000,
    ema_decay=0.999,
    checkpoint=Checkpointing(every=2000),
)
PRESETS = {
    "default": ("The whole job.", DEFAULT),
    "compare": ("A run of compare.py: under 20 minutes on one GPU is expected, not measured.", COMPARE),
    "quick": ("Some ten minutes on two CPU cores.", QUICK),
}

EXPERIMENT = Experiment("cifar10", PRESETS, doc=__doc__)

if __name__ == "__main__":
    EXPERIMENT.main()
