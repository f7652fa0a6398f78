"""LSUN churches of 256 x 256 as latents of Stable Diffusion's autoencoder, without labels.

    python experiments/lsun.py data:tfds --data.path FOLDER/lsunc/1.0.0 --vae sd-vae-ft-mse --cache latents/lsun
    python experiments/lsun.py tiny data:image-folder --data.path photos --vae FOLDER        # to try it all on a laptop

Images: a folder of photos (data:image-folder), or the data set `lsunc` of kvfrans/tfds_builders (data:tfds). Without --cache
every step encodes its images. Weights: `hf download stabilityai/sd-vae-ft-mse config.json diffusion_pytorch_model.safetensors
--local-dir sd-vae-ft-mse`. Hardware: meant for one GPU of 24 GiB or more, or a TPU; time and quality not measured by us. The
paper gives no FID for it. Settings are those of CelebA-HQ.
"""

from eqx_shortcut.interrupts import interruptible

with interruptible():
    from celeba import PRESETS
    from eqx_shortcut.experiment import Experiment

EXPERIMENT = Experiment("lsun", PRESETS, doc=__doc__)

if __name__ == "__main__":
    EXPERIMENT.main()
