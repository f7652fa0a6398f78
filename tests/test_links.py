"""Times of collectives at the rates of links (benchmarks/links.py)."""

import json
import pathlib

import pytest

from scripts import script

links = script("links")
ROOT = pathlib.Path(__file__).parents[1]
ROWS = json.loads((ROOT / "experiments/results/scaling.json").read_text())["rows"]
V5E, _, H100 = links.CHIPS


@pytest.mark.parametrize("chip", links.CHIPS, ids=lambda chip: chip.name)
def test_a_sum_inside_a_domain_is_two_gathers(chip):
    assert chip.reduce(1e9, 8, grid=False) == pytest.approx(2 * chip.gather(1e9, 8))


def test_pod_of_v5e_sums_at_its_published_rate():
    """51.2 TB/s for 256 chips: each passes on all but its own share at 200 GB/s, there and back."""
    assert V5E.reduce(1e9, 256) == pytest.approx(2 * 1e9 * 255 / 256 / (51.2e12 / 256))


def test_between_hosts_each_gpu_sends_its_eighth():
    inside = H100.reduce(1e9, 8)
    assert H100.reduce(1e9, 16) - inside == pytest.approx(2 * 1e9 / 8 / 2 / 50e9)


@pytest.mark.parametrize("network", links.NETWORKS)
def test_traffic_is_the_networks_own(network):
    """Gradients are float32; FSDP gathers each kernel in each of four passes, in bfloat16; tensor parallel halves gradients."""
    data, fsdp, tensor = (links.traffic(ROWS, network, kind) for kind in links.KINDS)
    weights = next(row["bytes_a_device"]["weights"] for row in ROWS if row["network"] == network and row["mesh"]["fsdp"] == 1)
    assert weights < data.gradient < 1.2 * weights
    assert 0.95 * 4 * weights / 2 < fsdp.kernels < 4 * weights / 2
    assert data.gradient / 2 < tensor.gradient < 0.75 * data.gradient and data.activations == data.kernels == 0


@pytest.mark.parametrize("kind", links.KINDS)
def test_where_it_ends_both_take_as_long(monkeypatch, kind):
    monkeypatch.setattr(links, "operations", lambda network: 1e12)
    sent = links.traffic(ROWS, "b", kind)
    images = links.ends(sent, V5E, "b", kind)
    assert sent.sent(V5E, kind, 1024, images).total == pytest.approx(links.compute(V5E, "b", images))


def test_the_table_of_the_documentation_is_that_of_the_results():
    page = (ROOT / "docs/scaling.md").read_text()
    for line in links.table(ROWS).splitlines():
        assert line in page
