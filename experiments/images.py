"""Your own images, of any size: as latents of an autoencoder, or in pixels.

    python experiments/images.py data:image-folder --data.path photos --vae sd-vae-ft-mse --cache latents/photos
    python experiments/images.py tiny data:image-folder --data.path photos --vae FOLDER      # to try it all on a laptop
    python experiments/images.py pixels data:image-folder --data.path photos --data.size 64  # small ones, as they are

Images: one folder of photos, or one folder a class (data:image-folder), or other formats (data:parquet, data:tfds,
data:arrays). Each is cropped to its central square and resized to --data.size. Without --cache every step encodes its images.
Weights: any autoencoder of diffusers (AutoencoderKL, -Tiny, -DC, -RAE) or of madebyollin/taesd, such as `hf download
stabilityai/sd-vae-ft-mse config.json diffusion_pytorch_model.safetensors --local-dir sd-vae-ft-mse`. Hardware: meant for one
GPU; time and quality not measured by us, and nothing is published for them.
"""

import dataclasses
import pathlib

from eqx_shortcut.interrupts import interruptible

with interruptible():
    import celeba
    import cifar10
    from eqx_shortcut.data import ImageFolder
    from eqx_shortcut.experiment import Experiment
    from eqx_shortcut.experiment.config import Checkpointing
    from eqx_shortcut.models.dit import preset

DEFAULT = dataclasses.replace(
    celeba.DEFAULT,
    network=preset("S/2"),
    steps=100_000,
    unconditional=False,
    sample_every=5000,
    checkpoint=Checkpointing(every=5000),
)
# As CIFAR-10 is trained, in patches of 4 pixels.
PIXELS = dataclasses.replace(
    cifar10.DEFAULT,
    data=ImageFolder(path=pathlib.Path("photos"), size=64),
    network=dataclasses.replace(cifar10.DEFAULT.network, patch=4),
)
PRESETS = {
    "default": ("DiT-S/2 for 100,000 steps.", DEFAULT),
    "tiny": ("A tiny network for 300 steps, to try the pipeline.", dataclasses.replace(celeba.TINY, unconditional=False)),
    "pixels": ("DiT-S/4 in pixels, without an autoencoder, judged at the end.", PIXELS),
}

EXPERIMENT = Experiment("images", PRESETS, doc=__doc__)

if __name__ == "__main__":
    EXPERIMENT.main()
