"""Where commands run: without a home, on terminals without some characters, before `head`, stopped while they are imported."""

import dataclasses
import errno
import io
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import Annotated, ClassVar

import jax
import numpy as np
import pytest
import tyro

from eqx_shortcut import cli, compilation, settings, storage
from eqx_shortcut.data.formats import tfds
from eqx_shortcut.experiment import log
from eqx_shortcut.interrupts import interruptible
from scripts import EXPERIMENTS, script


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings • 猫."""

    count: int = 1
    """How many • there are."""


def ended(main: Callable[[Config], None], *args: str) -> int:
    """The exit status of a command, which has none if it ends well."""
    try:
        cli.command(main, Config, Config.__doc__, args=args, prog="猫")
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


# The cache of compiled programs.


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No home, as where there is neither HOME nor a passwd entry, and no folder named for a cache."""

    def home() -> pathlib.Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(pathlib.Path, "home", home)
    for name in ("XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    before = used()
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def used() -> str | None:
    """The folder in which compiled programs are kept."""
    return jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]


def unkept() -> str:
    """The sentence on a cache that cannot be used, in one line."""
    said = compilation.use_compilation_cache()
    assert used() is None and said is not None
    assert "\n" not in said and "compiled programs are not kept" in said
    return said


@pytest.mark.parametrize("cache", [None, ""])
def test_without_a_home_nothing_is_kept_and_it_is_said(homeless, monkeypatch, cache):
    if cache is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", cache)
    assert "name a folder by XDG_CACHE_HOME" in unkept()


def test_without_a_home_programs_are_kept_in_the_folder_that_is_named(homeless, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "new"))
    assert compilation.use_compilation_cache() is None
    assert used() == str(tmp_path / "new" / "eqx_shortcut" / "xla")


def test_a_cache_that_cannot_be_made_is_not_used(homeless, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert str(tmp_path / "file") in unkept()


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_cache_that_cannot_be_written_is_not_used(homeless, monkeypatch, tmp_path, number):
    def refuse(**_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    assert os.strerror(number) in unkept()


# Terminals.


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_characters_that_a_terminal_lacks_are_replaced(monkeypatch, encoding):
    def main(config: Config) -> None:
        print("drawn 猫 \udce9.png")  # as the name of a file is that is not in UTF-8
        raise ValueError("no 猫")

    def printed(*args: str) -> tuple[int, str]:
        files = io.BytesIO(), io.BytesIO()
        for name, file in zip(("stdout", "stderr"), files, strict=True):
            monkeypatch.setattr(sys, name, io.TextIOWrapper(file, encoding=encoding))
        status = ended(main, *args)
        sys.stderr.flush()
        return status, "".join(file.getvalue().decode(encoding) for file in files)

    assert printed() == (1, "drawn ? ?.png\nerror: no ?\n")
    status, text = printed("--help")
    assert status == 0 and "--count INT" in text and "How many" in text


@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_pipe_that_nobody_reads_ends_a_command_quietly(monkeypatch, tmp_path, lines):
    """What fits into the buffer is written last of all, more than that in the middle."""
    unread, pipe = os.pipe()
    os.close(unread)
    with open(pipe, "w") as out, (tmp_path / "err").open("w") as err:
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        assert ended(lambda _: print("a line\n" * lines)) == 141
        monkeypatch.undo()
    assert (tmp_path / "err").read_bytes() == b""


def test_another_pipe_that_breaks_is_told(monkeypatch, tmp_path):
    def main(config: Config) -> None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    with (tmp_path / "out").open("w") as out, (tmp_path / "err").open("w") as err:
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        assert ended(main) == 1
        monkeypatch.undo()
    assert (tmp_path / "err").read_text() == "error: Broken pipe\n"


def interrupted(start: str, module: str, number: signal.Signals, *args: object) -> tuple[int, str, str]:
    """What a process does that gets a signal when it begins to import a module whose name starts so."""
    code = (
        "import os, runpy, sys\nfrom eqx_shortcut import __main__\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name.startswith({module!r}):\n"
        f"            try: os.kill(os.getpid(), {int(number)})\n"
        "            except BaseException: raise ImportError\n"
        f"sys.meta_path.insert(0, Interrupting())\n{start}"
    )
    ran = subprocess.run([sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, check=False)
    return ran.returncode, ran.stdout, ran.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("module", ["tyro", "eqx_shortcut.commands.weights", "jax"])
def test_a_signal_during_imports_is_one_line(tmp_path, module, number):
    """In the edge, in a command's own module, and behind it, where the library that is imported catches what is raised."""
    ended = interrupted("__main__.main()", module, number, "weights", "export", tmp_path, tmp_path / "w.safetensors")
    assert ended == (128 + number, "", f"\nstopped by {number.name}\n")


COMMANDS = sorted(path for path in EXPERIMENTS.glob("*.py") if '__name__ == "__main__"' in path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_a_signal_during_the_imports_of_an_experiment_is_one_line(path):
    start = f"sys.path.insert(0, {str(path.parent)!r})\nrunpy.run_path({str(path)!r}, run_name='__main__')"
    ended = interrupted(start, "eqx_shortcut.", signal.SIGINT)
    assert ended == (128 + signal.SIGINT, "", "\nstopped by SIGINT\n")


def test_another_thread_leaves_signals_alone():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with interruptible():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_any_other_place_is_raised(capsys, number):
    """What is being written is taken back."""
    taken_back = []

    def main(config: Config) -> None:
        try:
            os.kill(os.getpid(), number)
        finally:
            taken_back.append(True)

    assert ended(main) == 128 + number and taken_back
    assert capsys.readouterr() == ("", f"\nstopped by {number.name}\n")


# Text.


def test_text_is_utf8_whatever_the_locale(tmp_path):
    (tmp_path / "names").write_bytes("猫\nchâteau".encode())
    (tmp_path / "config.json").write_bytes('{"name": "猫"}'.encode())
    code = (
        "import sys, pathlib; from eqx_shortcut import settings, storage; folder = pathlib.Path(sys.argv[1])\n"
        "print(ascii(storage.read_text(folder / 'names')), ascii(settings.read(folder / 'config.json')['name']))"
    )
    # No UTF-8 mode, which Python has by itself in the locale C.
    environment = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    ran = subprocess.run([sys.executable, "-c", code, tmp_path], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == f"{'猫' + chr(10) + 'château'!a} {'猫'!a}"


@pytest.mark.parametrize("text", ["château", "naïve\nÿ"])
def test_text_in_other_bytes_is_refused_by_the_name_of_its_file(tmp_path, text):
    for name in ("names.txt", "config.json", "label.labels.txt"):
        (tmp_path / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(storage.StorageError, match=r"names\.txt is no text in UTF-8 .*: save it in UTF-8"):
        storage.read_text(tmp_path / "names.txt")
    with pytest.raises(ValueError, match=r"config\.json cannot be read as settings"):
        settings.read(tmp_path / "config.json")
    with pytest.raises(ValueError, match=r"label\.labels\.txt is no text in UTF-8"):
        tfds.read_features(tmp_path)


@pytest.mark.parametrize("text", [b'{"step": 1, "loss": 0.5}\n\xe9', b'{"step": 1, "run": "\xff"}\n'])
def test_metrics_in_other_bytes_are_refused_by_the_name_of_their_file(tmp_path, text):
    (tmp_path / "metrics.jsonl").write_bytes(text)
    with pytest.raises(storage.StorageError, match=r"metrics\.jsonl is no text in UTF-8"):
        log.read_lines(tmp_path / "metrics.jsonl")


# Names of options.


@pytest.mark.parametrize(
    ("name", "words"),
    [("--source.path nowhere", "with --source.path"), ("--source.path nowhere.png --source.label x", "with --source.path")],
)
def test_encode_names_its_own_options(tmp_path, capsys, monkeypatch, name, words):
    from eqx_shortcut.data import encode
    from eqx_shortcut.pretrained import autoencoder_files

    monkeypatch.setattr(autoencoder_files, "load_autoencoder", lambda path: None)
    monkeypatch.setattr(encode, "encode", lambda source, *args, **options: source.build())
    kind = "parquet" if "label" in name else "image-folder"
    with pytest.raises(SystemExit) as stop:
        cli.main(["encode", f"source:{kind}", *name.split(), "--vae", str(tmp_path), "--out", str(tmp_path / "latents")])
    err = capsys.readouterr().err
    assert stop.value.code == 1 and words in err and "--data." not in err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (
            "--batch 24 --objective.bootstrap-every 5",
            "batch 24 is not a multiple of --objective.bootstrap-every 5: use a batch of 25",
        ),
        ("--batch 8 --objective.dt-bias", "with --objective.bootstrap-every 2 and --objective.dt-bias has 4 bootstrap rows"),
        ("objective:mean-flow --network.step linear --batch 24 --objective.bootstrap-every 5", "a batch of 20 or 25, or --obj"),
    ],
)
def test_training_names_the_options_of_its_objective(tmp_path, capsys, monkeypatch, args, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        script("digits").EXPERIMENT.main(["--dry-run", *args.split()])
    assert stop.value.code == 1 and words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "line", "sentence"),
    [
        ("digits", "--optimizer.beta1 1.5", "--optimizer.beta1 1.5: use 0 to below 1"),
        ("digits", "optimizer:muon --optimizer.clip=-1", "--optimizer.clip -1.0: use more than 0, or None"),
        ("digits", "--batch 4 --quality.batch 0", "--quality.batch 0: use 1 or more"),
        ("digits", "--quality.batch 4 --batch 0", "--batch 0: use 1 or more"),
        ("digits", "--quality.steps 4 0", "--quality.steps 4 0: use 1 or more"),
        (
            "digits",
            "objective:mean-flow --objective.interval 0.5 0.2",
            "--objective.interval 0.5 0.2 ends before it starts: name the earlier time first",
        ),
        ("celeba", "--encode_batch 0", "--encode-batch 0: use 1 or more"),
        ("celeba", "data:image-folder --data.path x --data.size 0", "--data.size 0: use 1 or more"),
        (
            "images",
            "pixels data:parqet --data.path x",
            "no data:parqet: choose one of data:image-folder, data:parquet, data:tfds, data:arrays",
        ),
        ("digits", "optimizer:mon --steps 1", "no optimizer:mon: choose one of optimizer:adamw, optimizer:muon"),
        ("digits", "--name optimizer:mon --steps -1", "--steps -1: use 1 or more"),
    ],
)
def test_a_value_out_of_range_is_one_sentence_with_its_option(capsys, name, line, sentence):
    """As it is on the command line, wherever the field is: that of the images of latents is `data.images.size`."""
    with pytest.raises(SystemExit) as stop:
        script(name).EXPERIMENT.main(line.split())
    assert stop.value.code == 2 and capsys.readouterr().err == f"error: {sentence}\n"


def test_help_is_as_wide_as_the_terminal_and_leaves_examples_alone(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "60")
    example = "    eqx-shortcut sample runs/digits/shortcut --steps 1 4 128    # wider than the terminal"
    with pytest.raises(SystemExit):
        cli.parse(Config, f"Draws.\n\n{example}\n\n{'several words ' * 20}\n(of this text)\n", args=["--help"], prog="draw")
    text, _, _ = capsys.readouterr().out.partition("options")
    lines = text.splitlines()
    assert [line for line in lines if len(line) > 60] == [f" {example}"]
    assert f"{'several words ' * 20}(of this text)" in " ".join(text.split())
    assert sum("words" in line for line in lines) == 5  # four pairs of 14 characters in a line


@pytest.mark.parametrize(("word", "listed"), [("--stesp", False), ("objective:shortcutt", True)])
def test_subcommands_are_listed_unless_a_nearer_option_is_named(capsys, word, listed):
    with pytest.raises(SystemExit):
        script("digits").EXPERIMENT.parse([word])
    said = capsys.readouterr().err
    assert word in said and ("objective:mean-flow" in said) == listed and ("--steps INT" in said) != listed


def test_a_word_that_is_no_number_is_explained_with_its_option(capsys):
    with pytest.raises(SystemExit) as stop:
        script("digits").EXPERIMENT.main(["--batch", "x"])
    assert stop.value.code == 2 and "Error parsing --batch" in capsys.readouterr().err


# Memory.


@dataclasses.dataclass(frozen=True)
class Images:
    """Nothing but a size."""

    size: int = 512


@dataclasses.dataclass(frozen=True)
class Source:
    """Settings that stand on the command line by themselves, and a part that is called by another name."""

    images: Annotated[Images, tyro.conf.arg(name="data")] = Images()
    encode_batch: int = 16
    prefix: ClassVar[str] = ""


@dataclasses.dataclass(frozen=True)
class Network:
    """Of which less can be kept."""

    remat: str = "elementwise"


@dataclasses.dataclass(frozen=True)
class Large:
    """A command whose memory depends on settings."""

    data: Annotated[Source, tyro.conf.arg(name="")] = Source()
    network: Network = Network()
    batch: int = 128
    accumulate: int = 1


EXHAUSTED = {
    "INTERNAL: Error dispatching computation: Out of memory allocating 15360000000 bytes.": "of a device: 14.31 GiB more",
    "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 68,723,671,040 bytes.": "of a device: 64.00 GiB more",
    "RESOURCE_EXHAUSTED: Attempting to allocate 2.50G. That was not possible.": "of a device: 2.50 GiB more",
    "INTERNAL: CUDA_ERROR_OUT_OF_MEMORY: out of memory": "of a device: ",
}


@pytest.mark.parametrize("said", EXHAUSTED)
def test_a_device_without_memory_is_one_sentence_with_the_options_that_take_less(capsys, said):
    def main(config: Large) -> None:
        raise jax.errors.JaxRuntimeError(said)

    with pytest.raises(SystemExit) as stop:
        cli.command(main, Large, None, args=["--batch", "64"])
    out, err = capsys.readouterr()
    assert stop.value.code == 1 and out == "" and err.count("\n") == 1
    assert err.startswith(f"error: out of memory {EXHAUSTED[said]}")
    lower = "lower --data.size 512, or lower --encode-batch 16, or use --network.remat block, or lower --batch 64"
    assert err.endswith(f": {lower}, or raise --accumulate 1\n")


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.ENOENT, "No such file or directory: check the path"), (errno.ENOSPC, "No space left on device: free space for ")],
)
def test_what_is_missing_is_no_want_of_space(capsys, number, remedy):
    def main(config: Config) -> None:
        with cli.room_for(pathlib.Path("runs")):
            raise OSError(number, os.strerror(number), "demo.npz")

    with pytest.raises(SystemExit):
        cli.command(main, Config, None, args=[])
    assert capsys.readouterr().err.startswith(f"error: demo.npz: {remedy}")


@pytest.mark.parametrize("array", [False, True])
def test_a_machine_without_memory_is_one_sentence(capsys, array):
    """An array of NumPy's, and one of Python's own."""

    def main(config: Config) -> None:
        if not array:
            raise MemoryError
        np.empty((2**30, 2**20))

    assert ended(main) == 1
    wanted = "" if not array else ": 8.00 PiB more were asked for at once"
    assert capsys.readouterr() == ("", f"error: out of memory of this machine{wanted}: lower --count 1\n")


def test_another_error_of_a_device_is_a_defect(capsys):
    def main(config: Config) -> None:
        raise jax.errors.JaxRuntimeError("INVALID_ARGUMENT: shapes")

    with pytest.raises(jax.errors.JaxRuntimeError, match="INVALID_ARGUMENT"):
        ended(main)
