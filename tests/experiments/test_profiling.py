"""The trace of a few steps: begun and ended where asked, whole when a run ends early, and refused with the rule."""

import pathlib

import jax
import jax.numpy as jnp
import pytest

from eqx_shortcut.experiment.config import profiled
from eqx_shortcut.experiment.records import Profile
from eqx_shortcut.objectives import Networks
from eqx_shortcut.train import TrainState

STATE = TrainState(jnp.int32(0), jax.random.key(0), Networks(None, None), None, jnp.int32(0), jnp.int32(0))


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was asked of the profiler."""
    asked: list[str] = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: asked.append(f"start {folder}"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: asked.append("stop"))
    return asked


@pytest.mark.parametrize(
    ("start", "calls"),
    [(1, ["", "start t", "", "stop", ""]), (2, ["start t", "", "stop", ""]), (3, ["", "", ""])],
)
def test_steps_3_to_4_are_traced(begun: list[str], start: int, calls: list[str]):
    """Of a run from `start` to step 5: what each moment between steps asks for; a run that starts in between traces nothing."""
    profile, found = Profile(pathlib.Path("t"), "3:4", start=start, until=5), [begun[-1] if begun else ""]
    for step in range(start + 1, 6):
        before = len(begun)
        profile(step, STATE, {"loss": jnp.zeros(())})
        found.append("".join(begun[before:]))
    assert found == calls
    profile.close()
    assert begun.count("stop") == ("start t" in begun)


def test_a_run_that_ends_early_keeps_its_trace(begun: list[str]):
    profile = Profile(pathlib.Path("t"), "1:9", start=0, until=9)
    profile.close()
    profile.close()
    assert begun == ["start t", "stop"]


@pytest.mark.parametrize(("start", "until", "said"), [(0, 9, False), (2, 9, False), (3, 9, True), (0, 2, True)])
def test_steps_that_the_run_does_not_come_to_are_said(begun: list[str], capsys, start: int, until: int, said: bool):
    Profile(pathlib.Path("t"), "3:4", start=start, until=until).close()
    assert ("note: --profile 3:4 traces nothing: this is steps" in capsys.readouterr().out) == said


def test_a_trace_is_written(tmp_path: pathlib.Path):
    profile = Profile(tmp_path / "profile", "1:1", start=0, until=1)
    profile(1, STATE, {"loss": jnp.ones(()) + 1})
    assert len(list(tmp_path.rglob("*.xplane.pb"))) == 1


@pytest.mark.parametrize("steps", ["3:2", "0:4", "3", "a:b", ":", "-1:2"])
def test_a_range_that_is_none_is_refused(steps: str):
    with pytest.raises(ValueError, match=f"--profile {steps}: name the first and the last step"):
        profiled(steps)
