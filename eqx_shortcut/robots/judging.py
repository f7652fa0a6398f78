"""How a policy on Push-T is judged, and the pictures of what it does."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import figures, storage
from .policy import Policy
from .simulation import LIMIT, STARTS, milliseconds, roll_out

if TYPE_CHECKING:
    from ..experiment import Quality
    from ..trained import Trained


def judged(model: "Trained", steps: int, quality: "Quality", folder: storage.Path) -> dict[str, Any]:
    """Scores at this number of steps, from the file of an earlier evaluation if there is one."""
    from ..progress import bar

    asked = {"step": model.step, "steps": steps, "count": quality.count, "seed": quality.seed}
    path = folder / f"{steps}.json"
    found = json.loads(path.read_bytes()) if path.exists() else {}
    if found.get("of") != asked:
        policy = Policy(model, steps=steps, seed=quality.seed)
        with bar(total=LIMIT, desc=f"{quality.count} episodes, {steps} steps", unit="step") as shown:
            episodes = roll_out(policy.act, starts(quality.count), note=lambda step: shown.update(step - shown.n))
        found = {"of": asked, "scores": [episode.score for episode in episodes], "ms": milliseconds(policy.act)}
        folder.mkdir(parents=True, exist_ok=True)
        storage.write(path, json.dumps(found))
    return {"steps": steps, **summary(found["scores"]), "milliseconds a decision": found["ms"]}


def starts(count: int) -> range:
    """Seeds of the starts of an evaluation, the same for all; people started from none of them."""
    return range(STARTS, STARTS + count)


def summary(scores: Sequence[float]) -> dict[str, float]:
    """Mean and standard deviation of scores over episodes, and the share of successes."""
    values = np.array(scores)
    return {"score": float(values.mean()), "score std": float(values.std()), "success": float((values >= 1).mean())}


def animate(models: Sequence[tuple["Trained", int]], folder: storage.Path, *, seed: int = STARTS, strip: int = 8) -> None:
    """Writes episode.gif and episode.png: policies at some number of steps each, side by side from the same start."""
    shown = [roll_out(Policy(model, steps=steps).act, [seed], pictures=True)[0].pictures for model, steps in models]
    longest = max(map(len, shown))
    frames = [[pictures[min(i, len(pictures) - 1)] for pictures in shown] for i in range(longest)]
    images = np.array(frames, np.float32)[:, None] / 127.5 - 1
    figures.animation(images[::2], folder / "episode.gif", side=images.shape[3], milliseconds=100)
    places = np.linspace(0, longest - 1, strip).round().astype(int)
    labels = [f"{steps} step{'s'[: steps > 1]}" for _, steps in models]
    figures.grid(images[places, 0].swapaxes(0, 1), folder / "episode.png", side=images.shape[3], labels=labels)
