"""Reads damaged checkpoints under limits of memory and time, noting whatever else the interpreter is made to do.

python fuzz.py CHECKPOINT FOLDER COUNT: a process of its own, for limits and audit hooks cannot be taken back.
"""

import json
import pathlib
import pickle
import pickletools
import random
import resource
import sys
import time

from eqx_shortcut import reference

CHECKERS = "<@beartype(eqx_shortcut"
"""What checks the annotations of a function of ours, which is compiled at its first call."""
WATCHED = ("import", "exec", "compile", "open", "os.", "subprocess.", "pickle.", "ctypes.", "socket.", "shutil.", "marshal.")


def mutated(data: bytes, starts: list[int], rng: random.Random) -> bytes:
    """One to four changes: bytes flipped, removed, put in; whole entries doubled, moved, replaced; the end cut off."""
    found = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        # Arrays are most of the bytes and the structure most of the entries, so half of the places are entries.
        at = rng.choice(starts) if rng.random() < 0.5 else rng.randrange(len(data))
        at = min(at, len(found))
        other = rng.randrange(len(starts) - 1)
        entries = data[starts[other] : starts[min(other + rng.randint(1, 8), len(starts) - 1)]]
        anything = rng.choice(pickletools.opcodes).code.encode("latin-1") + rng.randbytes(rng.choice((0, 1, 4, 8)))
        match rng.randrange(7):
            case 0:
                found[at : at + 1] = bytes([found[at] ^ (1 << rng.randrange(8))]) if at < len(found) else b""
            case 1:
                del found[at : at + rng.randint(1, 16)]
            case 2:
                found[at:at] = rng.randbytes(rng.randint(1, 16))
            case 3:
                found[at:at] = entries
            case 4:
                found[at : at + len(entries)] = entries
            case 5:
                found[at : at + rng.choice((0, 1))] = anything
            case 6 if rng.random() < 0.3:
                del found[at:]
    return bytes(found)


def outcome(path: pathlib.Path) -> str:
    """`read`, or the sentence; any other exception ends the process."""
    try:
        reference.read(path)
    except reference.ReferenceCheckpointError as error:
        return str(error).replace("\n", "\\n")
    return "read"


def main(checkpoint: pathlib.Path, folder: pathlib.Path, count: int) -> None:
    data, rng, path = checkpoint.read_bytes(), random.Random(0), folder / "mutated.pkl"
    starts = [at for _, _, at in pickletools.genops(data) if at is not None]
    (folder / "empty.pkl").write_bytes(b"")
    # Once without hook, so that what is set up on first use is.
    for first in (checkpoint, folder / "empty.pkl"):
        outcome(first)
    events: list[str] = []
    watching = False

    def note(event: str, arguments: tuple) -> None:
        ours = event in ("compile", "exec") and CHECKERS in str(arguments)
        if watching and not ours and event.startswith(WATCHED) and (event, str(arguments[0])) != ("open", str(path)):
            events.append(f"{event} {arguments}")

    sys.addaudithook(note)
    used = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**29, used + 2**29))
    resource.setrlimit(resource.RLIMIT_CPU, (120, 120))
    outcomes, longest = [], 0.0
    for _ in range(count):
        path.write_bytes(mutated(data, starts, rng))
        start, watching = time.perf_counter(), True
        outcomes.append(outcome(path))
        watching, longest = False, max(longest, time.perf_counter() - start)
    found, watching = [*events], True
    pickle.loads(data)  # as a control: what imports is noted
    watching = False
    print(json.dumps({"events": found, "control": len(events) - len(found), "outcomes": outcomes, "longest": longest}))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), int(sys.argv[3]))
