"""The options shared by commands on a trained run, and how they open it: its weights, autoencoder and class names."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import tyro

from .. import ranges
from ..cli import Place
from ..ranges import Finite, Natural, Positive, Share

if TYPE_CHECKING:
    from ..sampling import Sampling
    from ..trained import Trained


Weights = Literal["ema", "online"] | float
"""The weights of a run to load (see eqx_shortcut.load)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingOptions(ranges.Checked):
    """Options of samplers; `sampling` is the value that they make."""

    guidance_interval: tuple[Share, Share] | None = None
    """Guide only steps that start between these times (0 noise, 1 data); by default all, or as in training (0 to 1)."""
    guide_always: bool = False
    """Guide also at step sizes where the network contains the guidance it was trained with."""
    sampler: Literal["own", "euler", "heun", "midpoint", "consistency"] = "own"
    """Loop over the steps: the objective's own, or another."""
    time_shift: Positive = 1.0
    """Spacing of the steps of a named --sampler: above 1 denser near the noise, below 1 near the data (more than 0)."""

    def sampling(self, steps: int, guidance: float) -> "Sampling":
        """The options as a `Sampling`. Raises ValueError for a shift of the times without a named sampler."""
        from .. import samplers
        from ..sampling import Sampling

        if self.sampler == "own" and self.time_shift != 1:
            raise ValueError(f"--time-shift {self.time_shift:g} changes the times of a named sampler: name it with --sampler")
        times = None if self.time_shift == 1 else samplers.Shifted(self.time_shift)
        chosen = None if self.sampler == "own" else samplers.Sampler(getattr(samplers, self.sampler), times)
        return Sampling(steps, guidance, self.guidance_interval, self.guide_always, chosen)


@dataclasses.dataclass(frozen=True)
class Opening(SamplingOptions):
    """A trained run, and how it is sampled."""

    run: Annotated[Place, tyro.conf.Positional]
    """Run folder."""
    guidance: Finite = 1.0
    """Guidance scale; 1 is none."""
    weights: Weights = "ema"
    """ema (the average of the weights), online (the last ones), or the relative width of an average (see --averages)."""
    step: Natural | None = None
    """Training step of the checkpoint; by default the newest (0 or more)."""
    vae: pathlib.Path | None = None
    """Folder or file of the autoencoder of a run on latents; by default where it was during training."""


@dataclasses.dataclass(frozen=True)
class Drawing(Opening):
    """Classes and noise of what is drawn."""

    labels: tuple[Natural, ...] = ()
    """Labels, repeated as often as needed; by default all in turn (0 or more)."""
    classes: Annotated[tuple[str, ...], tyro.conf.arg(name="class")] = ()
    """Classes by name instead of LABELS: "golden retriever" of ImageNet, "ankle boot" of Fashion-MNIST."""


class Opened(NamedTuple):
    """A run's network, and the way from its samples to pictures in [-1, 1] on the host, or to numbers if not `drawable`."""

    model: "Trained"
    pictures: Callable[[Any], Any]
    drawable: bool = True


def open_run(config: Opening, *, drawn: bool = True) -> Opened:
    """The run that a command line names. Raises ValueError if it is to be `drawn` and its samples cannot become pictures."""
    import numpy as np

    from ..decoding import pictures
    from ..trained import load

    model = load(config.run, weights=config.weights, step=config.step)
    draw = pictures(config.run, vae=config.vae)
    whole = functools.partial(finite, run=config.run)
    if draw is not None:
        return Opened(model, lambda samples: whole(draw(whole(samples))))
    if drawn:
        raise ValueError(
            f"samples of {config.run} are of shape {model.shape} and no pictures: name an autoencoder with --vae if they are "
            "latents, or write numbers by eqx-shortcut sample --out FILE.npz"
        )
    return Opened(model, lambda samples: np.asarray(whole(samples)), drawable=False)


def finite(samples: Any, run: pathlib.Path) -> Any:
    """The same samples (or pictures of them). Raises ValueError if some are NaN or infinite."""
    import numpy as np

    found = np.asarray(samples)
    if bad := int((~np.isfinite(found)).reshape(len(found), -1).any(axis=1).sum()):
        raise ValueError(
            f"{bad} of {len(found)} samples of {run} are not finite and nothing is made of them: its training diverged, or the "
            "guidance is too strong; try an earlier --step, other --weights, or --guidance 1"
        )
    return samples


def chosen_labels(config: Drawing, model: "Trained") -> tuple[list[int] | list[None], list[str]]:
    """The labels to draw, by default all in turn, and their names; prints the classes that names stand for.

    Of a run without conditions the one label is None.
    """
    import numpy as np

    from ..data.names import find
    from ..trained import check_labels
    from ..types import shown

    if config.labels and config.classes:
        raise ValueError(
            f"--labels {' '.join(map(str, config.labels))} and --class {' '.join(map(repr, config.classes))} both say what to "
            "sample: give one of the two"
        )
    if not (model.conditional or config.labels or config.classes):
        return [None], ["no label"]
    if model.conditional and model.null is not None:
        raise ValueError(
            f"conditions of {config.run} are {shown(model.null)}, not labels: sample for some of them, with "
            "eqx-shortcut sample --conditions FILE.npz (an array for each name, with a leading axis) or FILE.npy"
        )
    if not config.classes:
        labels = config.labels or (range(model.classes) if model.labelled else [model.classes])
        check_labels(model, np.array(labels))
        return list(labels), [f"label {label}" if label < model.classes else "no label" for label in labels]
    names = class_names(config.run)
    labels = [find(names, name) for name in config.classes]
    print(f"labels {', '.join(f'{label} ({names[label]})' for label in labels)}")
    return labels, [names[label] for label in labels]


def class_names(run: pathlib.Path) -> tuple[str, ...]:
    """Names of the run's classes: those of its data, or ImageNet's for 1,000. Raises ValueError if neither is as many."""
    from .. import settings
    from ..data.names import display_names

    record = settings.read(run / "config.json")
    source = settings.find_class(record["data"]["kind"]) if record.get("data") else None
    recorded = (record.get("identity") or {}).get("names") or getattr(source, "names", ())
    if names := display_names(recorded if len(recorded) == record["classes"] else (), record["classes"]):
        return names
    raise ValueError(f"the {record['classes']} classes of {run} have no names: choose them by number with --labels")


def evenly(count: int, chosen: int) -> list[int]:
    """Indices of `chosen` of `count` points, evenly spread from the first to the last; of all points if there are fewer."""
    chosen = min(count, chosen)
    return [round(i * (count - 1) / max(1, chosen - 1)) for i in range(chosen)]
