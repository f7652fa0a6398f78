"""Evaluation of a run: the numbers are those of its samples, whatever the batch and the parts, and survive an interruption."""

import json
import pathlib
import shutil
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqx_shortcut
from commands import in_process
from eqx_shortcut import ema, settings
from eqx_shortcut.commands import evaluate, stats
from eqx_shortcut.data import Digits
from eqx_shortcut.evaluate import (
    Collected,
    Gaussian,
    Pixels,
    Statistics,
    collect,
    compare,
    frechet_distance,
    moments,
    parts,
    pixels,
    prdc,
    read_statistics,
    write_statistics,
)
from eqx_shortcut.objectives import Networks
from eqx_shortcut.snapshots import open_snapshots
from eqx_shortcut.train import TrainState
from runs import write_run

COUNT, SHAPE = 90, (8, 8, 1)
ARGS = f"--features pixels --count {COUNT} --batch 30 --part 60 --steps 1 2".split()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = write_run(tmp_path_factory.mktemp("evaluation") / "run", shape=SHAPE, data=settings.dump(Digits()))
    code, out, err = in_process("evaluate", [str(folder), *ARGS])
    assert code == 0, err
    (folder / "printed").write_text(out)
    return folder


@pytest.fixture
def run(base: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy of the run, with its results."""
    return pathlib.Path(shutil.copytree(base, tmp_path / "run"))


def results(run: pathlib.Path) -> list[dict[str, Any]]:
    return json.loads((run / "evaluation.json").read_text())["results"]


def samples(run: pathlib.Path, steps: int, count: int = COUNT) -> np.ndarray:
    return np.clip(eqx_shortcut.sample(eqx_shortcut.load(run), jax.random.key(0), count, steps=steps), -1, 1)


def test_the_numbers_are_those_of_the_runs_samples_against_its_training_images(base):
    train, held_out = Digits().build()
    real = moments([pixels(train.scaled())])
    for row in results(base):
        drawn = pixels(samples(base, row["steps"]))
        assert row["measures"]["pixel Frechet distance"] == pytest.approx(frechet_distance(moments([drawn]), real), rel=1e-5)
        order = np.random.default_rng(0).permutation(1400)
        found = prdc(drawn.astype(np.float32), pixels(train.scaled()[order]))
        assert row["measures"]["coverage-pixel"] == pytest.approx(found.coverage, abs=2 / COUNT)
    (floor,) = json.loads((base / "evaluation.json").read_text())["floors"].values()
    order = np.random.default_rng(0).permutation(397)[:COUNT]
    unseen = moments([pixels(held_out.scaled()[order])])
    assert floor["pixel Frechet distance"] == pytest.approx(frechet_distance(unseen, real), rel=1e-9)


def test_the_table_says_what_was_measured(base):
    for text in ((base / "printed").read_text(), (base / "evaluation.md").read_text()):
        assert f"weights: ema; training step: 1; count: {COUNT}; features: pixel Frechet distance" in text
        assert [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")][2:] == [
            "1",
            "2",
            "held-out images",
        ]
    assert "note: 90 samples for 64 features" not in (base / "printed").read_text()


@pytest.mark.parametrize("change", ["--batch 16 --part 7", "--batch 90 --part 1000"])
def test_batches_and_parts_change_nothing(run, change):
    before = results(run)
    (run / "evaluation.json").unlink()
    assert in_process("evaluate", [str(run), *ARGS, *change.split()])[0] == 0
    for old, new in zip(before, results(run), strict=True):
        assert old["protocol"] == new["protocol"]
        for name, value in old["measures"].items():
            assert new["measures"][name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


def test_averages_of_several_widths_are_compared(run):
    """Those that were kept are the snapshots themselves."""
    record = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**record, "averages": {"sigma_rel": [0.05, 0.1]}}))
    network, zero = eqx_shortcut.load(run).network, jnp.int32(0)
    snapshots = open_snapshots(run, {})
    for step in (8, 9):
        scaled = [jax.tree.map(lambda a, f=f: a * f, network) for f in (step / 9, step / 10)]
        averages = tuple(ema.PowerAverage(*pair) for pair in zip(scaled, (0.05, 0.1), strict=True))
        snapshots.save(TrainState(jnp.int32(step), jax.random.key(0), Networks(network, network), {}, zero, zero, averages), {})
    snapshots.close()
    model = eqx_shortcut.load(run, weights=0.1)
    assert model.step == 9 and eqx_shortcut.load(run, weights=0.05, step=8).step == 8
    kernel = model.network.blocks.qkv.kernel
    np.testing.assert_allclose(kernel, 0.9 * network.blocks.qkv.kernel, rtol=2**-11, atol=1e-6)
    code, out, err = in_process("evaluate", [str(run), *ARGS, "--steps", "1", "--weights", "0.05", "0.07", "0.1"])
    assert code == 0, err
    assert [row["weights"] for row in results(run)[2:]] == [0.05, 0.07, 0.1]
    table = (run / "evaluation.md").read_text().split("averages by their relative width")[1]
    assert [line.split("|")[3].strip() for line in table.splitlines() if line.startswith("| 1 |")] == ["0.05", "0.07", "0.1"]
    assert (run / "sigma_rel.png").exists() and "sigma_rel.png" in out


def test_what_was_measured_is_not_measured_again_and_more_is_added(run, monkeypatch):
    before = results(run)
    monkeypatch.setattr(evaluate, "collect_parts", None)
    assert in_process("evaluate", [str(run), *ARGS])[0] == 0
    monkeypatch.undo()
    guided = [str(run), *ARGS, "--steps", "4", "--guidance", "2"]
    assert in_process("evaluate", guided)[0] == in_process("evaluate", [*guided, "--guidance-interval", "0.25", "1"])[0] == 0
    assert results(run)[:2] == before
    everywhere, between = results(run)[2:]
    assert (everywhere["steps"], everywhere["guidance"]) == (between["steps"], between["guidance"]) == (4, 2.0)
    assert between["protocol"]["times of guidance"] == "0.25 to 1" and "times of guidance" not in everywhere["protocol"]
    assert between["measures"] != everywhere["measures"]


def test_an_interrupted_evaluation_goes_on_where_it_stopped(run, monkeypatch):
    """The parts that were whole are read, not made again; the numbers are the same bits."""
    before = results(run)
    (run / "evaluation.json").unlink()

    class Stop(Exception):
        pass

    drawn, draw = [], evaluate.sampler

    def stopping(*args):
        inner = draw(*args)

        def batches(indices):
            if indices.start >= 60:
                raise Stop
            return inner(indices)

        return batches

    def counting(*args):
        inner = draw(*args)
        return lambda indices: (drawn.append(indices), inner(indices))[1]

    config = evaluate.Config(run=run, features="pixels", count=COUNT, batch=30, part=60, steps=(1, 2))
    monkeypatch.setattr(evaluate, "sampler", stopping)
    with pytest.raises(Stop):
        evaluate.main(config)
    assert not (run / "evaluation.json").exists()
    monkeypatch.setattr(evaluate, "sampler", counting)
    evaluate.main(config)
    assert drawn == [range(1), range(60, 90), range(60), range(60, 90)]
    assert results(run) == before
    assert sorted(path.suffix for path in (run / "evaluation").iterdir()) == [".npz"], "the parts are gone"


def test_labels_may_be_balanced_drawn_or_those_of_the_data(base):
    model, train = eqx_shortcut.load(base), Digits().build()[0]
    data = evaluate.RunImages({}, train, train)
    counts: dict[Literal["balanced", "random", "data"], int] = {"balanced": 25, "random": 2000, "data": 1500}
    for labels, count in counts.items():
        config = evaluate.Config(run=base, features="pixels", count=count, labels=labels)
        found = evaluate.chosen_labels(config, model, data)
        assert len(found) == count
        if labels == "balanced":
            assert np.array_equal(found, np.arange(25) % 10)
        elif labels == "random":
            assert np.bincount(found, minlength=10).min() > 140 and not np.array_equal(found, np.arange(2000) % 10)
            fewer = evaluate.Config(run=base, features="pixels", count=50, labels=labels)
            assert np.array_equal(found[:50], evaluate.chosen_labels(fewer, model, data))
        else:
            assert np.array_equal(found[:1400], train.labels) and np.array_equal(found[1400:], train.labels[:100])


def test_samples_are_compared_with_a_file_of_statistics(run, tmp_path):
    path = tmp_path / "digits.npz"
    code, out, err = in_process("stats", [*"--features pixels --batch 30 --part 60 --out".split(), str(path), "data:digits"])
    assert code == 0 and "1,400 images, 64 features" in out, err
    found = read_statistics(path)
    train = moments([pixels(Digits().build()[0].scaled())])
    assert found.count == 1400 and frechet_distance(found.vectors, train) < 1e-9
    before = results(run)
    assert in_process("evaluate", [str(run), *ARGS, "--stats", str(path)])[0] == 0
    assert len(results(run)) == 2, "the same images and protocol: nothing new to measure"
    write_statistics(path, Statistics(Gaussian(np.zeros(64), np.eye(64))))
    assert in_process("evaluate", [str(run), *ARGS, "--stats", str(path)])[0] == 0
    row = results(run)[2]
    assert list(row["measures"]) == ["pixel Frechet distance"], "other metrics need real features"
    assert row["protocol"]["protocol of the statistics"] == "not recorded"
    assert results(run)[:2] == before


REFUSED = {
    "no run": (["{tmp}/none"], "is not a run folder"),
    "features": (["{run}", "--features", "nonsense"], "--features nonsense cannot be had"),
    "weights of inception": (["{run}", "--features", "inception"], "pt_inception-2015-12-05-6726825d.pth"),
    "dimension": (["{run}", "--features", "pixels", "--stats", "{tmp}/other.npz"], "of 5 features, the samples' are 64"),
    "damaged": (["{run}", "--features", "pixels", "--stats", "{tmp}/text.npz"], "cannot be read as an .npz of statistics"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_measured_is_refused_in_one_sentence(base, tmp_path, name):
    write_statistics(tmp_path / "other.npz", Statistics(Gaussian(np.zeros(5), np.eye(5))))
    (tmp_path / "text.npz").write_text("text")
    args, sentence = REFUSED[name]
    code, _, err = in_process("evaluate", [arg.format(run=base, tmp=tmp_path) for arg in args])
    assert code == 1 and sentence in err and "Traceback" not in err


@pytest.mark.parametrize(("steps", "count"), [((0,), 2), ((1,), 1), ((), 2)])
def test_settings_that_measure_nothing_are_refused(tmp_path, steps, count):
    with pytest.raises(ValueError, match=r"steps=.*: use 1 or more|count=1: use 2 or more|--steps without a number"):
        evaluate.Config(run=tmp_path, steps=steps, count=count)


def test_a_run_that_does_not_know_its_images_needs_a_file(tmp_path):
    run = write_run(tmp_path / "run", shape=SHAPE, data=None)
    code, _, err = in_process("evaluate", [str(run), *ARGS])
    assert code == 1 and "does not say what images it was trained on: name their statistics with --stats" in err


def test_fewer_samples_than_features_are_noted(run, tmp_path):
    code, out, err = in_process("evaluate", [str(run), *ARGS, "--count", "40", "--steps", "1"])
    assert code == 0 and "note: 40 samples for 64 features" in out, err


def test_parts_of_other_images_are_refused(run, tmp_path):
    one = parts.real_batches(Digits().build()[0], 10)
    arguments = {"features": Pixels(), "part": 20, "keep": 5, "title": "images"}
    parts.collect_parts(tmp_path / "parts", {"images": "some"}, 40, one[1], **arguments)
    with pytest.raises(ValueError, match="holds features of other images: images is 'others', there it is 'some'"):
        parts.collect_parts(tmp_path / "parts", {"images": "others"}, 40, one[1], **arguments)


def test_what_is_collected_survives_a_file_and_adds_up(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (12, 2, 2, 1)).astype(np.float32)
    whole = collect([images], Pixels(), keep=7)
    parts = [collect([images[:4], images[4:5]], Pixels(), keep=7), collect([images[5:]], Pixels(), keep=2)]
    parts[0].save(tmp_path / "part.npz")
    found = Collected.load(tmp_path / "part.npz") + parts[1]
    np.testing.assert_array_equal(found.kept, whole.kept)
    np.testing.assert_allclose(found.moments.scatter, whole.moments.scatter, rtol=1e-12)
    assert found.moments.count == 12 and found.spatial is None and found.logits is None
    with pytest.raises(ValueError, match="no images to collect features of"):
        collect([], Pixels(), keep=1)


def test_a_set_compared_with_itself_is_at_no_distance():
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (50, 2, 2, 1)).astype(np.float32)
    found = collect([images], Pixels(), keep=50)
    real = Statistics.of(found.moments, None, Pixels().protocol, kept=found.kept)
    measures = compare(found, real, Pixels(), neighbours=20)
    assert abs(measures["pixel Frechet distance"]) < 1e-9 and abs(measures["MMD-pixel"]) < 1e-9
    assert measures["precision-pixel"] == measures["recall-pixel"] == measures["coverage-pixel"] == 1
    assert "precision-pixel" not in compare(found, real, Pixels(), neighbours=0)


def test_real_images_come_in_an_order_drawn_once():
    train = Digits().build()[0]
    count, batches = parts.real_batches(train, 300)
    order = np.random.default_rng(0).permutation(1400)
    found = np.concatenate(list(batches(range(100, 900))))
    assert count == 1400
    np.testing.assert_array_equal(found, train.scaled()[order[100:900]])


def test_a_file_is_not_overwritten(tmp_path):
    (tmp_path / "there.npz").write_text("")
    code, _, err = in_process("stats", ["data:digits", "--features", "pixels", "--out", str(tmp_path / "there.npz")])
    assert code == 1 and "exists: remove it" in err
    with pytest.raises(ValueError, match=r"name an \.npz file"):
        stats.Config(data=Digits(), features="pixels", out=tmp_path / "x.txt")


def test_each_count_and_set_of_statistics_has_its_own_floor(run, tmp_path):
    first = json.loads((run / "evaluation.json").read_text())["floors"]
    assert in_process("evaluate", [str(run), *ARGS, "--count", "80", "--steps", "1"])[0] == 0
    floors = json.loads((run / "evaluation.json").read_text())["floors"]
    assert len(first) == 1 and len(floors) == 2 and first.items() <= floors.items()
    assert (run / "evaluation.md").read_text().count("held-out images") == 2
