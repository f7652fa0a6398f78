"""The list of measurements of benchmarks/gpu.py: what is done is kept, and one that fails takes no other with it."""

import json
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from eqx_shortcut.objectives import OBJECTIVES, FlowMatching
from scripts import script

gpu, gpu_table, parity = script("gpu"), script("gpu_table"), script("parity")
RESULTS = pathlib.Path(__file__).parents[1] / "benchmarks/results"


@pytest.fixture
def lab(tmp_path: pathlib.Path) -> Any:
    return gpu.Lab(tiny=True, folder=tmp_path)


def files(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


def test_a_failing_measurement_is_recorded_and_the_next_is_made(monkeypatch, tmp_path, lab):
    monkeypatch.setattr(gpu, "MEASUREMENTS", {"bad": lambda lab: 1 / 0, "good": lambda lab: {"value": 3}})
    gpu.run(["bad", "good"], lab, tmp_path, time.monotonic() + 100)
    found = files(tmp_path)
    assert found["bad"]["error"].startswith("ZeroDivisionError")
    assert found["good"]["value"] == 3 and found["good"]["versions"]["jax"]


def test_what_is_there_is_not_measured_again(monkeypatch, tmp_path, lab):
    calls = []
    monkeypatch.setattr(gpu, "MEASUREMENTS", {"one": lambda lab: calls.append(1) or {}})
    for _ in range(2):
        gpu.run(["one"], lab, tmp_path, time.monotonic() + 100)
    assert calls == [1]


def test_a_measurement_that_ends_the_process_is_marked_and_no_file_is_half_written(monkeypatch, tmp_path, lab):
    def end(lab):
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu, "MEASUREMENTS", {"before": lambda lab: {"value": 1}, "last": end})
    with pytest.raises(KeyboardInterrupt):
        gpu.run(["before", "last"], lab, tmp_path, time.monotonic() + 100)
    found = files(tmp_path)
    assert found["before"]["value"] == 1 and found["last"]["error"] == "did not finish"


def test_nothing_begins_when_no_time_is_left(monkeypatch, tmp_path, lab):
    monkeypatch.setattr(gpu, "MEASUREMENTS", {"one": lambda lab: {}})
    gpu.run(["one"], lab, tmp_path, time.monotonic() + 10)
    assert not files(tmp_path)


@pytest.mark.parametrize("folder", sorted(RESULTS.glob("*/")), ids=lambda folder: folder.name)
def test_tables_of_the_documentation_are_those_of_the_results(folder):
    text = (RESULTS.parents[1] / "docs/performance.md").read_text()
    rows = [line for line in gpu_table.page(folder).splitlines() if line.startswith("| `")]
    assert len(rows) > 10
    for row in rows:
        assert row in text


def test_what_an_earlier_session_knows_is_not_measured_again(monkeypatch, tmp_path, lab):
    known, out = tmp_path / "known", tmp_path / "out"
    for folder in (known, out):
        folder.mkdir()
    (known / "one.json").write_text("{}")
    monkeypatch.setattr(gpu, "MEASUREMENTS", {"one": lambda lab: 1 / 0, "two": lambda lab: {}})
    gpu.run(["one", "two"], lab, out, time.monotonic() + 100, known)
    assert set(files(out)) == {"two"}


def test_both_attentions_are_asked_for_the_same(monkeypatch, key):
    """By XLA in cuDNN's place, which no CPU has."""
    asked = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda *qkv, implementation, **more: asked(*qkv, **more))
    qkv = jax.random.normal(key, (3, 2, 5, 4))
    assert jnp.allclose(gpu.heads_first(*qkv), gpu.attend(*qkv), atol=1e-6)


def test_every_objective_has_values_of_a_cpu():
    assert set(json.loads(parity.FILE.read_text())) == set(OBJECTIVES)


def test_flow_matching_has_the_values_of_a_cpu():
    found = parity.values(FlowMatching())
    assert max(parity.differences(found, json.loads(parity.FILE.read_text())["flow-matching"]).values()) < 1e-4
    doubled = found | {"norms": [2 * norm for norm in found["norms"]]}
    assert parity.differences(doubled, found)["gradient, relative difference"] > 0.5
    assert parity.differences(found | {"loss": 2 * found["loss"]}, found)["loss, relative difference"] == pytest.approx(1)


@pytest.mark.slow
def test_the_list_runs_on_tiny_networks(tmp_path, lab):
    gpu.run(["ceilings", "b2-shortcut-256-fast", "b2-sampling", "loading", "attention"], lab, tmp_path, time.monotonic() + 1000)
    found = files(tmp_path)
    assert len(found) == 5
    for row in found.values():
        assert "error" not in row, row
