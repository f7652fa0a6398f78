"""Encodes images once into a cache of latents, to train from at full speed: the moments of each image and of its mirror image.

    eqx-shortcut encode source:image-folder --source.path photos --vae sd-vae-ft-mse --out latents/photos
    python experiments/images.py --cache latents/photos --vae sd-vae-ft-mse

Writes files of half-precision arrays with checksums. The same command again goes on where it stopped; two runs write the same
bytes. Several processes share the work, each with its own devices, where srun or mpirun started them, or if they are told:

    export JAX_COORDINATOR_ADDRESS=localhost:9911 JAX_NUM_PROCESSES=2
    for i in 0 1; do JAX_PROCESS_ID=$i eqx-shortcut encode ... & done
"""

import dataclasses
import pathlib

from .. import ranges
from ..cli import Place, renamed, room_for
from ..data import ImageSource
from ..ranges import Count


@dataclasses.dataclass(frozen=True)
class Config(ranges.Checked):
    """A cache of latents."""

    source: ImageSource
    """Where the images come from."""
    vae: pathlib.Path
    """Folder or file of the autoencoder."""
    out: Place
    """Folder to write."""
    batch: Count = 16
    """Images encoded at once, over all devices of a process (1 or more)."""
    shard: Count = 8192
    """Images in a file (1 or more)."""


def main(config: Config) -> None:
    """Encodes what is missing and says what it did."""
    from .. import distributed
    from ..data.encode import encode
    from ..pretrained.autoencoder_files import load_autoencoder

    distributed.initialize()
    autoencoder = load_autoencoder(config.vae)
    with room_for(config.out), renamed({"--data.": "--source."}):
        counts = encode(config.source, autoencoder, config.out, batch=config.batch, shard=config.shard, report=print)
    if not distributed.is_main_process():
        return
    sides = ", and their mirror images" if config.source.mirror else ""
    print(f"{config.out}: {counts['train']:,} training and {counts['held_out']:,} held-out images{sides}")
    if counts["replaced"]:
        print(f"bad images replaced by the next good ones: {counts['replaced']}, listed in {config.out}/manifest.json")
