"""CelebA-HQ of 256 x 256 as latents of Stable Diffusion's autoencoder, without labels, as in the paper.

    python experiments/celeba.py data:tfds --data.path FOLDER/celebahq256/1.0.0 --vae sd-vae-ft-mse --cache latents/celeba
    python experiments/celeba.py tiny data:image-folder --data.path photos --vae FOLDER      # to try it all on a laptop

Images: a folder of photos (data:image-folder), or the data set `celebahq256` of kvfrans/tfds_builders (data:tfds). Without
--cache every step encodes its images. Weights: `hf download stabilityai/sd-vae-ft-mse config.json
diffusion_pytorch_model.safetensors --local-dir sd-vae-ft-mse`. Hardware: meant for one GPU of 24 GiB or more, or a TPU; time
and quality not measured by us. Published (Frans et al. 2024, table 1), FID of 50,000 samples in 128, 4 and 1 steps: 6.9, 13.8,
20.5.
"""

import dataclasses

from eqx_shortcut.interrupts import interruptible

with interruptible():
    from eqx_shortcut.data import LatentImages
    from eqx_shortcut.experiment import Experiment
    from eqx_shortcut.experiment.config import Checkpointing, Config, Quality
    from eqx_shortcut.models.dit import preset
    from eqx_shortcut.objectives import Shortcut
    from eqx_shortcut.optimizer import AdamW

DEFAULT = Config(
    data=LatentImages(),
    network=preset("B/2"),
    objective=Shortcut(steps=128, bootstrap_every=8, label_dropout=0.1),
    optimizer=AdamW(lr=1e-4, weight_decay=0.1),
    steps=410_000,
    batch=64,
    ema_decay=0.999,
    unconditional=True,
    log_every=100,
    sample_every=20_000,
    checkpoint=Checkpointing(every=10_000),
    quality=Quality(steps=()),
)
TINY = dataclasses.replace(
    DEFAULT,
    network=preset("tiny"),
    objective=Shortcut(steps=32, bootstrap_every=2),
    optimizer=AdamW(lr=1e-3, weight_decay=0.0, warmup=50, clip=1.0),
    steps=300,
    batch=16,
    ema_decay=0.98,
    log_every=10,
    sample_every=300,
    checkpoint=Checkpointing(every=100),
)
PRESETS = {
    "b": ("DiT-B/2, the paper's settings.", DEFAULT),
    "tiny": ("A tiny network for 300 steps, to try the pipeline.", TINY),
}

EXPERIMENT = Experiment("celeba", PRESETS, doc=__doc__)

if __name__ == "__main__":
    EXPERIMENT.main()
