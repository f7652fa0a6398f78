"""Class-conditional ImageNet of 256 x 256 as latents of Stable Diffusion's autoencoder, as in the paper.

    python experiments/imagenet.py data:tfds --data.path FOLDER/imagenet2012/5.1.0 --vae sd-vae-ft-mse --cache latents/imagenet
    python experiments/imagenet.py xl data:image-folder --data.path FOLDER --vae sd-vae-ft-mse --cache latents/imagenet
    python experiments/imagenet.py tiny data:parquet --data.path FOLDER --vae FOLDER         # to try it all on a laptop
    eqx-shortcut import SiT-XL-2-256x256.pt --from sit --out runs/imagenet/sit --vae sd-vae-ft-mse
    python experiments/imagenet.py from-flow data:image-folder --data.path FOLDER --vae sd-vae-ft-mse --cache latents/imagenet

Images: folders train/CLASS/*.JPEG and val/CLASS/*.JPEG (data:image-folder), the Hugging Face files (data:parquet), or
TensorFlow Datasets' imagenet2012 (data:tfds). Without --cache every step encodes its images. Weights: `hf download
stabilityai/sd-vae-ft-mse config.json diffusion_pytorch_model.safetensors --local-dir sd-vae-ft-mse`. Hardware: meant for
GPUs of 80 GiB or a TPU; time and quality not measured by us. Published (Frans et al. 2024, tables 1 and 2), FID of 50,000
samples in 128, 4 and 1 steps: `b` 15.5, 28.3, 40.3; `xl` 3.8, 7.8, 10.6.
"""

import dataclasses
import pathlib

from eqx_shortcut.interrupts import interruptible

with interruptible():
    import celeba
    from eqx_shortcut.data import LatentImages
    from eqx_shortcut.experiment import Experiment
    from eqx_shortcut.models.dit import preset
    from eqx_shortcut.objectives import MeanFlow, Shortcut

DATA = LatentImages(classes=1000)
B = dataclasses.replace(
    celeba.DEFAULT,
    data=DATA,
    objective=Shortcut(steps=128, bootstrap_every=8, guidance=1.5, label_dropout=0.1),
    steps=810_000,
    batch=256,
    unconditional=False,
)
TINY = dataclasses.replace(celeba.TINY, data=DATA, unconditional=False)
# SiT's network, and a tenth of the steps from scratch at the same rate; corrections of low rank stand a higher one.
SIT = dataclasses.replace(preset("XL/2"), logits="root")
FROM_FLOW = dataclasses.replace(B, network=SIT, steps=81_000, init_from=pathlib.Path("runs/imagenet/sit"), name="from-flow")
LOW_RANK = dataclasses.replace(
    FROM_FLOW,
    network=dataclasses.replace(SIT, low_rank=16),
    optimizer=dataclasses.replace(B.optimizer, lr=1e-3, weight_decay=0.0, frozen="/kept/"),
    name="from-flow-low-rank",
)
SPLIT = dataclasses.replace(
    FROM_FLOW,
    network=dataclasses.replace(SIT, split=20, step="none"),
    objective=MeanFlow(),
    steps=400_000,
    name="from-flow-split",
)
PRESETS = {
    "b": ("DiT-B/2, the paper's settings of its table 1.", B),
    "xl": ("DiT-XL/2, the paper's largest network.", dataclasses.replace(B, network=preset("XL/2"))),
    "tiny": ("A tiny network for 300 steps, to try the pipeline.", TINY),
    "from-flow": ("A shortcut model from a flow model, the SiT-XL/2 imported as runs/imagenet/sit or --init-from.", FROM_FLOW),
    "from-flow-low-rank": ("The same by corrections of rank 16 to its blocks (LoRA).", LOW_RANK),
    "from-flow-split": ("MeanFlow from it, whose last 8 blocks see the end of the step (decoupled MeanFlow).", SPLIT),
}

EXPERIMENT = Experiment("imagenet", PRESETS, doc=__doc__)

if __name__ == "__main__":
    EXPERIMENT.main()
