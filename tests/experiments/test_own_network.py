"""A run on a network and data of one's own, that the trainer has never heard of, and the same run opened."""

import dataclasses
import pathlib
import sys
from typing import Any

import jax
import numpy as np
import pytest

import eqx_shortcut
from commands import in_process
from eqx_shortcut import settings
from eqx_shortcut.experiment import Config, Experiment, Figures, Quality
from eqx_shortcut.experiment.log import read_lines
from eqx_shortcut.objectives import ConsistencyTraining, FlowMatching, MeanFlow, Shortcut
from eqx_shortcut.optimizer import AdamW
from eqx_shortcut.sampling import Sampling

MODULE = """
import dataclasses
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from eqx_shortcut.data import ArraySource
from eqx_shortcut.sampling import Sampling

class Net(eqx.Module):
    layer: eqx.nn.Linear

    def __call__(self, x, t, d, condition, *, key=None):
        seen = jnp.concatenate([x.ravel(), condition["state"], t[None], d[None]])
        return self.layer(seen).reshape(x.shape)

@dataclasses.dataclass(frozen=True)
class NetConfig:
    bias: bool = True

    def build(self, shape, classes, *, key):
        size = int(np.prod(shape))
        return Net(eqx.nn.Linear(size + 2 + 2, size, self.bias, key=key))

@dataclasses.dataclass(frozen=True)
class Actions:
    shape: tuple[int, ...] = (4, 3)
    count: int = 40
    mirror: bool = False

    def build(self):
        rng = np.random.default_rng(0)
        x, state = (rng.normal(size=(self.count, *shape)).astype(np.float32) for shape in (self.shape, (2,)))
        return ArraySource(x, {"state": state}, null={"state": np.full(2, 9, np.float32)}).split(0.4)

class Twice(eqx.Module):
    def __call__(self, x, t, d, condition, *, key=None):
        return jnp.concatenate([x, x])

@dataclasses.dataclass(frozen=True)
class TwiceConfig:
    def build(self, shape, classes, *, key):
        return Twice()

@dataclasses.dataclass(frozen=True)
class Bad:
    what: str

    def build(self):
        x, state = np.zeros((8, 16, 2)), np.zeros((8, 3))
        if self.what == "parts":
            return ArraySource(x, {"state": state}), ArraySource(x, {"state": state[:, :2]})
        if self.what == "ragged":
            x = [np.zeros((16, 2))] * 7 + [np.zeros((15, 2))]
        if self.what == "empty":
            x, state = x[:0], state[:0]
        return ArraySource(x, {"state": state[1:] if self.what == "axis" else state}).split(0.5)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_policy.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield __import__("own_policy")
    sys.modules.pop("own_policy")


def config_of(own, runs, shape=(4, 3)) -> Config:
    return Config(
        data=own.Actions(shape),
        network=own.NetConfig(),
        objective=Shortcut(steps=4, bootstrap_every=4, label_dropout=0.5),
        optimizer=AdamW(),
        steps=4,
        batch=16,
        log_every=1,
        sample_every=4,
        figures=Figures(batches=1, times=2, guidance=2.0),
        quality=Quality(steps=()),
        runs=runs,
    )


def check_numbers(config: Config, model: Any, folder: pathlib.Path, out: pathlib.Path) -> None:
    """Samples that are no pictures, during the run and by the command: for held-out conditions, and for those of a file."""
    out.mkdir()
    with np.load(folder / "samples" / "step_0000004.npz") as file:
        held_out = config.data.build()[1].rows(np.arange(16))["condition"]
        expected = eqx_shortcut.sample(model, jax.random.key(0), len(file["steps_4"]), steps=4, conditions=held_out)
        np.testing.assert_allclose(file["steps_4"], expected, rtol=1e-6, atol=1e-6)
    np.savez(out / "seen.npz", state=np.ones((2, 2), np.float32))
    line = [str(folder), "--steps", "1", "--count", "3", "--out", str(out / "actions.npz")]
    assert "conditions of" in in_process("sample", line)[2]
    code, _, err = in_process("sample", [*line, "--conditions", str(out / "seen.npz")])
    assert code == 0, err
    with np.load(out / "actions.npz") as file:
        plain = eqx_shortcut.sample(model, jax.random.key(0), 3, conditions={"state": np.ones(2, np.float32)})
        np.testing.assert_allclose(file["arr_0"], plain, rtol=1e-6, atol=1e-6)
    np.save(out / "one.npy", np.float32(1))
    assert "holds no arrays (one of them has no rows)" in in_process("sample", [*line, "--conditions", str(out / "one.npy")])[2]
    np.savez(out / "one.npz", state=np.ones(2, np.float32))
    said = in_process("sample", [*line, "--conditions", str(out / "one.npz")])[2]
    assert "holds {'state': f32[2]}, where a row of the run is {'state': f32[2]}: give rows" in said
    line[-1] = str(out / "actions.png")
    assert "no pictures" in in_process("sample", line)[2] and not (out / "actions.png").exists()


@pytest.mark.parametrize("shape", [(4, 3), (4, 4, 1)])
def test_it_is_trained_continued_and_opened_with_its_conditions(own, tmp_path, capsys, shape):
    experiment, config = Experiment("policy", {}), config_of(own, tmp_path / "runs", shape)
    experiment.run(dataclasses.replace(config, steps=2))
    experiment.run(config)
    folder = tmp_path / "runs" / "policy" / "shortcut"
    assert f"{folder}: continuing after step 2" in capsys.readouterr().out
    pictures = len(shape) == 3
    assert (folder / "samples" / "step_0000004.png").exists() == (folder / "denoising").exists() == pictures
    assert (folder / "samples" / "step_0000004_guided.png").exists() == pictures
    assert [line["step"] for line in read_lines(folder / "metrics.jsonl")] == [1, 2, 3, 4]
    record = settings.read(folder / "config.json")
    assert record["network"]["kind"] == "own_policy:NetConfig" and record["data"]["kind"] == "own_policy:Actions"
    model = eqx_shortcut.load(folder)
    np.testing.assert_array_equal(model.null["state"], [9, 9])  # pyright: ignore
    one = {"state": np.ones(2, np.float32)}
    samples = eqx_shortcut.sample(model, jax.random.key(0), 3, Sampling(guidance=2.0, guide_always=True), conditions=one)
    assert samples.shape == (3, *shape) and np.isfinite(samples).all()
    if not pictures:
        check_numbers(config, model, folder, tmp_path / "numbers")
        experiment.run(dataclasses.replace(config, steps=3))
        out = capsys.readouterr().out
        assert "note: the run has more steps than --steps 3: it stays as it is" in out
        assert f"eqx-shortcut sample {folder} --steps 1 --out samples.npz" in out and eqx_shortcut.load(folder).step == 4


def test_it_starts_from_the_weights_of_another_run_of_its_kind_alone(own, tmp_path):
    experiment, config = Experiment("policy", {}), config_of(own, tmp_path, (2, 2))
    config = dataclasses.replace(config, steps=1, figures=Figures(batches=0))
    experiment.run(config)
    first = tmp_path / "policy" / "shortcut"
    still = dataclasses.replace(config, name="second", init_from=first, seed=1, optimizer=AdamW(lr=0.0))
    experiment.run(still)
    taken, given = (eqx_shortcut.load(folder, weights="online").network for folder in (first.with_name("second"), first))
    average = eqx_shortcut.load(first).network
    np.testing.assert_array_equal(taken.layer.weight, average.layer.weight)
    assert not np.array_equal(average.layer.weight, given.layer.weight)
    with pytest.raises(ValueError, match=r"has another network \(Net\): use one of the same kind and sizes"):
        experiment.run(dataclasses.replace(still, name="third", data=own.Actions((2, 3))))
    other = dataclasses.replace(still, name="flow", init_from=None, objective=FlowMatching(), optimizer=AdamW())
    experiment.run(other)
    with pytest.raises(ValueError, match=r"flow was trained at one step size, .* Net has no method held_at\(d\)"):
        experiment.run(dataclasses.replace(still, name="fourth", init_from=tmp_path / "policy" / "flow"))


def test_a_plan_needs_no_image(own, tmp_path, capsys):
    Experiment("policy", {}).run(dataclasses.replace(config_of(own, tmp_path), dry_run=True))
    said = capsys.readouterr().out
    assert f"parameters         {16 * 12 + 12}\n" in said and "tokens" not in said


def test_a_class_that_cannot_be_imported_again_is_refused_before_anything_is_written(own, tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Inside:
        def build(self, shape, classes, *, key):
            raise AssertionError("not built")

    config = dataclasses.replace(config_of(own, tmp_path / "runs"), network=Inside())
    with pytest.raises(ValueError, match=r"Inside is defined in a function of .*test_own_network, .*: move it to a module"):
        Experiment("policy", {}).run(config)
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").rglob("config.json"))


@pytest.mark.parametrize("objective", [FlowMatching(), Shortcut(steps=4, bootstrap_every=4), MeanFlow(), ConsistencyTraining()])
def test_actions_under_observations_are_trained_by_objectives_of_every_kind(own, tmp_path, objective):
    config = dataclasses.replace(config_of(own, tmp_path, (16, 2)), objective=objective, steps=3, figures=Figures(batches=0))
    Experiment("policy", {}).run(config)
    (folder,) = (tmp_path / "policy").iterdir()
    assert [np.isfinite(line["loss"]) for line in read_lines(folder / "metrics.jsonl")] == [True] * 3
    assert eqx_shortcut.load(folder).step == 3


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("network", r"Twice answers f32\[32,2\] for x f32\[16,2\], and a velocity has the shape of x"),
        ("parts", r"a training row is .*state.*f32\[3\].*, a held-out one .*f32\[2\].*: give both parts the same"),
        ("ragged", r"row 7 of x is of shape \(15, 2\), row 0 of \(16, 2\): give all rows one shape"),
        ("empty", r"x has no rows \(its shape is \(0, 16, 2\)\)"),
        ("axis", r"condition\['state'\] is of shape \(7, 3\) for 8 rows of x: let its first axis be the rows"),
    ],
)
def test_what_does_not_fit_is_one_sentence_before_anything_is_written(own, tmp_path, what, words):
    config = config_of(own, tmp_path / "runs", (16, 2))
    change = {"network": own.TwiceConfig()} if what == "network" else {"data": own.Bad(what)}
    with pytest.raises(ValueError, match=words):
        Experiment("policy", {}).run(dataclasses.replace(config, **change))
    assert not list(tmp_path.rglob("config.json"))


def test_a_command_line_offers_the_options_of_ones_own_network_and_data(own, tmp_path):
    experiment = Experiment("policy", {"default": ("", config_of(own, tmp_path))})
    parsed = experiment.parse(["--network.no-bias", "--data.count", "50", "objective:mean-flow"])
    assert parsed.network == own.NetConfig(bias=False) and parsed.data.count == 50 and parsed.objective == MeanFlow()
