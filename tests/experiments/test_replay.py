"""A run that is watched trains to the same bits, and a step of it computed again is the step that it was."""

import json
import os
import pathlib
import shutil
import signal
from collections.abc import Iterator

import jax
import numpy as np
import PIL.Image
import pytest

import eqx_shortcut
from commands import in_process, snapshot
from eqx_shortcut import settings
from eqx_shortcut.data import Digits
from eqx_shortcut.experiment import health, replay, training
from eqx_shortcut.experiment.judging import Measures
from eqx_shortcut.experiment.log import read_lines
from eqx_shortcut.experiment.monitor import Monitor

STEPS = 6
TINY = (
    "--network.hidden 16 --network.depth 2 --network.heads 2 --network.remat none --batch 16 --quality.steps --log-every 1 "
    f"--steps {STEPS} --figures.batches 0 --sample-every 100 --objective.steps 4"
).split()
WATCHED = "--checkpoint.every 4 --checkpoint.keep 1 --checkpoint.milestones 3 --health.norms 2 --health.spike 1e6".split()


@pytest.fixture(scope="module", autouse=True)
def no_samples() -> Iterator[None]:
    """No pictures of samples, whose programs take longer to compile than the step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Monitor, "samples", lambda *_: {})
        yield


def digits(runs: pathlib.Path, *args: str) -> tuple[int, str, str]:
    return in_process("digits", ["objective:flow-matching", *TINY, *args, "--runs", str(runs)])


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A run whose norms and spikes are watched; do not change it."""
    runs = tmp_path_factory.mktemp("watched")
    code, _, err = digits(runs, *WATCHED)
    assert code == 0, err
    return runs / "digits" / "flow-matching"


def test_norms_are_recorded_by_layer_and_milestones_kept(watched):
    records = read_lines(watched / "norms.jsonl")
    assert [record["step"] for record in records] == [2, 4, 6]
    for part in ("weights", "gradient", "update"):
        assert len(records[-1][f"{part}/blocks/qkv"]) == 2 and records[-1][f"{part}/patches"] > 0
    metrics = {record["step"]: record for record in read_lines(watched / "metrics.jsonl")}
    for record in records:
        norms = np.concatenate([np.ravel(value) for name, value in record.items() if name.startswith("gradient/")])
        np.testing.assert_allclose(np.linalg.norm(norms), metrics[record["step"]]["grad_norm"], rtol=1e-5)
    with PIL.Image.open(watched / "norms.png") as picture:
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 10
    assert sorted(path.name for path in (watched / "checkpoints").iterdir()) == ["3", "6"]


def test_a_step_computed_again_has_the_metrics_of_the_run_to_the_bit_and_nothing_is_written(watched):
    before = snapshot(watched.parents[1])
    code, out, err = digits(watched.parents[1], *WATCHED, "--replay", "5")
    assert code == 0, err
    assert out.startswith(f"{watched}: replaying step 5 from step 3\nstep 5: loss ")
    (line,) = [line for line in read_lines(watched / "metrics.jsonl") if line["step"] == 5]
    assert f"grad_norm {line['grad_norm']:.9g}" in out and "; equal to the run's record to the bit" in out
    for layer in ("patches", "blocks/0/modulation", "blocks/1/down", "batch x", "online 1 blocks/1"):
        assert f"\n{layer} " in out
    assert out.endswith("every number is finite\n")
    assert snapshot(watched.parents[1]) == before


def test_a_step_that_the_run_does_not_have_is_not_computed_again(watched):
    code, _, err = digits(watched.parents[1], *WATCHED, "--replay", "1234")
    assert code == 1 and "--replay 1234: the run has 6 steps, name one of them" in err


@pytest.mark.slow
def test_a_run_that_is_not_watched_and_of_an_earlier_version_goes_on_to_the_same_bits(watched, tmp_path):
    copy = pathlib.Path(shutil.copytree(watched, tmp_path / "digits" / "flow-matching"))
    shutil.rmtree(copy / "checkpoints" / "6")
    record = settings.read(copy / "config.json")
    del record["checkpoint"], record["health"]
    (copy / "config.json").write_text(json.dumps(record | {"checkpoint_every": 4, "keep": 1}))
    code, out, err = digits(tmp_path)
    assert code == 0 and f"{copy}: continuing after step 3" in out, err
    assert (copy / "metrics.jsonl").read_bytes() == (watched / "metrics.jsonl").read_bytes()
    networks = [eqx_shortcut.load(folder, weights="online").network for folder in (copy, watched)]
    for one, other in zip(*map(jax.tree.leaves, networks), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_replay_of_no_run_is_refused(tmp_path):
    code, _, err = digits(tmp_path, "--replay", "5")
    assert code == 1 and "holds no run to replay: name it with --runs and --name" in err
    assert list(tmp_path.iterdir()) == []


def test_sigterm_while_samples_are_judged_is_one_sentence_and_the_same_command_goes_on(watched, tmp_path, monkeypatch):
    copy = pathlib.Path(shutil.copytree(watched, tmp_path / "digits" / "flow-matching"))
    before = snapshot(copy)
    usual = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(training, "judged", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        patch.setattr(training, "open_measures", lambda *_: Measures(Digits().build()[0]))
        at = TINY.index("--quality.steps")
        line = ["objective:flow-matching", *TINY[: at + 1], "1", *TINY[at + 1 :], *WATCHED, "--runs", str(tmp_path)]
        code, _, err = in_process("digits", line)
    assert code == 128 + signal.SIGTERM and "Traceback" not in err
    assert err.strip().endswith("stopped by SIGTERM outside training: the same command continues from the last checkpoint")
    assert signal.getsignal(signal.SIGTERM) == usual
    after = snapshot(copy)
    assert {name for name in after if after[name] != before.get(name)} == {"config.json"}


def test_the_verdict_names_what_was_computed_first():
    def layers(bad: int) -> health.Layers:
        each = {"patches": np.zeros(()), "blocks/qkv": np.zeros(2), "blocks/up": np.array([0, bad])}
        return health.Layers((name, health.Statistics(b * 1.0, b * 1.0, b.astype(int))) for name, b in each.items())

    sound, bad = layers(0), layers(1)
    found = {part: sound for part in ("batch", "weights", "average", "gradient", "update")}
    assert replay.verdict(found, {"online 1": sound}) == "every number is finite"
    both = found | {"weights": bad, "gradient": bad}
    assert replay.verdict(both, {"online 1": bad}) == "first not finite: weights, blocks/1/up"
    assert replay.verdict(found | {"gradient": bad}, {"ema 1": sound, "online 1": bad}) == (
        "first not finite: activations of online 1, blocks/1/up"
    )
    assert replay.verdict(found | {"gradient": bad}, {}) == (
        "first not finite: gradient, blocks/1/up (computed from the last layer to the first)"
    )
