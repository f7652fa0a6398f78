"""Inputs over which users of such tools stumbled: each of ../shared/cases does what is right now.

They were written for commands that lay in experiments/ (see CHANGELOG.md), and run as they are, beside shims of their names.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import pytest

from scripts import ROOT

CASES = ROOT.parent / "shared" / "cases"
MOVED = {
    "encode_latents": "encode",
    "evaluate": "evaluate",
    "interpolate": "interpolate",
    "make_pairs": "pairs",
    "sample": "sample",
    "weights": "weights",
}
OTHER_USER = ("hang-after-unwritten-checkpoint", "no-home")
SYSTEM_PYTHON = pathlib.Path("/usr/bin/python3.11")

DONE, REFUSED, FAILED, MISUSED = r"\[exit 0\]", r"\[exit [12]\]", r"\[exit 1\]", r"\[exit 2\]"
SAVED = r"classes {} images {} labels"

EXPECTED = {
    "apple-double": ["passed over: hidden 1", DONE, SAVED.format(2, 12)] * 2,
    "ascii-terminal": [DONE] * 6 + [r"^.*\.png'?$", DONE],
    "batch-of-one": [
        r"error: batch 1 .*use a batch of 10$",
        FAILED,
        r"error: batch 7 .*use a batch of 10$",
        FAILED,
        r"error: batch 7 .*use a batch of 4 or 8, or --objective.bootstrap-every 7",
        FAILED,
        MISUSED,
        "error: --objective.steps 1: use 2 or more",
        MISUSED,
    ],
    "class-of-other-suffix": [DONE, SAVED.format(3, 18), DONE, SAVED.format(2, 9), DONE, SAVED.format(2, 8)],
    "ctrl-c": [
        r"tracebacks 0 \| last: stopped by SIGINT.* exit 130",
        r"tracebacks 0 \| last: stopped by SIGINT.* exit 130",
        r"tracebacks 0 .* exit (130|0)\n",
        r"tracebacks 0 \| last: stopped by SIGINT.* exit 130",
    ],
    "ds-store-in-checkpoint": [DONE] * 3,
    "dt-bias-few-rows": [
        r"ValueError: .*dt_bias has 8 bootstrap rows for the 7 step sizes.*: use a batch of at least 112",
        r"error: .*dt-bias has 8 bootstrap rows for the 5 step sizes.*: use a batch of at least 20",
        FAILED,
        r"error: .*dt-bias",
        FAILED,
    ],
    "folder-class-names": [
        DONE,
        "label 2 is folder 2",
        r"1 step, 2: 4 samples",
        DONE,
        r"\n1\n",
        DONE,
        "class 0 of 2 is",
        FAILED,
    ],
    "hang-after-unwritten-checkpoint": [r"exit 0, \d s after its last line"],
    "labels-of-an-unlabelled-run": [
        "error: --guidance 4 goes from no condition to one, and the run was trained without",
        FAILED,
        "ValueError: label 3 for a run that was trained without labels",
        "without labels",
        FAILED,
    ],
    "labels-under-another-name": ["--source.label", FAILED, *[DONE, SAVED.format(4, 8)] * 4],
    "moved-data": [DONE] * 3,
    "nan-latents": [r"error: .*photos/cat.*(not finite|not numbers|half precision)", FAILED] * 2,
    "nested-folders": [DONE, SAVED.format(3, 12), DONE, SAVED.format(2, 8), DONE, SAVED.format(2, 8)],
    "no-home": [DONE] * 3,
    "option-of-another-command": [
        "--source.on-bad-image replace",
        FAILED,
        MISUSED,
        r"nowhere.*name another with --source.path",
        FAILED,
        r"--source.size 0|source.size",
        REFUSED,
        r"nowhere.parquet.*with --source.path",
        FAILED,
    ],
    "out-of-memory": [r"error: .*--batch", FAILED, r"error: .*--batch|error: .*--source.size", FAILED, r"error: ", FAILED],
    "replace-does-not": [
        *["is empty", DONE, SAVED.format(1, 4)] * 2,
        "is empty",
        DONE,
        *[DONE, r"classes \d images [67] labels"] * 2,
    ],
    "seeds": [DONE, DONE, "the same images: False", *[DONE] * 4],
    "split-names-as-classes": [DONE, SAVED.format(1, 9), DONE, SAVED.format(1, 9), DONE, SAVED.format(2, 18)],
    "two-processes-one-run": [r"error: .*(another|process)"],
    "values-out-of-range": [*["==", REFUSED] * 12, *[REFUSED] * 3],
}
"""What each case prints in turn: a status after what it says."""
OF_THE_CASE = ("dt-bias-few-rows", "labels-of-an-unlabelled-run", "nan-latents")
"""Cases with lines of Python of their own, in which the sentence is an exception, or a file is looked for that is not there."""


@pytest.fixture(scope="session")
def place() -> Iterator[pathlib.Path]:
    """A folder that other users may read, as those of pytest are not."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield pathlib.Path(folder)


@pytest.fixture(scope="session")
def root(place: pathlib.Path) -> pathlib.Path:
    """A folder like the project's of before: the commands lie in experiments/."""
    if not CASES.is_dir():
        pytest.skip("the cases lie beside the project, in ../shared/cases, for its developers")
    folder = place / "project"
    (folder / "experiments").mkdir(parents=True)
    for name in ("eqx_shortcut", "tests"):
        (folder / name).symlink_to(ROOT / name)
    for path in (ROOT / "experiments").glob("*.py"):
        (folder / "experiments" / path.name).symlink_to(path)
    for before, now in MOVED.items():
        text = f"import sys\nfrom eqx_shortcut.__main__ import main\nsys.argv[1:1] = [{now!r}]\nmain()\n"
        (folder / "experiments" / f"{before}.py").write_text(text)
    return folder


@pytest.fixture(scope="session")
def environment(place: pathlib.Path) -> dict[str, str]:
    """That of a user, with a home for all cases, and one folder for their runs and autoencoder."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_", "XDG_", "PYTEST_"))}
    home = ROOT / ".pytest_cache" / "home"
    home.mkdir(parents=True, exist_ok=True)
    return {**kept, "HOME": str(home), "PY": sys.executable, "CASES_WORK": str(place / "work"), "N": "40"}


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", EXPECTED)
def test_a_case_does_what_is_right(root, environment, name):
    if name in OTHER_USER and not (os.geteuid() == 0 and shutil.which("setpriv") and SYSTEM_PYTHON.exists()):
        pytest.skip(f"it takes root, setpriv and {SYSTEM_PYTHON} to become another user")
    # What waits for ever would outlive the test.
    command = ["timeout", "900", "bash", str(CASES / name / "run.sh")]
    ran = subprocess.run(command, env={**environment, "MAIN": str(root)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    printed, place = ran.stdout.decode(errors="replace"), 0
    for pattern in EXPECTED[name]:
        found = re.compile(pattern, re.MULTILINE).search(printed, place)
        assert found, f"no {pattern!r} after place {place} of:\n{printed}"
        place = found.end()
    assert name in OF_THE_CASE or not re.search(r"Traceback|jax\.errors", printed)


def test_every_case_has_its_expectation():
    if not CASES.is_dir():
        pytest.skip("the cases lie beside the project, in ../shared/cases, for its developers")
    assert {path.parent.name for path in CASES.glob("*/run.sh")} == EXPECTED.keys()
