"""Computes statistics of real images to compare samples with: mean and covariance of features, and some of the features.

    eqx-shortcut stats data:image-folder --data.path imagenet --out imagenet256.npz
    eqx-shortcut stats --features efficientnet data:cifar10 --out cifar10.npz

Writes an .npz of mu and sigma, as other tools read it, with the protocol of the features, the count and a hash. The same
command again goes on where it stopped.
"""

import dataclasses
import pathlib
from typing import Annotated

import tyro

from .. import distributed, settings
from ..data import CIFAR10, Digits, FashionMNIST, ImageSource
from ..evaluate import read_statistics
from ..evaluate.parts import Measuring, notes_as_lines, write_real

AnyImages = (
    ImageSource
    | Annotated[CIFAR10, tyro.conf.subcommand("cifar10")]
    | Annotated[FashionMNIST, tyro.conf.subcommand("fashion-mnist")]
    | Annotated[Digits, tyro.conf.subcommand("digits")]
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Measuring):
    """Statistics of real images."""

    data: AnyImages
    """Where the images are."""
    held_out: bool = False
    """Use the held-out images instead of the training images."""
    out: pathlib.Path
    """File to write, .npz."""

    def __post_init__(self):
        super().__post_init__()
        if self.out.suffix != ".npz" or not self.out.absolute().parent.is_dir():
            raise ValueError(f"--out {self.out}: name an .npz file in a folder that exists")


def main(config: Config) -> None:
    """Makes the file and says what it holds."""
    distributed.initialize()
    notes_as_lines()
    if config.out.exists():
        raise ValueError(f"{config.out} exists: remove it, or name another file with --out")
    train, held_out = config.data.build()
    record = {"images": settings.dump(config.data), "part": "held out" if config.held_out else "train"}
    write_real(config, config.out, record, held_out if config.held_out else train, config.build())
    if distributed.is_main_process():
        found = read_statistics(config.out)
        print(f"{config.out}: {found.count:,} images, {found.vectors.mean.size} features, {found.provenance}")
