"""Log files get few lines, terminals and notebooks their bars."""

import contextlib
import io
import os
import re
import sys
import termios
from types import SimpleNamespace
from unittest import mock

import pytest
import tqdm.auto
import tqdm.notebook
import tqdm.std

from eqx_shortcut import progress
from eqx_shortcut.experiment.records import Recorder
from eqx_shortcut.experiment.run import Run
from eqx_shortcut.optimizer import AdamW
from eqx_shortcut.train import TrainState


class Clock:
    """A clock that is set by hand."""

    time = 1000.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "now", clock)
    return clock


def stepped(bar: tqdm.tqdm, clock: Clock, steps: int, seconds: float) -> None:
    """So many steps in so many seconds, each of which would be shown at once."""
    for _ in range(steps):
        clock.time += seconds / steps
        bar.update()
        bar.set_postfix_str("loss 0.5, 678 images/s")


def test_a_run_of_four_minutes_is_a_few_plain_lines(clock, capsys):
    with progress.bar(total=24_000, unit="step", initial=100) as bar:
        stepped(bar, clock, 23_900, 240)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == "" and "\r" not in err and 8 <= len(lines) <= 9 and len(err) < 1000
    line = r"step \d+ of 24000, +(\d+\.\d\dstep/s|\?step/s), (\d\d:\d\d|\?) left, loss 0\.5, 678 images/s"
    assert all(re.fullmatch(line, text) for text in lines), lines
    counts = [int(text.split()[1]) for text in lines]
    assert counts == sorted(counts) and counts[0] >= 3000 and lines[-1].startswith("step 24000 of 24000")


@pytest.mark.parametrize("options", [{"desc": "encoding", "total": 50}, {"total": 50, "leave": False}, {"iterable": range(50)}])
def test_work_of_less_than_half_a_minute_is_no_line(clock, capsys, options):
    with progress.bar(unit="image", **options) as bar:
        stepped(bar, clock, 50, 29)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("desc", [None, "pairs"])
def test_the_work_of_an_iterable_is_named(clock, capsys, desc):
    bar = progress.bar(range(3), unit="file", desc=desc)
    for _ in bar:
        clock.time += 31
        bar.refresh()
    first, *between, last = capsys.readouterr().err.splitlines()
    assert last not in between
    name = f"{desc}: " if desc else ""
    assert first.startswith(f"{name}file 0 of 3,") and last.startswith(f"{name}file 3 of 3,")


def test_a_warning_in_between_is_a_line_of_its_own(clock, capsys):
    with progress.bar(total=9, unit="step") as bar:
        stepped(bar, clock, 5, 40)
        tqdm.tqdm.write("warning: no room", file=sys.stderr)
        stepped(bar, clock, 4, 1)
    assert [line.split()[0] for line in capsys.readouterr().err.splitlines()] == ["step", "warning:", "step"]


@pytest.mark.parametrize("pause", [0, 20])
def test_time_left_is_by_the_mean_rate_since_compilation(clock, capsys, monkeypatch, pause):
    monkeypatch.setattr(tqdm.std, "time", clock)
    with progress.bar(total=1060, unit="step") as bar:
        clock.time += 300  # compilation
        bar.unpause()
        stepped(bar, clock, 20, 20)
        clock.time += pause  # pictures, after which a line is due
        stepped(bar, clock, 40, 40)
        first = capsys.readouterr().err.splitlines()[0]
    steps, seconds = (21, 41) if pause else (30, 30)
    left = divmod(int((1060 - steps) * seconds / steps), 60)
    assert re.findall(r"step (\d+) of 1060, .* (\d\d:\d\d) left", first) == [(str(steps), "{:02}:{:02}".format(*left))]


def test_the_first_step_of_a_run_is_not_timed(clock, tmp_path, monkeypatch):
    monkeypatch.setattr(tqdm.std, "time", clock)
    wandb = SimpleNamespace(enabled=False)
    config = SimpleNamespace(steps=9, log_every=9, batch=4, optimizer=AdamW(), tensorboard=False, wandb=wandb)
    run, state = mock.Mock(Run, folder=tmp_path, config=config, data=mock.Mock()), mock.Mock(TrainState, step=0)
    with contextlib.closing(Recorder(run, state)) as recorder:
        for step in (1, 2, 3):
            clock.time += 300 if step == 1 else 2  # compilation in the first
            recorder(step, state, {})
        assert recorder._bar.format_dict["elapsed"] == 4


def test_what_is_quiet_is_no_line(clock, capsys):
    with progress.bar(total=9, unit="step", quiet=True) as bar:
        stepped(bar, clock, 9, 90)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_bar(monkeypatch):
    leader, terminal = os.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    with open(terminal, "w") as err:
        monkeypatch.setattr(sys, "stderr", err)
        with progress.bar(total=3, unit="step") as bar:
            bar.update(3)
        assert type(bar) is tqdm.tqdm
        monkeypatch.undo()
    said = b""
    while b"3/3" not in said:
        said += os.read(leader, 10_000)  # an OSError where there is no more
    os.close(leader)


def test_a_notebook_gets_its_own(monkeypatch):
    class Bar(tqdm.notebook.tqdm):
        def __init__(self, *args, **options):
            tqdm.tqdm.__init__(self, *args, file=io.StringIO(), **{**options, "gui": True})

    assert not progress.notebook()
    monkeypatch.setattr(tqdm.auto, "tqdm", Bar)
    assert type(progress.bar(total=3, unit="step", quiet=True)) is Bar
