"""Several processes that encode one cache or measure one run: what one writes, one voice, and no wait for one that is gone."""

import pathlib

import jax
import numpy as np
import PIL.Image
import pytest

from autoencoders import write_autoencoder
from commands import in_process, snapshot
from eqx_shortcut import distributed, settings
from eqx_shortcut.data import Digits
from eqx_shortcut.data.latents import MANIFEST
from jobs import finish, start
from runs import write_run

COUNT = 24
WRITING = """
import os, sys
from eqx_shortcut.__main__ import main
from eqx_shortcut.data.latents import Shard
write = Shard.write
Shard.write = lambda shard, *args: (write(shard, *args), {})
sys.argv = sys.argv[2:]  # without -c and -m
main()
"""
NOTING = WRITING.format("print('wrote', shard.folder.name, shard.index, file=sys.stderr)")
KILLED = WRITING.format("os._exit(9)")
"""Ends like a process that is killed, once it has written its first shard."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Photos, an autoencoder, and the cache that one process makes of them; do not change them."""
    folder = tmp_path_factory.mktemp("processes")
    (folder / "photos").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (COUNT, 8, 8, 3), np.uint8)
    for number, image in enumerate(pixels):
        PIL.Image.fromarray(image).save(folder / "photos" / f"{number:02d}.png")
    write_autoencoder(folder / "vae")
    assert in_process("encode", line(folder, folder / "cache"))[0] == 0
    return folder


def line(base: pathlib.Path, out: pathlib.Path, photos: str = "photos") -> list[str]:
    """Four shards to train on, and one held out."""
    source = ["source:image-folder", "--source.path", str(base / photos), "--source.size", "8", "--source.held-out", "0.1"]
    return [*source, "--vae", str(base / "vae"), "--out", str(out), "--batch", "8", "--shard", "6"]


def processes(args: list[str], *before: tuple[str, ...], script: str = "encode") -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each process; before its script, `before` is what else Python is given."""
    return finish(start(script, args, *before))


def test_two_processes_write_what_one_does_and_one_of_them_says_so(base, tmp_path):
    noting = ("-c", NOTING)
    (code, out, err), (other, silent, quiet) = processes(line(base, tmp_path / "cache"), noting, noting)
    assert (code, other) == (0, 0), err + quiet
    assert snapshot(tmp_path / "cache") == snapshot(base / "cache")
    assert "22 training and 2 held-out images" in out and silent == ""
    assert "encoding" not in quiet
    # Every second shard each, so that each image is encoded once.
    written = [
        [said.removeprefix("wrote ") for said in text.splitlines() if said.startswith("wrote ")] for text in (err, quiet)
    ]
    assert written == [["train 0", "train 2", "held_out 0"], ["train 1", "train 3"]]


@pytest.mark.slow
def test_two_processes_measure_what_one_does(tmp_path):
    args, found = "--features pixels --count 90 --batch 15 --part 20 --steps 1 2".split(), []
    for name, count in (("one", 1), ("two", 2)):
        run = write_run(tmp_path / name, shape=(8, 8, 1), data=settings.dump(Digits()))
        said = processes([str(run), *args], *[()] * count, script="evaluate")
        assert all(code == 0 for code, _, _ in said), said
        assert all(("held-out images" in out) == (number == 0) for number, (_, out, _) in enumerate(said))
        found.append(settings.read(run / "evaluation.json"))
    one, two = found
    assert one["floors"] == two["floors"], "the same parts, added in the same order"
    assert [row["protocol"] for row in one["results"]] == [row["protocol"] for row in two["results"]]
    for a, b in zip(one["results"], two["results"], strict=True):
        assert a["measures"] == pytest.approx(b["measures"], rel=1e-10)


@pytest.mark.slow
def test_what_fails_in_one_process_ends_all_with_a_sentence(base, tmp_path):
    """A bad image in a shard of the second process."""
    (tmp_path / "photos").mkdir()
    for path in (base / "photos").iterdir():
        (tmp_path / "photos" / path.name).write_bytes(path.read_bytes() if path.name != "09.png" else b"no image")
    result = processes(line(base, tmp_path / "cache", str(tmp_path / "photos")), (), ())
    assert [code for code, _, _ in result] == [1, 1]
    assert "error: process 1 failed and says why" in result[0][2] and "09.png" in result[1][2]
    assert all("Traceback" not in err for _, _, err in result)
    assert not (tmp_path / "cache" / MANIFEST).exists()


@pytest.mark.slow
def test_a_process_that_is_killed_leaves_a_folder_that_one_goes_on_with(base, tmp_path):
    codes = [code for code, _, _ in processes(line(base, tmp_path / "cache"), (), ("-c", KILLED))]
    assert codes[1] == 9 and codes[0] != 0
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.npy")}
    assert 2 <= len(written) < 10 and not (tmp_path / "cache" / MANIFEST).exists()
    assert in_process("encode", line(base, tmp_path / "cache"))[0] == 0
    assert snapshot(tmp_path / "cache") == snapshot(base / "cache")
    assert all(path.stat().st_mtime_ns == time for path, time in written.items())


SLURM = {"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "a", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
ALONE = {
    "nothing": {},
    "one task": SLURM | {"SLURM_NTASKS": "1"},
    "a shell in an allocation": {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8"},
    "one rank": {"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1", "OMPI_COMM_WORLD_SIZE": "1"},
    "one host of TPUs": {"TPU_WORKER_HOSTNAMES": "localhost"},
}
SEVERAL = {
    "srun": SLURM | {"SLURM_NTASKS": "2"},
    "mpirun": {"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1", "OMPI_COMM_WORLD_SIZE": "4"},
    "a pod of TPUs": {"TPU_WORKER_HOSTNAMES": "a,b"},
    "the environment": {"JAX_COORDINATOR_ADDRESS": "host:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"},
}


@pytest.mark.parametrize("environment", [*ALONE.values(), *SEVERAL.values()], ids=[*ALONE, *SEVERAL])
def test_processes_are_joined_where_several_were_started(environment, monkeypatch):
    joined: list[tuple] = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **_: joined.append(args))
    distributed.initialize(environment)
    given = ("host:1", 2, 1) if "JAX_NUM_PROCESSES" in environment else ()
    assert joined == ([given] if environment in SEVERAL.values() else [])


@pytest.mark.parametrize("given", [{}, {"JAX_NUM_PROCESSES": "two"}, {"JAX_NUM_PROCESSES": "2"}])
def test_half_an_environment_is_refused(given):
    missing = "JAX_PROCESS_ID" if given.get("JAX_NUM_PROCESSES") == "2" else "JAX_NUM_PROCESSES"
    with pytest.raises(
        distributed.ProcessError, match=f"JAX_COORDINATOR_ADDRESS is set and {missing} is .*: set it to a number"
    ):
        distributed.initialize({"JAX_COORDINATOR_ADDRESS": "host:1", **given})


def test_processes_that_cannot_be_joined_are_one_sentence(monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("DEADLINE_EXCEEDED: Barrier timed out.\nmore")

    monkeypatch.setattr(jax.distributed, "initialize", refuse)
    with pytest.raises(
        distributed.ProcessError, match=r"could not join the others \(DEADLINE_EXCEEDED: Barrier timed out.\)"
    ) as e:
        distributed.initialize(SEVERAL["the environment"])
    assert "\n" not in str(e.value)


def test_alone_what_fails_is_what_is_raised():
    with pytest.raises(KeyError, match="why"), distributed.barrier():
        raise KeyError("why")
