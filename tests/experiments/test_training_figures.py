"""What is measured and drawn during a run: there, finite, the same after an interruption, and no trace in the training."""

import dataclasses
import json
import pathlib
import re
import shutil

import jax
import numpy as np
import PIL.Image
import pytest

from commands import in_process, snapshot
from eqx_shortcut import figures, settings, sharding
from eqx_shortcut.data import Digits
from eqx_shortcut.experiment import monitor
from eqx_shortcut.experiment.config import Figures
from eqx_shortcut.experiment.log import read_lines
from eqx_shortcut.experiment.run import Data, Run
from eqx_shortcut.objectives import Shortcut
from eqx_shortcut.trained import Trained
from scripts import script

DEFAULT = script("digits").DEFAULT

STEPS, EVERY = 4, 2
TINY = (
    "--network.hidden 16 --network.depth 1 --network.heads 2 --network.remat none --batch 16 --quality.steps --log-every 3 "
    f"--steps {STEPS} --checkpoint.every {EVERY} --sample-every {STEPS} --objective.steps 4 --objective.bootstrap-every 2"
).split()
WATCHED = f"--figures.every {EVERY} --figures.batches 2 --figures.guidance 2 --figures.count 16 --figures.steps 1 4".split()


def digits(runs: pathlib.Path, *args: str) -> pathlib.Path:
    """The folder of a tiny run of a shortcut model."""
    code, _, err = in_process("digits", [*TINY, "--runs", str(runs), *args])
    assert code == 0, err
    return runs / "digits" / "shortcut"


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A run measured and drawn; do not change it."""
    return digits(tmp_path_factory.mktemp("figures"), *WATCHED)


def test_a_run_leaves_pictures_and_numbers_by_step_size(watched):
    records = {line["step"]: line for line in read_lines(watched / "metrics.jsonl")}
    assert list(records) == [2, 3, 4] and all(np.isfinite(list(line.values())).all() for line in records.values())
    losses = {f"{kind}/{name}" for kind in ("validation", "validation_online") for name in TERMS}
    errors = {f"error/{name}" for name in ("flow/d=1/4", "bootstrap/d=1/2", "bootstrap/d=1")}
    distances = {f"distance/{name}" for name in ("1 step", "4 steps", "4 steps, guidance 2")}
    for step in (2, 4):
        assert {name for name in records[step] if "/" in name} == losses | errors | distances
    assert not [name for name in records[3] if "/" in name]
    assert {path.name for path in watched.iterdir() if path.is_dir()} == {"checkpoints", "samples", "errors", "denoising"}
    for name in ("errors", "denoising"):
        assert sorted(path.name for path in (watched / name).iterdir()) == ["step_0000002.png", "step_0000004.png"]
    assert sorted(path.name for path in (watched / "samples").iterdir()) == ["step_0000004.png", "step_0000004_guided.png"]
    assert (watched / "distances.png").exists() and (watched / "loss.png").exists()


TERMS = ("loss", "loss_flow", "loss_bootstrap")


def test_denoising_has_a_row_a_time_and_step_size_of_eight_images_twice(watched):
    with PIL.Image.open(watched / "denoising" / "step_0000004.png") as picture:
        # The images; flow at four times; t = 1 - d for d = 1 and 1/2; d = 1/2 from noise.
        assert picture.size == (8 + 7 * len("bootstrap, t = 1/2, d = 1/2") + 16 * 68, (1 + 4 + 2 + 1) * 68)


def test_guided_samples_say_where_guidance_is_not_applied(monkeypatch, tmp_path):
    drawn, asked = [], []

    def sample(model, key, count, sampling):
        asked.append(sampling.guidance)
        return jax.numpy.zeros((count, 8, 8, 1))

    monkeypatch.setattr(monitor, "sample", sample)
    monkeypatch.setattr(monitor.figures, "grid", lambda images, path, labels: drawn.append(labels))
    train, held_out = Digits().build()
    model = Trained(None, Shortcut(steps=32, guidance=1.5), (8, 8, 1), 10, 1)
    config = dataclasses.replace(DEFAULT, figures=Figures(guidance=3.0))
    run = Run("digits", config, Data(train, held_out, False), sharding.make_mesh())
    monitor.draw_samples(tmp_path / "grid.png", run, model, guidance=3.0)
    assert set(asked) == {3.0}
    assert drawn[0][0] == "1 step, not guided" and drawn[0][-2:] == ["32 steps, guidance 3", "128 steps, guidance 3"]


def test_an_interrupted_run_measures_and_draws_the_same_bits(watched, tmp_path):
    cut = pathlib.Path(shutil.copytree(watched, tmp_path / "digits" / "shortcut"))
    shutil.rmtree(cut / "checkpoints" / str(STEPS))
    for name in ("errors", "denoising", "samples"):
        shutil.rmtree(cut / name)
    assert digits(tmp_path, *WATCHED) == cut
    assert (cut / "metrics.jsonl").read_bytes() == (watched / "metrics.jsonl").read_bytes()
    drawn = {name: image for name, image in snapshot(watched).items() if name.endswith(".png") and "0002" not in name}
    again = snapshot(cut)
    assert len(drawn) == 6 and {name: again[name] for name in drawn} == drawn


@pytest.mark.slow
def test_a_run_that_is_not_watched_trains_to_the_same_bits_and_may_be_watched_later(watched, tmp_path):
    folder = digits(tmp_path, "--figures.batches", "0")
    trained = {line["step"]: line for line in read_lines(folder / "metrics.jsonl")}
    assert list(trained) == [3, 4] and not (folder / "errors").exists()
    for line in read_lines(watched / "metrics.jsonl"):
        if line["step"] in trained:
            assert trained[line["step"]].items() <= line.items()
    # As a run of an earlier version left it.
    record = settings.read(folder / "config.json")
    del record["figures"]
    (folder / "config.json").write_text(json.dumps(record))
    shutil.rmtree(folder / "checkpoints" / str(STEPS))
    digits(tmp_path, *WATCHED)
    assert settings.read(folder / "config.json") == settings.read(watched / "config.json") | {"figures": WATCHED_RECORD}
    assert (folder / "errors" / "step_0000004.png").read_bytes() == (watched / "errors" / "step_0000004.png").read_bytes()


WATCHED_RECORD = settings.dump(Figures(every=EVERY, batches=2, guidance=2.0, count=16, steps=(1, 4)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"every": 0}, "every=0: use 1 or more"),
        ({"batches": -1}, "batches=-1: use 0 or more"),
        ({"times": 0}, "times=0: use 1 or more"),
        ({"count": 1}, "--figures.count 1: a distance needs 2 samples or more; 0 measures none"),
        ({"count": 8, "steps": (4, 0)}, "steps=(4, 0): use 1 or more"),
    ],
)
def test_settings_that_measure_nothing_sensible_are_refused(change, words):
    with pytest.raises(ValueError, match=f"^{re.escape(words)}"):
        Figures(**change)


def test_plots_leave_out_what_a_logarithm_cannot_show(tmp_path):
    values = np.array([0.0, np.nan, 2.0])
    lines = [("1/4", np.arange(3) / 3, values), ("1", np.zeros(1), np.zeros(1))]
    figures.error_by_time_plot({"flow": lines[:1], "bootstrap": lines}, tmp_path / "errors.png", title="step 1")
    records = [{"step": n, "loss": 1.0, "distance/1 step": value} for n, value in enumerate(values.tolist())]
    figures.metric_plot([*records, {"step": 9, "distance/4 steps": 3.0}], "distance", tmp_path / "distances.png", measure="m")
    figures.loss_plot([record | {"validation/loss": 0.5} for record in records], tmp_path / "loss.png")
    for path, width in (("errors.png", 1104), ("distances.png", 720), ("loss.png", 720)):
        with PIL.Image.open(tmp_path / path) as picture:
            assert picture.size == (width, 480)
            assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 10
