"""Runs that are killed and started again, of digits as a rule: where they die, and what each start leaves."""

import contextlib
import dataclasses
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from jobs import environments
from scripts import EXPERIMENTS

NETWORK = "--network.hidden 16 --network.depth 1 --network.heads 2 --network.remat none".split()
TINY = (
    "--batch 16 --objective.steps 4 --objective.bootstrap-every 2 --log-every 1 --sample-every 1000000 --figures.batches 0 "
    "--quality.steps"
).split()
PATIENCE = 120
"""Seconds after which a start that has not come to the place where it is to die is a failure."""
LINE = 68
"""Characters of the note of a step, or nearly so."""
GRACE = 5
"""Seconds after which the processes that a killed one leaves are killed too."""

# Runs an experiment, notes the step and the hash of this process's rows at each step, and dies where it is told.
START = '''
import hashlib, os, runpy, signal, sys
import numpy as np
notes, script, *args = sys.argv[1:]
sys.argv = [script, *args]
sys.path.insert(0, os.path.dirname(script))
import jax
from eqx_shortcut.experiment import run as running
from eqx_shortcut import storage

def die_in(owner, name, when=lambda *args: True, first=lambda *args: None):
    """Does `first` and dies, where owner.name is called with arguments for which `when` is true."""
    whole = getattr(owner, name)
    def call(*args, **more):
        if when(*args):
            first(*args)
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(*args, **more)
    setattr(owner, name, call)

def half(path, data):
    path.with_name(f".{path.name}.half").write_text(data[: len(data) // 2])

def noted(step):
    def call(state, raw):
        shares = [np.asarray(piece.data).tobytes() for leaf in jax.tree.leaves(raw) for piece in leaf.addressable_shards]
        file.write(f"{int(state.step) + 1} {hashlib.sha256(b''.join(shares)).hexdigest()}\\n")
        return step(state, raw)
    return call

file, make_step = open(notes, "a", buffering=1), running.make_step
running.make_step = lambda *args, **more: noted(make_step(*args, **more))
INSIDE
runpy.run_path(script, run_name="__main__")
'''

INSIDE = {
    "reading rows": """
from eqx_shortcut.data.pipeline import WholeBatches
die_in(WholeBatches, "indices", lambda self, index: index % 32 == 31)
""",
    "compiling": """
import jax._src.compiler
step = lambda backend, module, *_: "update" in str(module.operation.attributes["sym_name"])
die_in(jax._src.compiler, "backend_compile_and_load", step)
""",
    "keeping a program": """
from jax._src.lru_cache import LRUCache
cut = lambda self, key, value: self.path.joinpath(f"{key}-cache").write_bytes(value[: len(value) // 2])
die_in(LRUCache, "put", lambda self, key, value: "update" in key, cut)
""",
    "opening the folder": 'die_in(storage, "write", lambda path, data: path.name == "config.json", half)',
    "opening the metrics": 'die_in(storage, "write", lambda path, data: path.name == "metrics.jsonl", half)',
    "writing metrics": """
from eqx_shortcut.experiment.log import JsonLines
def part(self, *_):
    with open(self._path, "a") as lines:
        lines.write('{"step": 1')
die_in(JsonLines, "write", lambda self, step, values: step % 16 == 7, part)
""",
    "beginning to save": """
from orbax.checkpoint import CheckpointManager
die_in(CheckpointManager, "save")
""",
    "writing arrays": """
from orbax.checkpoint._src.serialization import ocdbt_utils
die_in(ocdbt_utils, "merge_ocdbt_per_process_files")
""",
    "all but the hashes": """
from eqx_shortcut.checkpoint import Checkpoints
die_in(Checkpoints, "_write_checksums")
""",
    "writing the hashes": 'die_in(storage, "write", lambda path, data: path.name == "manifest.json", half)',
    "all but the name": """
from eqx_shortcut.checkpoint import Checkpoints
die_in(Checkpoints, "_write_checksums", first=Checkpoints._write_checksums)
""",
    "removing the oldest": """
import pathlib
from etils import epath
files = lambda path: [file for file in sorted(pathlib.Path(path).rglob("*")) if file.is_file()]
part = lambda path, *_: [file.unlink() for file in files(path)[::2]]
die_in(type(epath.Path("/")), "rmtree", lambda path, *_: path.name.isdigit(), part)
""",
}
"""Places that last too short to be met by chance: what is changed of a start so that it kills itself there."""
COLD = {"keeping a program": "*update*", "cold start": "*"}
"""Places that a start comes to only if these programs are not kept yet."""


def command(script: pathlib.Path, line: list[str], notes: pathlib.Path, inside: str = "") -> list[str]:
    """A run that adds the rows of each step to `notes`, and kills itself as `inside`, one of INSIDE, says."""
    return [sys.executable, "-c", START.replace("INSIDE", inside), str(notes), str(script), *line]


@dataclasses.dataclass(frozen=True)
class Kill:
    """SIGKILL to one process, so many seconds after it came to a place after so many steps; INSIDE it kills itself."""

    place: str
    delay: float = 0.0
    steps: int = 1
    process: int = 0


@dataclasses.dataclass(frozen=True)
class Job:
    """One command line, to start again and again, each time as so many processes."""

    home: pathlib.Path
    cache: pathlib.Path
    """Where compiled programs are kept from start to start."""
    steps: int
    every: int
    processes: int = 1
    devices: int = 1
    """Of each process."""
    more: tuple[str, ...] = ()
    """Of the command line."""
    script: pathlib.Path = EXPERIMENTS / "digits.py"
    small: tuple[str, ...] = (*NETWORK, *TINY)
    """What makes a run of this script a small one."""

    @property
    def folder(self) -> pathlib.Path:
        """The run's."""
        return self.home / self.script.stem / "shortcut"

    def finish(self) -> None:
        """Starts, and sees all processes end well."""
        with self._started() as started:
            codes = [process.wait(timeout=10 * PATIENCE) for process in started]
        assert codes == [0] * self.processes, self._said()
        self._assert_well()

    def killed(self, kill: Kill) -> None:
        """Starts, and kills as it is told; whatever else goes wrong is an AssertionError with what was said."""
        for program in self.cache.glob(COLD.get(kill.place, "nothing")):
            program.unlink()
        sizes = [self._size(self._notes(number)) for number in range(self.processes)]
        with self._started(INSIDE.get(kill.place, "")) as started:
            victim, deadline = started[kill.process], time.monotonic() + PATIENCE
            while victim.poll() is None and time.monotonic() < deadline and not self._is_at(kill, sizes[kill.process]):
                time.sleep(0.002)
            time.sleep(kill.delay)
            victim.kill()
            victim.wait()
            deadline = time.monotonic() + GRACE
            while any(process.poll() is None for process in started) and time.monotonic() < deadline:
                time.sleep(0.05)
        came = kill.place not in INSIDE or time.monotonic() < deadline
        assert victim.returncode == -signal.SIGKILL and came, f"{kill}: ended with {victim.returncode}\n{self._said()}"
        self._assert_well([kill.process])  # the others say that it is gone

    def rows(self) -> list[dict[int, set[str]]]:
        """For each process, the hashes of the rows that it was given at each step, in all starts."""
        found: list[dict[int, set[str]]] = []
        for number in range(self.processes):
            found.append({})
            for line in self._notes(number).read_text().splitlines():
                step, _, rows = line.partition(" ")
                if len(rows) == 64:  # not cut short
                    found[-1].setdefault(int(step), set()).add(rows)
        return found

    @contextlib.contextmanager
    def _started(self, inside: str = ""):
        self.home.mkdir(parents=True, exist_ok=True)
        kept = {"JAX_COMPILATION_CACHE_DIR": str(self.cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        line = [
            *self.small,
            "--steps",
            str(self.steps),
            "--checkpoint.every",
            str(self.every),
            "--runs",
            str(self.home),
            *self.more,
        ]
        started: list[subprocess.Popen] = []
        try:
            for number, environment in enumerate(environments(self.processes, self.devices)):
                with self._output(number).open("wb") as said:
                    run = command(self.script, line, self._notes(number), inside)
                    started.append(subprocess.Popen(run, env=environment | kept, stdout=said, stderr=subprocess.STDOUT))
            yield started
        finally:
            for process in started:
                process.kill()
                process.wait()

    def _is_at(self, kill: Kill, size: int) -> bool:
        """Whether a process came to the place, where its notes had this size before; never to one of INSIDE."""
        if kill.place in ("training", "saving"):
            stepped = self._size(self._notes(kill.process)) - size >= kill.steps * LINE
            saving = any(self.folder.glob("checkpoints/*.orbax-checkpoint-tmp"))
            return stepped and (saving or kill.place == "training")
        return kill.place not in INSIDE

    def _assert_well(self, of: Sequence[int] | None = None) -> None:
        said = self._said(of)
        assert not any(word in said for word in ("\nerror: ", "Traceback")) and "damaged" not in self._said(), said

    def _said(self, of: Sequence[int] | None = None) -> str:
        numbers = range(self.processes) if of is None else of
        # Each state of the bar is a line to be written over, of which the last is left.
        told = (self._output(number).read_text(errors="replace").split("\n") for number in numbers)
        return "\n".join(line.rpartition("\r")[2] for lines in told for line in lines)

    def _output(self, number: int) -> pathlib.Path:
        return self.home / f"said-{number}.txt"

    def _notes(self, number: int) -> pathlib.Path:
        return self.home / f"rows-{number}.txt"

    @staticmethod
    def _size(path: pathlib.Path) -> int:
        return path.stat().st_size if path.exists() else 0
