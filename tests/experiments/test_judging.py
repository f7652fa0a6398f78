"""Judging samples: what measures say of the training images themselves, in pixels and in features."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest

import eqx_shortcut
from eqx_shortcut import settings, sharding
from eqx_shortcut.data import ArraySource, Digits
from eqx_shortcut.evaluate.networks import classifier_features
from eqx_shortcut.evaluate.results import read_results
from eqx_shortcut.evaluate.run import Cell, Evaluation
from eqx_shortcut.experiment.checks import check_record
from eqx_shortcut.experiment.config import Figures, Quality
from eqx_shortcut.experiment.judging import Measures, open_measures
from eqx_shortcut.experiment.run import Data, Run
from eqx_shortcut.objectives import FlowMatching, Frechet
from eqx_shortcut.pretrained.small_classifier import SmallClassifier, save_classifier
from eqx_shortcut.sampling import Sampling
from eqx_shortcut.trained import Trained
from runs import write_run
from scripts import script

DEFAULT = script("digits").DEFAULT

COUNT = 300


@pytest.fixture
def classifier(tmp_path: pathlib.Path) -> pathlib.Path:
    save_classifier(tmp_path / "features.safetensors", SmallClassifier(10, key=jax.random.key(0)), {})
    return tmp_path / "features.safetensors"


def test_the_distance_of_the_training_images_to_themselves_is_none():
    train, held_out = Digits().build()
    measures = Measures(train, lambda train, images, labels: {"count": float(len(images))})
    same, found = (measures([part.scaled()], part.labels) for part in (train, held_out))
    assert same is not None and found is not None
    assert abs(same["frechet"]) < 1e-9 < 0.3 < found["frechet"]
    assert found["count"] == 397 and list(found) == ["frechet", "count"]


def test_samples_may_come_in_parts_and_be_bad():
    """The parts are the whole; what is not finite has no distance; the first measure needs no other."""
    train, held_out = Digits().build()
    measures, images = Measures(train, lambda train, images, labels: {"sum": float(images.sum())}), held_out.scaled()
    whole, parts = measures([images], held_out.labels), measures([images[:300], images[300:]], held_out.labels)
    assert whole is not None and parts is not None
    assert parts == pytest.approx(whole, rel=1e-9)
    assert measures([images], held_out.labels, first=True) == {"frechet": whole["frechet"]}
    assert measures([images, np.full_like(images, np.nan)], held_out.labels) is None


def test_features_judge_too_and_find_no_fault_in_the_training_images(tmp_path, classifier):
    train = Digits().build()[0].first(COUNT)
    config = dataclasses.replace(DEFAULT, runs=tmp_path, quality=Quality(count=COUNT, features=str(classifier)))
    measures = open_measures(Run("digits", config, Data(train, train, False), sharding.make_mesh()), None)
    assert measures is not None
    noise = np.random.default_rng(0).normal(size=(COUNT, 8, 8, 1))
    same, noisy = (measures([np.clip(train.scaled() + level * noise, -1, 1)], train.labels) for level in (0, 0.5))
    assert same is not None and noisy is not None
    assert abs(same["frechet"]) < 1e-9 < noisy["frechet"]
    # To what single precision leaves of features whose variances are near 1.
    assert abs(same["classifier Frechet distance"]) < 1e-5 < noisy["classifier Frechet distance"]
    for name in ("precision", "recall", "coverage"):
        assert same[f"{name}-classifier"] == 1 > noisy[f"{name}-classifier"]
    assert same["KID-classifier"] < noisy["KID-classifier"]
    assert measures.features is not None and measures.features.protocol["network"] == "small classifier"


def test_features_that_cannot_be_had_are_refused_before_training(tmp_path):
    config = dataclasses.replace(DEFAULT, runs=tmp_path, quality=Quality(features=str(tmp_path / "none.safetensors")))
    run = Run("digits", config, Data(*Digits().build(), False), sharding.make_mesh())
    with pytest.raises(ValueError, match=r"^no file .*none.safetensors: train a classifier with classifier.py"):
        open_measures(run, None)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"quality": Quality(features="pixels")}, "--quality.features pixels are of images, and rows are none: leave it out"),
        ({"figures": Figures(count=2)}, "--figures.count 2: rows have no distance to others: leave it at 0"),
    ],
)
def test_rows_that_are_no_images_are_not_judged_in_silence(tmp_path, options, words):
    points = ArraySource(np.zeros((4, 2), np.float32))
    run = Run("toy", dataclasses.replace(DEFAULT, runs=tmp_path, **options), Data(points, points, False), sharding.make_mesh())
    with pytest.raises(ValueError, match=words):
        open_measures(run, None)


def test_a_run_records_what_trained_it_whatever_becomes_of_the_file(tmp_path, classifier):
    """And what is loaded of it is marked so; a run with another file in its place is another run."""
    objective, weights = Frechet(features=(str(classifier),)), classifier_features(classifier).protocol["weights"]
    train, held_out = Digits().build()
    run = Run("digits", dataclasses.replace(DEFAULT, objective=objective), Data(train, held_out, False), sharding.make_mesh())
    assert run.record["trained_in"] == [weights]
    classifier.unlink()
    written = write_run(tmp_path / "run", objective=settings.dump(objective), trained_in=[weights])
    assert eqx_shortcut.load(written).trained_in == (weights,)
    (tmp_path / "config.json").write_text(json.dumps(run.record))
    with pytest.raises(ValueError, match="holds another run: trained_in is"):
        check_record(tmp_path / "config.json", run.record | {"trained_in": ["sha256 of another"]})


def test_rows_that_another_command_writes_meanwhile_stay(tmp_path):
    cell = Cell(Trained(None, FlowMatching(), (2,), 0, 1), "ema", Sampling(1))

    def evaluate(steps, measure):
        return Evaluation(tmp_path, 2, {"statistics": "some"}, measure)([cell._replace(sampling=Sampling(n)) for n in steps])

    def measure(cell, record):
        evaluate([cell.sampling.steps + 10], lambda cell, record: {"a": 0.0})
        return {"a": 1.0}

    assert [row["steps"] for row in evaluate([1, 2], measure)] == [1, 2]
    assert sorted(row["steps"] for row in read_results(tmp_path)["results"]) == [1, 2, 11, 12]
