"""A flow map distilled from a run by another that is worse, as the trainer does it: told its scales, of data and wide noise."""

import dataclasses
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqx_shortcut
from eqx_shortcut.data.points import PlanePoints
from eqx_shortcut.experiment.config import Config, Quality
from eqx_shortcut.models import MLPConfig
from eqx_shortcut.objectives import FlowMatching, Lagrangian, MidTraining
from eqx_shortcut.sampling import Sampling
from scripts import script

pytestmark = pytest.mark.slow
toy2d = script("toy2d")
NETWORK = MLPConfig(hidden=8, depth=1, frequencies=4, guided="scale", predict="data")


def config_of(objective, runs: pathlib.Path, name: str, steps: int = 2, **more) -> Config:
    chosen = {"data": PlanePoints(count=2000), "network": NETWORK, "quality": Quality(steps=()), "noise_scale": 2.0}
    return dataclasses.replace(
        toy2d.preset(FlowMatching), objective=objective, runs=runs, name=name, steps=steps, batch=16, **chosen, **more
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """With a run of flow matching, and itself once more as the worse one."""
    found = tmp_path_factory.mktemp("runs")
    toy2d.EXPERIMENT.run(config_of(FlowMatching(steps=4, time_mean=-0.8), found, "flow"))
    shutil.copytree(found / "toy2d" / "flow", found / "toy2d" / "worse")
    return found


def test_a_run_with_two_teachers_goes_on_and_samples_at_the_scale_it_is_told(runs, capsys):
    teachers = {"teacher": runs / "toy2d" / "flow", "weak_teacher": runs / "toy2d" / "worse"}
    objective = Lagrangian(distil=True, max_scale=3.0, bootstrap_every=4, log_variance=False)
    for steps, words in ((1, "weak teacher: "), (2, "continuing after step 1")):
        toy2d.EXPERIMENT.run(config_of(objective, runs, "map", steps, **teachers))
        assert words in capsys.readouterr().out
    model, key = eqx_shortcut.load(runs / "toy2d" / "map"), jax.random.key(0)
    assert model.noise_scale == 2 and 1 < float(eqx_shortcut.trained.noise(model, key, jnp.arange(100)).std()) < 3
    assert np.isfinite(eqx_shortcut.sample(model, key, 4, Sampling(2, guidance=3.0))).all()
    with pytest.raises(ValueError, match="guidance 4 is not in 1 to 3, the scales that the network is told"):
        eqx_shortcut.sample(model, key, 4, Sampling(2, guidance=4.0))
    toy2d.EXPERIMENT.run(config_of(objective, runs, "map", dry_run=True, **teachers))
    assert "weak teacher 0.00" in capsys.readouterr().out


def test_mid_training_makes_first_weights(runs, capsys):
    teacher = runs / "toy2d" / "flow"
    toy2d.EXPERIMENT.run(config_of(MidTraining(rollout=4), runs, "mid", 1, teacher=teacher))
    toy2d.EXPERIMENT.run(config_of(Lagrangian(bootstrap_every=4), runs, "after", 1, init_from=runs / "toy2d" / "mid"))
    assert "first weights: " in capsys.readouterr().out
