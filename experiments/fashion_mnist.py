"""Class-conditional Fashion-MNIST of 28 x 28, or any set of the MNIST family in gzipped IDX files.

    apt-get install dataset-fashion-mnist                   # or name a folder with --data.path
    python experiments/fashion_mnist.py                     # a shortcut model
    python experiments/fashion_mnist.py quick               # some six minutes on one CPU core
    python experiments/fashion_mnist.py quick objective:flow-matching --objective.steps 32 --steps 3000
    python experiments/fashion_mnist.py from-flow           # a shortcut model from that flow model, in 500 steps
    python experiments/fashion_mnist.py drifting            # the best one step, from improved MeanFlow (docs/results.md)

The default is meant for a GPU (not measured there).
"""

import dataclasses
import pathlib

from eqx_shortcut.interrupts import interruptible

with interruptible():
    from eqx_shortcut.data import FashionMNIST
    from eqx_shortcut.experiment import Experiment
    from eqx_shortcut.experiment.config import Checkpointing, Config, Quality
    from eqx_shortcut.models import DiTConfig
    from eqx_shortcut.objectives import Drifting, Shortcut
    from eqx_shortcut.optimizer import AdamW

DEFAULT = Config(
    data=FashionMNIST(),
    network=DiTConfig(hidden=192, depth=6, heads=6, patch=4, embed_scale=100),
    objective=Shortcut(steps=64, bootstrap_every=4),
    optimizer=AdamW(lr=1e-3, schedule="cosine", warmup=500, weight_decay=0.0, clip=1.0),
    steps=50_000,
    batch=128,
    ema_decay=0.999,
    sample_every=2500,
    checkpoint=Checkpointing(every=2500),
)
QUICK = dataclasses.replace(
    DEFAULT,
    network=DiTConfig(hidden=128, depth=4, heads=4, patch=7, embed_scale=100),
    objective=Shortcut(steps=32, bootstrap_every=2),
    optimizer=AdamW(lr=8e-3, schedule="cosine", warmup=100, weight_decay=0.0, clip=1.0),
    steps=1500,
    batch=64,
    ema_decay=0.95,
    sample_every=500,
    checkpoint=Checkpointing(every=500),
    quality=Quality(count=1000),
)
FROM_FLOW = dataclasses.replace(
    QUICK,
    optimizer=dataclasses.replace(QUICK.optimizer, lr=4e-3),
    steps=500,
    init_from=pathlib.Path("runs/fashion_mnist/flow-matching"),
    name="from-flow",
)
LOW_RANK = dataclasses.replace(
    FROM_FLOW,
    network=dataclasses.replace(QUICK.network, low_rank=16),
    optimizer=dataclasses.replace(QUICK.optimizer, frozen="/kept/"),
    name="from-flow-low-rank",
)
# Sets of 25 images of one class, in features that do not judge (classifier.py --seed 1); windows see the edges of patches.
OF_SETS = Drifting(groups=10, features=("runs/fashion_mnist/classifier.safetensors", "pixels", "windows/14"))
# After improved MeanFlow with this network.
DRIFTING = dataclasses.replace(
    QUICK,
    network=dataclasses.replace(QUICK.network, step="linear", embed_scale=10.0, predict="data"),
    objective=OF_SETS,
    optimizer=dataclasses.replace(QUICK.optimizer, lr=1e-3, warmup=10),
    steps=80,
    batch=250,
    quality=Quality(count=1000, steps=(1,)),
    init_from=pathlib.Path("runs/fashion_mnist/improved-mean-flow"),
    name="drifting",
)
PRESETS = {
    "default": ("The whole job.", DEFAULT),
    "quick": ("Some six minutes on one CPU core.", QUICK),
    "from-flow": ("A shortcut model from quick's flow model, runs/fashion_mnist/flow-matching or --init-from.", FROM_FLOW),
    "from-flow-low-rank": ("The same by corrections of rank 16 to its blocks (LoRA).", LOW_RANK),
    "drifting": ("One step only, by sets of samples, from runs/fashion_mnist/improved-mean-flow or --init-from.", DRIFTING),
}

EXPERIMENT = Experiment("fashion_mnist", PRESETS, doc=__doc__)

if __name__ == "__main__":
    EXPERIMENT.main()
