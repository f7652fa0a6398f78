"""The mesh of a run: the one asked for, or one that its state fits on; runs move from one to another."""

import dataclasses

import jax
import numpy as np
import pytest

from commands import in_process
from eqx_shortcut.data import Images
from eqx_shortcut.experiment import config, log, plan
from eqx_shortcut.models import DiTConfig
from scripts import script

DEFAULT = script("digits").DEFAULT

EIGHT_DEVICES = True
TINY = dataclasses.replace(DEFAULT, network=DiTConfig(hidden=16, depth=2, heads=2, patch=2))


class Device:
    """A device that says how much memory it has."""

    def __init__(self, memory: int):
        self.memory = memory

    def memory_stats(self) -> dict[str, int]:
        return {"bytes_limit": self.memory}


@pytest.mark.parametrize(
    ("asked", "sizes"),
    [
        (config.Mesh(), (8, 1, 1)),
        (config.Mesh(fsdp=8), (1, 8, 1)),
        (config.Mesh(fsdp=2, tensor=2), (2, 2, 2)),
        (config.Mesh(data=4, fsdp=2), (4, 2, 1)),
    ],
)
def test_the_mesh_is_the_one_asked_for(asked, sizes):
    mesh = plan.chosen_mesh(dataclasses.replace(TINY, mesh=asked))
    assert tuple(mesh.shape.values()) == sizes


def images(shape: tuple[int, int, int], classes: int) -> Images:
    return Images(np.zeros((1, *shape), np.uint8), np.zeros(1, np.int32), classes)


def test_a_state_that_does_not_fit_is_split_over_the_devices_of_a_host(monkeypatch):
    state = plan.abstract_state(TINY, images((8, 8, 4), 1000))
    size = sum(plan.size_of(leaf) for leaf in plan.shapes(state))
    for memory, expected in ((2 * size, (8, 1, 1)), (2 * size - 2, (1, 8, 1))):
        monkeypatch.setattr(jax, "local_devices", lambda memory=memory: [Device(memory)])
        assert tuple(plan.chosen_mesh(TINY).shape.values()) == expected
    half = dataclasses.replace(TINY, mesh=config.Mesh(tensor=2))
    monkeypatch.setattr(jax, "local_devices", lambda: [Device(size)])
    assert tuple(plan.chosen_mesh(half).shape.values()) == (4, 1, 2)


def test_what_each_part_takes_on_a_device_is_counted():
    state = plan.abstract_state(TINY, images((8, 8, 1), 10))
    whole = plan.bytes_a_device(state)
    named = jax.tree_util.tree_leaves_with_path(state.networks.online)
    kernels = 4 * sum(leaf.size for path, leaf in named if path[-1] == jax.tree_util.GetAttrKey("kernel"))
    mesh = plan.chosen_mesh(dataclasses.replace(TINY, mesh=config.Mesh(fsdp=8)))
    split = plan.bytes_a_device(plan.laid_out(state, mesh))
    assert whole["weights"] == whole["average"] == (whole["moments"] - 8) / 2
    # The first kernel has 4 rows (a patch of 2 x 2), which 8 devices cannot share, the last one as many columns.
    assert whole["weights"] - split["weights"] == 7 / 8 * (kernels - 4 * 4 * 16)
    assert "teacher" not in whole


def test_the_devices_are_said():
    mesh = plan.chosen_mesh(dataclasses.replace(TINY, mesh=config.Mesh(fsdp=4)))
    assert plan.in_words(mesh) == "8 x cpu as data 2 x fsdp 4"


@pytest.mark.parametrize("field", ["data", "fsdp", "tensor"])
def test_a_mesh_of_nothing_is_refused(field):
    with pytest.raises(ValueError, match=f"{field}=0: use 1 or more"):
        config.Mesh(**{field: 0})


@pytest.mark.slow
def test_a_run_continues_on_another_mesh(tmp_path):
    """FSDP on 8 devices, then data parallel with tensor parallelism, against one mesh throughout: the same losses."""
    tiny = "--network.hidden 16 --network.depth 1 --network.heads 2 --network.remat none --batch 16 --objective.steps 4".split()
    more = "--checkpoint.every 2 --log-every 1 --figures.batches 0 --sample-every 100 --quality.steps".split()
    losses = []
    for name, meshes in (("one", ["--mesh.data 8"] * 2), ("two", ["--mesh.fsdp 8", "--mesh.data 4 --mesh.tensor 2"])):
        for steps, mesh in zip(("2", "4"), meshes, strict=True):
            args = [*tiny, "--steps", steps, "--optimizer.schedule", "constant", "--runs", str(tmp_path / name), *more]
            code, _, err = in_process("digits", [*args, *mesh.split()])
            assert code == 0, err
        losses.append([line["loss"] for line in log.read_lines(tmp_path / name / "digits" / "shortcut" / "metrics.jsonl")])
    assert len(losses[0]) == 4
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


def test_a_batch_that_the_devices_do_not_divide_is_refused_before_anything_is_written(tmp_path):
    code, _, err = in_process("digits", ["--batch", "12", "--runs", str(tmp_path / "runs")])
    assert code == 1 and "batch 12 does not divide over 8 devices: use 8 or 16" in err
    assert not (tmp_path / "runs").exists()
