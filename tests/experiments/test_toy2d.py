"""Objectives in the plane by their command: what a run leaves, and the settings that each objective has there."""

import json
import pathlib

import numpy as np
import pytest

from commands import in_process, snapshot
from eqx_shortcut import objectives
from eqx_shortcut.data.points import PlanePoints
from eqx_shortcut.evaluate import half_circle, results, sliced_wasserstein
from scripts import script

toy2d = script("toy2d")

TINY = "--steps 3 --batch 32 --data.count 2000 --quality.count 40 --network.hidden 8 --network.depth 1".split()


def distances(folder: pathlib.Path) -> dict[int, float]:
    return {row["steps"]: row["measures"]["sliced_wasserstein"] for row in results.read(folder)["results"]}


def test_a_run_leaves_distances_and_a_picture_of_its_map(tmp_path: pathlib.Path):
    told = [*TINY, "--objective.steps", "4", "--data.distribution", "moons", "--runs", str(tmp_path)]
    code, out, err = in_process("toy2d", told)
    assert code == 0, err
    folder = tmp_path / "toy2d" / "shortcut"
    assert "samples/step_0000003.png" in snapshot(folder)
    found = distances(folder)
    # After three steps the network is hardly more than one that answers 0, and leaves the noise where it is.
    assert list(found) == [1, 2, 4, 128] and all(0.1 < distance < 1 for distance in found.values())
    assert f"{found[1]:.4g}" in out and str(folder) in out
    (floor,) = results.read(folder)["floors"].values()
    train, held_out = PlanePoints("moons", count=2000).build()
    some = held_out.x[np.random.default_rng(0).permutation(10_000)[:40]]
    assert floor == {"sliced_wasserstein": sliced_wasserstein(some, train.x, half_circle(64))}
    record = json.loads((folder / "config.json").read_text())
    assert record["data"]["kind"] == "eqx_shortcut.data.points:PlanePoints"


def test_objectives_have_the_settings_of_the_plane_where_they_have_such_fields():
    assert toy2d.in_the_plane(objectives.FlowMatching) == objectives.FlowMatching()
    found = toy2d.in_the_plane(objectives.Lagrangian)
    assert found == objectives.Lagrangian(log_variance=False, power=0, uniform_velocity=True, bootstrap_every=16)
    for name, (_, config) in toy2d.PRESETS.items():
        assert toy2d.EXPERIMENT.parse([name]).objective == config.objective == toy2d.in_the_plane(type(config.objective))
    kinds = [type(config.objective) for _, config in toy2d.PRESETS.values()]
    assert len(kinds) == len(objectives.OBJECTIVES) and all(
        any(hasattr(kind, field) for kind in kinds) for field in toy2d.PLANE
    )


@pytest.mark.parametrize("distribution", ["moons", "checkerboard", "spirals", "eight-gaussians"])
def test_every_distribution_has_its_points(distribution):
    """Those held out are others, of the same size in the mean."""
    train, held_out = PlanePoints(distribution, count=4000).build()
    assert train.shape == held_out.shape == (2,) and set(map(tuple, train.x)).isdisjoint(map(tuple, held_out.x))
    assert abs(np.mean(np.sum(train.x**2, axis=1)) - 2) < 0.1 and abs(np.mean(np.sum(held_out.x**2, axis=1)) - 2) < 0.1


@pytest.mark.slow
def test_shortcut_learns_moons_in_one_step(tmp_path: pathlib.Path):
    for name in ("shortcut", "flow-matching"):
        told = [name, "--data.distribution", "moons", "--steps", "1000", "--runs", str(tmp_path)]
        code, _, err = in_process("toy2d", told)
        assert code == 0, err
    one, other = (distances(tmp_path / "toy2d" / name)[1] for name in ("shortcut", "flow-matching"))
    assert one < other / 3
