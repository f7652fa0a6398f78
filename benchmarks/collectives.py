"""The data that devices send each other in a step, read from the text of the compiled program."""

import collections
import math
import re
from typing import NamedTuple

import numpy as np

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


class Collective(NamedTuple):
    """One instruction by which devices exchange arrays."""

    kind: str
    """One of `KINDS`."""
    place: str
    """The computation that it stands in, such as a loop's body; `main` outside of all."""
    times: int
    """How often a step runs it: the product of the trips of the loops around it."""
    size: int
    """Bytes on one device each time: of what goes in or what comes out, the larger."""
    groups: tuple[tuple[int, ...], ...]
    """The devices, by their places in the mesh, that exchange with each other; of a permutation, each pair."""

    def crosses(self, host: int) -> bool:
        """Whether devices of different hosts exchange, if each host has this many devices, neighbours in the mesh."""
        return any(device // host != group[0] // host for group in self.groups for device in group)


def read(text: str) -> list[Collective]:
    """The collectives of a compiled program (`compiled.as_text()`), a start and its end as one, in the order of the text.

    Raises ValueError if one stands in a loop that does not say how often it runs.
    """
    found: list[Collective] = []
    calls: dict[str, list[tuple[str, str]]] = collections.defaultdict(list)
    bounds: dict[str, list[int]] = collections.defaultdict(list)
    sizes: dict[str, int] = {}
    place = ""
    for line in text.splitlines():
        if start := re.match(r"(ENTRY )?%(\S+) \(.*\{$", line):
            place = "main" if start[1] else start[2]
            continue
        if not (made := re.match(r"\s+(?:ROOT )?%(\S+) = (\(.*?\)(?= [a-z])|\S+) ([a-z-]+)\((.*)", line)):
            continue
        name, shape, opcode, rest = made.groups()
        sizes[name] = _bytes(shape)
        calls[place] += _called(opcode, rest)
        if opcode == "constant" and shape.startswith("s32[]"):
            bounds[place].append(int(rest.split(")")[0]))
        kind = opcode.removesuffix("-start")
        if kind in KINDS:
            given = sum(sizes.get(operand, 0) for operand in re.findall(r"%([^\s,()]+)", rest.split(")")[0]))
            # What starts a gather or a permutation returns what it was given too.
            with_given = opcode in ("all-gather-start", "collective-permute-start")
            size = max(given, sizes[name] - given * with_given)
            found.append(Collective(kind, place, 0, size, _groups(rest)))
    times = _times(calls, bounds)
    for one in found:
        if not math.isfinite(times[one.place]):
            raise ValueError(f"the loop around {one.kind} in {one.place} does not say how often it runs")
    return [one._replace(times=int(times[one.place])) for one in found]


def _bytes(shape: str) -> int:
    arrays = re.findall(r"\b([a-z]+\d*)\w*\[([\d,]*)\]", shape)
    return sum(math.prod(map(int, filter(None, size.split(",")))) * _bits(kind) for kind, size in arrays) // 8


def _bits(kind: str) -> int:
    digits = re.search(r"\d+", kind)
    return int(digits[0]) if digits else 8  # pred


def _called(opcode: str, rest: str) -> list[tuple[str, str]]:
    """The computations that an instruction runs, and how often: a number, or the condition of a loop that does not say."""
    if opcode == "while":
        trips = re.search(r'known_trip_count":\{"n":"(\d+)"', rest)
        ((condition, body),) = re.findall(r"condition=%([^\s,()]+), body=%([^\s,()]+)", rest)
        return [(body, trips[1] if trips else condition)]
    single = re.findall(r"(?:calls|to_apply|true_computation|false_computation)=%([^\s,()]+)", rest)
    several = re.findall(r"(?:branch_computations|called_computations)=\{([^}]*)\}", rest)
    return [(name, "1") for name in [*single, *re.findall(r"%([^\s,()]+)", " ".join(several))]]


def _times(calls: dict[str, list[tuple[str, str]]], bounds: dict[str, list[int]]) -> dict[str, float]:
    """How often each computation runs, from the main one down; a loop counts from 0 to its condition's one constant."""
    times: dict[str, float] = collections.defaultdict(float)

    def trips(said: str) -> float:
        if said.isdecimal():
            return int(said)
        return bounds[said][0] if len(bounds[said]) == 1 else math.inf

    def run(place: str, count: float) -> None:
        times[place] += count
        for name, said in calls.get(place, []):
            run(name, count * trips(said))

    run("main", 1)
    return times


def _groups(rest: str) -> tuple[tuple[int, ...], ...]:
    """From `{{0,1},{2,3}}`, `[2,2]<=[4]`, `[2,2]<=[2,2]T(1,0)` or `mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'a'}`."""
    if listed := re.search(r"(?:replica_groups|source_target_pairs)=\{(\{.*?\})\}", rest):
        return tuple(tuple(map(int, group.split(","))) for group in re.findall(r"\{([\d,]+)\}", listed[1]))
    if counted := re.search(r"replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", rest):
        return _rows(_ordered(counted[2]).reshape(_integers(counted[1])))
    if meshed := re.search(r"replica_groups=mesh\[(.*?)\](?:, device_ids=\((.*?\]\S*)\))? \{(.*?)\}", rest):
        axes = dict(re.findall(r"'(\w+)'=(\d+)", meshed[1]))
        shape = [int(size) for size in axes.values()]
        along = [list(axes).index(name) for name in re.findall(r"'(\w+)'", meshed[3])]
        ids = _ordered(meshed[2]) if meshed[2] else np.arange(math.prod(shape))
        members = np.moveaxis(ids.reshape(shape), along, range(-len(along), 0))
        return _rows(members.reshape(-1, math.prod(shape[axis] for axis in along)))
    return ()


def _ordered(text: str) -> np.ndarray:
    """`[8,8]T(1,0)`: the numbers from 0 in that shape, transposed, in a row."""
    shape, _, order = text.partition("T")
    numbers = np.arange(math.prod(_integers(shape))).reshape(_integers(shape))
    return (numbers.transpose(_integers(order)) if order else numbers).reshape(-1)


def _integers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def _rows(groups: np.ndarray) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(int(device) for device in group) for group in groups)
