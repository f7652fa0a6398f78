"""A run as one value: its state comes back from a checkpoint with its place in the data, and it is opened as it was made."""

import contextlib
import dataclasses
import json
import pathlib

import equinox as eqx
import jax
import numpy as np
import pytest

from eqx_shortcut import load, settings, sharding
from eqx_shortcut.checkpoint import Checkpoints
from eqx_shortcut.data import Digits
from eqx_shortcut.experiment import Figures, training
from eqx_shortcut.experiment.checks import check_data
from eqx_shortcut.experiment.run import Data, Run
from eqx_shortcut.models import DiTConfig
from eqx_shortcut.objectives import Drifting
from eqx_shortcut.train import TrainState
from scripts import script

TINY = dataclasses.replace(script("digits").DEFAULT, network=DiTConfig(hidden=16, depth=1, heads=2, patch=2), batch=16)


@pytest.fixture
def run(tmp_path: pathlib.Path) -> Run:
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    return Run("digits", dataclasses.replace(TINY, runs=tmp_path, name="one"), Data(*Digits().build(), False), mesh)


def at_step(state: TrainState, step: int) -> TrainState:
    return dataclasses.replace(state, step=jax.numpy.int32(step))


def numbers(tree) -> list[np.ndarray]:
    keyless = eqx.filter(tree, eqx.is_inexact_array)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(keyless)]


def test_it_is_restored_to_the_batch_and_the_weights_that_it_was_saved_at(run):
    assert not run.begun and not run.folder.exists()
    state, places = run.first(), {}
    with contextlib.closing(run.checkpoints()) as checkpoints, contextlib.closing(run.loader()) as loader:
        for step in (1, 2, 3):
            next(loader)
            saved = dataclasses.replace(at_step(state, step), networks=scaled(state.networks, 1.0 + step))
            checkpoints.save(saved, loader.get_state(), wait=True)
            places[step] = loader.get_state()
        following = next(loader)
    assert run.begun and Checkpoints(run.folder / "checkpoints").steps() == [1, 2, 3]
    for before, step in ((None, 3), (3, 2), (2, 1)):
        with contextlib.closing(run.checkpoints()) as checkpoints, contextlib.closing(run.loader()) as loader:
            found = run.restore(checkpoints, loader, before=before)
            assert found is not None and int(found.step) == step and loader.get_state() == places[step]
            for a, b in zip(numbers(found.networks.ema), numbers(state.networks.ema), strict=True):
                np.testing.assert_array_equal(a, b * np.float32(1 + step))
            if step == 3:
                again = next(loader)
                assert all(np.array_equal(again[name], following[name]) for name in following)
    with contextlib.closing(run.checkpoints()) as checkpoints, contextlib.closing(run.loader()) as loader:
        assert run.restore(checkpoints, loader, before=1) is None


def scaled(networks, factor: float):
    times = lambda leaf: leaf * np.float32(factor) if eqx.is_inexact_array(leaf) else leaf  # noqa: E731
    return dataclasses.replace(networks, online=jax.tree.map(times, networks.online), ema=jax.tree.map(times, networks.ema))


@pytest.mark.parametrize("unconditional", [False, True])
def test_its_average_is_what_load_opens(run, unconditional):
    run = dataclasses.replace(run, config=dataclasses.replace(run.config, unconditional=unconditional))
    state = at_step(run.init(), 7)
    with contextlib.closing(run.checkpoints()) as checkpoints:
        checkpoints.save(state, {}, wait=True)
    (run.folder / "config.json").write_text(json.dumps(run.record))
    opened, average = load(run.folder), run.average(state)
    assert opened.labelled == (not unconditional)
    for field in dataclasses.fields(opened):
        if field.name != "network":
            assert getattr(opened, field.name) == getattr(average, field.name), field.name
    for a, b in zip(numbers(opened.network), numbers(average.network), strict=True):
        np.testing.assert_array_equal(a, b)


def test_its_record_holds_its_settings_but_those_that_may_differ_from_machine_to_machine(run):
    record = json.loads(json.dumps(run.record))
    assert run.folder == run.config.runs / "digits" / "one"
    for name in ("data", "network", "objective", "optimizer", "quality"):
        assert settings.parse(record[name]) == getattr(run.config, name)
    assert not {"runs", "name", "processes", "replay", "dry_run", "profile"} & record.keys()
    assert (record["experiment"], record["shape"], record["classes"]) == ("digits", [8, 8, 1], 10)


@pytest.mark.parametrize("changed", [{"name": "r\udce9"}, {"name": "\udcff/run"}])
def test_a_folder_whose_name_no_checkpoint_can_have_is_refused_before_training(run, changed):
    named = dataclasses.replace(run, config=dataclasses.replace(run.config, **changed))
    with pytest.raises(ValueError, match="is no name in UTF-8, as the files of a checkpoint must have: choose another --runs"):
        check_data(named)
    assert not named.folder.exists()


def test_a_class_of_one_held_out_image_is_refused_before_training_on_sets(run):
    """Of which the first validation, hours later, would find no set."""
    images = run.data.held_out
    kept = (images.labels != 3) | (np.arange(len(images.labels)) == np.argmax(images.labels == 3))
    lone = dataclasses.replace(images, pixels=images.pixels[kept], labels=images.labels[kept])
    config = dataclasses.replace(run.config, objective=Drifting(groups=4))
    sets = dataclasses.replace(run, config=config, data=dataclasses.replace(run.data, held_out=lone))
    with pytest.raises(ValueError, match=r"class 3 has 1 of the held-out images, .*, or compute no validation loss, by --fig"):
        check_data(sets)
    check_data(dataclasses.replace(sets, config=dataclasses.replace(config, figures=Figures(batches=0))))


def test_labels_of_64_bits_bring_no_warning(run):
    """As folders of images have them, and JAX does not."""
    wide = dataclasses.replace(run.data.train, labels=run.data.train.labels.astype(np.int64))
    check_data(dataclasses.replace(run, data=dataclasses.replace(run.data, train=wide)))


@pytest.mark.parametrize(("batch", "overfit", "said"), [(2800, None, True), (2800, 8, False), (1400, None, False)])
def test_a_batch_larger_than_the_data_is_said_at_the_start(run, capsys, batch, overfit, said):
    training.announce(
        dataclasses.replace(run, config=dataclasses.replace(run.config, batch=batch, overfit=overfit)), run.init()
    )
    assert ("note: --batch 2800 is 2 times the images there are" in capsys.readouterr().out) is said


def test_options_that_are_faster_on_the_one_device_are_said_at_the_start(run, capsys, monkeypatch):
    monkeypatch.setattr(DiTConfig, "faster", lambda config, device: f"--option {device.device_kind}")
    training.announce(run, run.init())
    assert "note: on this GPU, where memory allows, a step is faster with --option cpu" in capsys.readouterr().out
