"""Birds of 64 x 64 with my own network: python birds.py --data.path photos; --help lists every option."""

import pathlib

from birds_network import UNetConfig  # in a module of its own, so that the run can be opened again
from eqx_shortcut.data import ImageFolder
from eqx_shortcut.experiment import Config, Experiment
from eqx_shortcut.objectives import Shortcut
from eqx_shortcut.optimizer import AdamW

PHOTOS = ImageFolder(path=pathlib.Path("photos"), size=64)
BIRDS = Config(PHOTOS, UNetConfig(), Shortcut(steps=32, bootstrap_every=4), AdamW(lr=1e-3), steps=20_000)

if __name__ == "__main__":
    Experiment("birds", {"default": ("A day on one GPU.", BIRDS)}, doc=__doc__).main()
