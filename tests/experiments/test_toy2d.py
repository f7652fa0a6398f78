"""Objectives in the plane by their commands: what a run leaves, what is refused, the table of several."""

import json
import pathlib

import jax
import jax.numpy as jnp
import pytest
import tyro

from commands import in_process, snapshot
from eqx_shortcut import objectives
from scripts import script

toy2d = script("toy2d")
toy2d_table = script("toy2d_table")

TINY = "--steps 3 --batch 32 --count 40 --network.hidden 8 --network.depth 1".split()


def test_a_run_leaves_its_settings_metrics_distances_and_pictures(tmp_path: pathlib.Path):
    code, out, err = in_process("toy2d", [*TINY, "--objective.steps", "4", "--data", "moons", "--runs", str(tmp_path)])
    assert code == 0, err
    folder = tmp_path / "toy2d" / "moons-shortcut-0"
    assert set(snapshot(folder)) == {"config.json", "loss.png", "map.png", "metrics.jsonl", "quality.json"}
    quality = json.loads((folder / "quality.json").read_text())
    distances = {row["steps"]: row["sliced_wasserstein"] for row in quality["results"]}
    # After three steps the network is hardly more than one that answers 0, and leaves the noise where it is.
    assert list(distances) == [1, 2, 4, 128] and all(0.1 < distance < 1 for distance in distances.values())
    assert quality["held_out"]["sliced_wasserstein"] < min(distances.values())
    assert [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()] == [3]
    assert f"{distances[1]:.4g}" in out and str(folder) in out
    code, _, err = in_process("toy2d", [*TINY, "--objective.steps", "2", "--data", "moons", "--runs", str(tmp_path)])
    assert code == 1 and "holds another run: objective.steps is 2, there it is 4. Start a new one with --name" in err


def test_settings_that_do_not_work_are_refused_before_anything_is_written(tmp_path: pathlib.Path):
    for args, message in (
        (["--count", "1"], "--count 1: use 2 or more"),
        (["--ema-decay", "1"], "--ema-decay 1.0: use a number from 0 to below 1"),
        (["--objective.steps", "6"], "steps=6 is not a power of two"),
    ):
        code, _, err = in_process("toy2d", [*args, "--runs", str(tmp_path)])
        assert code != 0 and message in err
    with pytest.raises(ValueError, match="--objectives magic: choose among shortcut, flow-matching"):
        toy2d_table.Config(objectives=("magic",))
    assert not list(tmp_path.iterdir())


def test_objectives_have_the_settings_of_the_plane_where_they_have_such_fields():
    assert toy2d.in_the_plane(objectives.FlowMatching) == objectives.FlowMatching()
    found = toy2d.in_the_plane(objectives.Lagrangian)
    assert found == objectives.Lagrangian(log_variance=False, power=0, uniform_velocity=True, bootstrap_every=16)
    assert toy2d.in_the_plane(objectives.LiveReflow) == objectives.LiveReflow(bootstrap_every=32)
    for name, kind in toy2d.OBJECTIVES.items():
        assert tyro.cli(toy2d.Config, args=[f"objective:{name}"]).objective == toy2d.in_the_plane(kind)
    assert all(any(hasattr(kind, field) for kind in toy2d.OBJECTIVES.values()) for field in toy2d.PLANE)


def test_several_updates_in_one_call_are_as_many_calls():
    several = toy2d.several(lambda state: (2 * state + 1, {"before": state}))
    state, metrics = several(jnp.arange(2), 3)
    assert state.tolist() == [7, 15] and metrics["before"].tolist() == [3, 7]


def test_every_distribution_has_its_points(key):
    def drawn(key):
        return [toy2d.sampler(data)(key, 3) for data in toy2d.Data.__args__]

    assert [points.shape for points in jax.eval_shape(drawn, key)] == [(3, 2)] * 4


def test_the_table_compares_means_over_seeds_with_flow_matching():
    def quality(one: float, most: float) -> dict:
        results = [{"steps": 1, "sliced_wasserstein": one}, {"steps": 128, "sliced_wasserstein": most}]
        return {"held_out": {"sliced_wasserstein": 0.05}, "results": results}

    rows = {
        "flow-matching": {0: quality(0.8, 0.05), 1: quality(1.0, 0.07)},
        "shortcut": {0: quality(0.09, 0.09), 1: quality(0.18, 0.09)},
    }
    lines = toy2d_table.table(rows).splitlines()
    assert lines[2] == "| flow-matching, 2 seeds | 0.9 (0.8 to 1) | 0.06 (0.05 to 0.07) | 1.00 | 1.00 |"
    assert lines[3] == "| shortcut, 2 seeds | 0.135 (0.09 to 0.18) | 0.09 (0.09 to 0.09) | 0.15 | 1.50 |"
    assert {line.count("|") for line in lines} == {6}


@pytest.mark.slow
def test_the_table_trains_what_is_missing_and_reads_the_rest(tmp_path: pathlib.Path):
    """One that distils a teacher of its own among them, and two at a time."""
    args = ["--seeds", "1", "--data", "moons", "--steps", "2", "--runs", str(tmp_path), "--out", str(tmp_path / "toy2d.json")]
    code, first, err = in_process("toy2d_table", ["--objectives", "flow-matching", *args])
    assert code == 0, err
    runs = tmp_path / "toy2d"
    old = snapshot(runs)
    names = ["flow-matching", "progressive-distillation", "continuous-consistency"]
    code, out, err = in_process("toy2d_table", ["--objectives", *names, "--workers", "2", *args])
    assert code == 0, err
    assert snapshot(runs / "moons-flow-matching-0") == {path.split("/")[1]: data for path, data in old.items()}
    found = json.loads((tmp_path / "toy2d.json").read_text())["moons"]
    assert list(found) == names and first.splitlines()[-2] in out
    # Two steps of a learning rate that begins at 0 leave a distilled network where its teacher is.
    assert all(row["sliced_wasserstein"] < 2 for name in found for row in found[name]["0"]["results"])


@pytest.mark.slow
def test_shortcut_learns_moons_in_one_step(tmp_path: pathlib.Path):
    distances = {}
    for name in ("shortcut", "flow-matching"):
        code, _, err = in_process("toy2d", [f"objective:{name}", "--data", "moons", "--steps", "1000", "--runs", str(tmp_path)])
        assert code == 0, err
        quality = json.loads((tmp_path / "toy2d" / f"moons-{name}-0" / "quality.json").read_text())
        distances[name] = {row["steps"]: row["sliced_wasserstein"] for row in quality["results"]}
    assert distances["shortcut"][1] < distances["flow-matching"][1] / 3
