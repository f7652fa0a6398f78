"""Samples that are NaN or infinite become no picture and no file: the command ends in one sentence."""

import pathlib

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from commands import in_process, snapshot
from eqx_shortcut import figures, settings, sharding, trained
from eqx_shortcut.commands._opening import finite
from eqx_shortcut.data import Digits
from eqx_shortcut.experiment import monitor
from eqx_shortcut.experiment.run import Data, Run
from runs import write_run
from scripts import script

LINES = {
    "picture": "sample {run} --steps 1 --count 2 --out a.png",
    "array": "sample {run} --steps 1 --count 2 --out a.npz",
    "pairs": "pairs {run} --steps 1 --count 2 --out pairs",
    "interpolation": "interpolate {run} --rows 1 --points 2 --columns 2 --out a.png",
    "trajectory": "trajectory {run} --steps 1 --columns 2 --out a.png",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_run(tmp_path_factory.mktemp("finite") / "run")


def spoilt(model: trained.Trained, value: float) -> trained.Trained:
    """The model with this in place of all its weights."""
    return jax.tree.map(lambda leaf: jnp.full_like(leaf, value) if eqx.is_inexact_array(leaf) else leaf, model)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("line", LINES)
def test_a_command_says_that_samples_are_not_finite(run, line, value, tmp_path, monkeypatch):
    load = trained.load
    monkeypatch.setattr(trained, "load", lambda *args, **options: spoilt(load(*args, **options), value))
    monkeypatch.chdir(tmp_path)
    name, *args = LINES[line].format(run=run).split()
    code, _, err = in_process(name, args)
    assert code == 1 and "are not finite" in err.splitlines()[-1] and "Traceback" not in err
    assert not [path for path in snapshot(tmp_path) if not path.endswith("pairs.json") and not path.endswith("manifest.json")]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_not_finite_are_not_judged(value, tmp_path, monkeypatch):
    run = write_run(tmp_path / "run", shape=(8, 8, 1), data=settings.dump(Digits()))
    load, before = trained.load, snapshot(run)
    monkeypatch.setattr(trained, "load", lambda *args, **options: spoilt(load(*args, **options), value))
    code, _, err = in_process("evaluate", f"{run} --features pixels --steps 1 --count 2 --batch 2".split())
    assert code == 1 and "2 of 2 samples of" in err.splitlines()[-1] and "Traceback" not in err
    assert [path for path in snapshot(run).keys() - before.keys() if not path.startswith("evaluation/real-")] == []


@pytest.mark.parametrize(("value", "label"), [(np.nan, "1 step, NOT FINITE"), (None, "1 step")])
def test_a_picture_during_training_says_that_its_samples_are_not_finite(run, value, label, tmp_path, monkeypatch, capsys):
    drawn = {}
    monkeypatch.setattr(figures, "grid", lambda images, path, labels: drawn.update(zip(labels, images, strict=True)))
    monkeypatch.setattr(monitor, "GRID_STEPS", (1,))
    monkeypatch.setattr(monitor, "GRID_COLUMNS", 2)
    model = trained.load(run) if value is None else spoilt(trained.load(run), value)
    data = Data(*Digits().build(), mirror=False, source=Digits())
    monitor.draw_samples(tmp_path / "a.png", Run("digits", script("digits").DEFAULT, data, sharding.make_mesh()), model)
    assert drawn.keys() == {label} and np.isfinite(drawn[label]).all()
    assert (drawn[label] == 0).all() == (value is not None)  # grey
    warning = "warning: samples after step 1 are not finite in 1 steps: a smaller learning rate may help\n"
    assert capsys.readouterr().err == warning * (value is not None)


@pytest.mark.parametrize(("bad", "said"), [(np.nan, "1 of 3"), (np.inf, "1 of 3"), (-np.inf, "1 of 3")])
def test_one_bad_number_makes_a_bad_sample(bad, said):
    samples = np.zeros((3, 2, 2))
    np.testing.assert_array_equal(finite(samples, pathlib.Path("run")), samples)
    samples[1, 0, 1] = bad
    with pytest.raises(ValueError, match=f"^{said} samples of run are not finite"):
        finite(samples, pathlib.Path("run"))
