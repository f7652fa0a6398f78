"""Runs and caches in an object store, through the commands: the same numbers as on a disk, and nothing beside it."""

import pathlib
import signal

import numpy as np
import pytest

import eqx_shortcut
from autoencoders import write_autoencoder
from commands import in_process, snapshot
from eqx_shortcut.data.pairs import read_pairs
from eqx_shortcut.experiment.monitor import Monitor
from object_store import Objects

NETWORK = "--network.hidden 16 --network.depth 1 --network.heads 2 --batch 16 --objective.steps 4 --log-every 1".split()
DIGITS = [
    *NETWORK,
    *"--steps 4 --checkpoint.every 2 --sample-every 2 --figures.batches 0 --quality.count 16 --quality.steps 1".split(),
]
LATENTS = [*NETWORK, *"--steps 2 --checkpoint.every 2 --sample-every 2 --optimizer.warmup 0".split()]


@pytest.fixture(autouse=True)
def nowhere(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working folder is empty, and stays so: a path that became a local one leaves its folder there."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


def folder(store: Objects, name: str) -> dict[str, bytes]:
    """Objects below a name in the bucket."""
    start = f"bucket/{name}/"
    return {key.removeprefix(start): data for key, (data, _) in sorted(store.items()) if key.startswith(start)}


def done(script: str, *args: str, code: int = 0) -> str:
    """What a command says that ends as it should."""
    found, out, err = in_process(script, list(args))
    assert found == code and "Traceback" not in err, err
    return out + err


@pytest.mark.slow
def test_a_run_in_an_object_store_stops_continues_and_is_opened(store, tmp_path, monkeypatch):
    done("digits", *DIGITS, "--runs", str(tmp_path / "runs"))
    whole = tmp_path / "runs" / "digits" / "shortcut"
    remote = (*DIGITS, "--runs", "gs://bucket/runs")
    with monkeypatch.context() as patch:
        patch.setattr(Monitor, "samples", lambda *_: signal.raise_signal(signal.SIGTERM) or {})
        said = done("digits", *remote, code=128 + signal.SIGTERM)
    assert "stopped by SIGTERM after step 2, checkpoint written" in said
    assert len(folder(store, "runs/digits/shortcut")["metrics.jsonl"].splitlines()) == 2
    assert "gs://bucket/runs/digits/shortcut: continuing after step 2" in done("digits", *remote)
    found = folder(store, "runs/digits/shortcut")
    for name in ("metrics.jsonl", "evaluation.json"):
        assert found[name] == (whole / name).read_bytes()
    assert {name for name in found if "checkpoints" not in name} == {
        *("config.json", "loss.png", "metrics.jsonl", "evaluation.json", "evaluation.md", "quality.png"),
        *("samples/step_0000004.png",),
    }
    assert "holds another run: seed is 1, there it is 0" in done("digits", *remote, "--seed", "1", code=1)

    address = "gs://bucket/runs/digits/shortcut"
    model, same = eqx_shortcut.load(address), eqx_shortcut.load(whole)
    np.testing.assert_array_equal(model.network.label, same.network.label)
    done("sample", address, "--steps", "1", "--count", "2", "--out", str(tmp_path / "grid.png"))
    pairs = ("--count", "4", "--steps", "1", "--shard", "2")
    done("pairs", address, "--out", "gs://bucket/pairs", *pairs)
    assert read_pairs("gs://bucket/pairs", (8, 8, 1)).labels.tolist() == [0, 1, 2, 3]
    assert list(pathlib.Path().iterdir()) == []


@pytest.mark.slow
def test_a_cache_in_an_object_store_is_filled_and_trained_from(store, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "photos.npz", images=pixels, labels=np.arange(24) % 3)
    write_autoencoder(tmp_path / "vae")
    source = ["source:arrays", "--source.path", str(tmp_path / "photos.npz"), "--source.size", "8"]
    encode = [*source, "--vae", str(tmp_path / "vae"), "--batch", "8", "--shard", "16", "--out"]
    done("encode", *encode, str(tmp_path / "cache"))
    done("encode", *encode, "gs://bucket/cache")
    assert folder(store, "cache") == snapshot(tmp_path / "cache")

    line = ["tiny", *LATENTS, "--vae", str(tmp_path / "vae")]
    remote = [*line, "--cache", "gs://bucket/cache", "--runs"]
    assert "latents in gs://bucket/cache: 4 x 4 x 2" in done("images", *remote, "gs://bucket", "--dry-run")
    done("images", *line, "--cache", str(tmp_path / "cache"), "--runs", str(tmp_path))
    said = done("images", *remote, "gs://bucket/one")
    assert "copying gs://bucket/cache: 100%" in said
    records = folder(store, "one/images/shortcut")["metrics.jsonl"]
    assert records == (tmp_path / "images" / "shortcut" / "metrics.jsonl").read_bytes()
    assert list(pathlib.Path().iterdir()) == []


def test_a_run_in_no_store_is_one_sentence():
    code, _, err = in_process("digits", ["--runs", "s3://bucket/runs"])
    assert code == 2 and "s3://bucket/runs is in no store that can be used" in " ".join(err.replace("│", " ").split())
