"""Class-conditional digits of 8 x 8: trains, samples and judges a one-step generator in minutes on two CPU cores.

    python experiments/digits.py                            # a shortcut model
    python experiments/digits.py objective:flow-matching    # its baseline, same network, batch and steps

Writes runs/digits/NAME/: pictures in samples/, the table in evaluation.json and quality.png, loss.png, checkpoints.
The same command again continues. Expected on two cores: see the README's table.
"""

from eqx_shortcut.interrupts import interruptible

with interruptible():
    import numpy as np

    from eqx_shortcut.data import Digits, Images
    from eqx_shortcut.experiment import Experiment
    from eqx_shortcut.experiment.config import Checkpointing, Config, Quality
    from eqx_shortcut.models import DiTConfig
    from eqx_shortcut.objectives import Shortcut
    from eqx_shortcut.optimizer import AdamW

DEFAULT = Config(
    data=Digits(),
    network=DiTConfig(hidden=192, depth=4, heads=4, patch=4, embed_scale=100),
    objective=Shortcut(steps=32, bootstrap_every=2, bootstrap_weight=4.0),
    optimizer=AdamW(lr=2e-3, schedule="cosine", warmup=100, weight_decay=0.0, clip=1.0),
    steps=2500,
    batch=64,
    ema_decay=0.95,
    sample_every=500,
    checkpoint=Checkpointing(every=500),
    quality=Quality(count=1400),
)


def judge(train: Images, images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Share of images that a classifier gives their label, and the median distance to the nearest training image.

    The classifier is a support vector machine on the training images. A model that repeats training images has nearest
    distances near 0; one that draws new digits has those of held-out images.
    """
    from sklearn.svm import SVC

    from eqx_shortcut.evaluate import nearest_distances

    real = train.scaled().reshape(len(train.labels), -1)
    flat = images.reshape(len(images), -1)
    classifier = SVC(gamma=0.02, C=10)  # pyright: ignore[reportArgumentType]  # its stub knows two words only
    classifier.fit(real, train.labels)
    return {
        "accuracy": float(classifier.score(flat, labels)),
        "nearest": float(np.median(nearest_distances(flat, real))),
    }


EXPERIMENT = Experiment("digits", {"default": ("Four minutes on two cores.", DEFAULT)}, doc=__doc__, judge=judge)

if __name__ == "__main__":
    EXPERIMENT.main()
