"""Latents of images, encoded once: the moments of each image and of its mirror image, to train from at full speed.

python experiments/encode_latents.py source:image-folder --source.path photos --vae sd-vae-ft-mse --out latents/photos
python experiments/images.py --cache latents/photos --vae sd-vae-ft-mse

Writes files of half-precision arrays with checksums. The same command again goes on where it stopped; two runs write the same
bytes. Every process takes its share of the files and uses its own devices.
"""

import dataclasses
import pathlib
import sys

import tyro

from config import ImageSource


@dataclasses.dataclass(frozen=True)
class Config:
    """A cache of latents."""

    source: ImageSource
    """Where the images come from."""
    vae: pathlib.Path
    """Folder or file of the autoencoder."""
    out: pathlib.Path
    """Folder to write."""
    batch: int = 16
    """Images encoded at once, over all devices of a process."""
    shard: int = 8192
    """Images in a file."""

    def __post_init__(self):
        for field in ("batch", "shard"):
            if getattr(self, field) < 1:
                raise ValueError(f"--{field} {getattr(self, field)}: use 1 or more")


def main(config: Config) -> None:
    """Encodes what is missing and says what it did."""
    from encoding import encode
    from eqx_shortcut.models.pretrained import load_autoencoder

    counts = encode(config.source, load_autoencoder(config.vae), config.out, batch=config.batch, shard=config.shard)
    sides = ", and their mirror images" if config.source.mirror else ""
    print(f"{config.out}: {counts['train']:,} training and {counts['held_out']:,} held-out images{sides}")
    if counts["replaced"]:
        print(f"bad images replaced by the next good ones: {counts['replaced']}, listed in {config.out}/manifest.json")


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__, config=(tyro.conf.CascadeSubcommandArgs,)))
    except OSError as error:
        print(f"error: {error}: free space or make the folder writable, then repeat the same command", file=sys.stderr)
        sys.exit(1)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
