"""Commands of the experiments run in this process, and what they leave."""

import contextlib
import io
import pathlib
import runpy
import sys

import pytest

EXPERIMENTS = pathlib.Path(__file__).parents[2] / "experiments"


def in_process(script: str, args: list[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a script run here, on eight devices."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", [f"{script}.py", *args])
        patch.syspath_prepend(str(EXPERIMENTS))
        try:
            runpy.run_path(str(EXPERIMENTS / f"{script}.py"), run_name="__main__")
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
    return code, out.getvalue(), err.getvalue()


def snapshot(folder: pathlib.Path) -> dict[str, bytes]:
    """Every file by its path, with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
