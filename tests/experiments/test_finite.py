"""Samples that are NaN or infinite become no picture and no file: the command ends in one sentence."""

import pathlib

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from commands import in_process, snapshot
from eqx_shortcut import trained
from eqx_shortcut.commands._opening import finite
from runs import write_run

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


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("line", LINES)
def test_a_command_says_that_samples_are_not_finite(run, line, value, tmp_path, monkeypatch):
    load = trained.load

    def broken(*args, **options):
        spoil = lambda leaf: jnp.full_like(leaf, value) if eqx.is_inexact_array(leaf) else leaf  # noqa: E731
        return jax.tree.map(spoil, load(*args, **options))

    monkeypatch.setattr(trained, "load", broken)
    monkeypatch.chdir(tmp_path)
    name, *args = LINES[line].format(run=run).split()
    code, _, err = in_process(name, args)
    assert code == 1 and "are not finite" in err.splitlines()[-1] and "Traceback" not in err
    assert not [path for path in snapshot(tmp_path) if not path.endswith("pairs.json") and not path.endswith("manifest.json")]


@pytest.mark.parametrize(("bad", "said"), [(np.nan, "1 of 3"), (np.inf, "1 of 3"), (-np.inf, "1 of 3")])
def test_one_bad_number_makes_a_bad_sample(bad, said):
    samples = np.zeros((3, 2, 2))
    np.testing.assert_array_equal(finite(samples, pathlib.Path("run")), samples)
    samples[1, 0, 1] = bad
    with pytest.raises(ValueError, match=f"^{said} samples of run are not finite"):
        finite(samples, pathlib.Path("run"))
