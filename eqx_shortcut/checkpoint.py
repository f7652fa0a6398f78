"""Checkpoints of a run with Orbax: asynchronous, the newest few kept and milestones, each with hashes of its files."""

import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterable
from typing import Any, Literal

import equinox as eqx
import jax
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from . import distributed, storage
from .errors import first_line
from .train import TrainState

Weights = Literal["ema", "online"]
MANIFEST = "manifest.json"
TMP_DIR_SUFFIX = ".orbax-checkpoint-tmp"


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or read: says which, why, and what to do."""


class _Absent(CheckpointError):
    """A whole checkpoint that was written without what is asked of it."""


def items_of(state: TrainState) -> dict[str, PyTree]:
    """A state as the items of a checkpoint."""
    networks = state.networks
    loop = {"step": state.step, "key": state.key, "skipped": state.skipped, "streak": state.streak}
    items = {"online": networks.online, "ema": networks.ema, "optimizer": state.opt_state, "loop": loop}
    items |= {name: part for name in ("teacher", "weak", "extra", "memory") if (part := getattr(networks, name)) is not None}
    items |= {"averages": state.averages} if state.averages else {}
    return {name: eqx.filter(tree, eqx.is_array) for name, tree in items.items()}


class Checkpoints:
    """The checkpoints in one folder, one step a sub-folder, with separate items.

    `online`, `ema`, `teacher` and `weak` are networks, `averages` more averages, `extra` is what is trained beside them and
    `memory` what the objective remembers; `optimizer` and `loop` the rest of the state; `data` the position in the data;
    `config` the settings. So sampling reads `ema` alone. `items` may choose others, for folders that are read by
    `restore_network` alone. A checkpoint takes its place by a rename once it is whole, hashes of its files included; in an
    object store, which renames nothing, by a mark that is written last. The newest `keep` stay, and those of steps that are
    multiples of `milestones`.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        keep: int = 3,
        milestones: int | None = None,
        config: dict[str, Any] | None = None,
        items: Callable[[TrainState], dict[str, PyTree]] = items_of,
    ):
        self._items = items
        self.folder = storage.absolute(storage.as_path(folder))
        self.config = config or {}
        self._last: int | None = None
        policies = ocp.checkpoint_managers
        kept = [policies.LatestN(keep), *([] if milestones is None else [policies.EveryNSteps(milestones)])]
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(kept),
                # Not asynchronously: if one cannot be made, threads wait for it for minutes, and the process for them.
                async_options=ocp.options.AsyncOptions(
                    post_finalization_callback=self._write_checksums, create_directories_asynchronously=False
                ),
            ),
        )

    @staticmethod
    def any(folder: str | os.PathLike[str]) -> bool:
        """Whether there is a whole checkpoint in a folder."""
        return bool(_steps(storage.as_path(folder)))

    def steps(self) -> list[int]:
        """Steps of the whole checkpoints, oldest first."""
        return _steps(self.folder)

    def save(self, state: TrainState, position: dict[str, Any], *, wait: bool = False) -> None:
        """Start to save; returns when the state has been copied, so that it may be donated.

        A step that was saved already is left as it is. Raises CheckpointError if this save (with `wait`) or the one
        before could not be written, see `wait`.
        """
        step = int(state.step)
        self.wait()
        if step == self._last:
            return
        self._remove_half_written()
        items = {name: ocp.args.StandardSave(tree) for name, tree in self._items(state).items()}
        records = {"data": ocp.args.JsonSave(position), "config": ocp.args.JsonSave(self.config)}
        try:
            self._manager.save(step, args=ocp.args.Composite(**items, **records), force=True)
            self._last = step
            if wait:
                self._manager.wait_until_finished()
        except Exception as error:
            raise self._unwritten(error) from error

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._manager.is_saving_in_progress()

    def wait(self) -> None:
        """Wait for what is being written.

        Raises CheckpointError if it could not be: what there is of it is removed, and the same or another step may be saved.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._unwritten(error) from error

    def restore(self, like: TrainState, *, before: int | None = None) -> tuple[TrainState, dict[str, Any], list[str]] | None:
        """The newest checkpoint that is whole, as a state of the structure and layout of `like`; None if there is none.

        Returns the state, the position in the data, and one sentence for each newer checkpoint that was passed over,
        whose folder is renamed to make room. With `before`, the newest of a step below it, and the folder is left as it is.
        Raises CheckpointError if there are checkpoints and none is whole, or if the run kept no averages and `like` has some.
        """
        damaged: dict[int, str] = {}
        for step in reversed([step for step in self.steps() if before is None or step < before]):
            try:
                names = items_of(like)
                with distributed.barrier():
                    if distributed.is_main_process():
                        self._verify(step)
                if "averages" in names and not any(name.startswith("averages/") for name in self._manifest(step)):
                    raise _Absent(
                        f"checkpoint {step} in {self.folder} was written without --averages.sigma-rel: leave it out, or start "
                        "a new run under another --name"
                    )
                wanted = {name: ocp.args.StandardRestore(_abstract(tree)) for name, tree in names.items()}
                got = self._manager.restore(step, args=ocp.args.Composite(**wanted, data=ocp.args.JsonRestore()))
            except _Absent:
                raise
            except Exception as error:  # whatever reading a damaged file raises, an older checkpoint may be whole
                damaged[step] = f"checkpoint {step} in {self.folder} is damaged ({_first_line(error)})"
            else:
                if before is None:
                    with distributed.barrier():
                        for later in damaged if distributed.is_main_process() else ():
                            (self.folder / str(later)).rename(self.folder / f"damaged-{later}-{time.time_ns()}")
                    self._manager.reload()
                return _rebuilt(like, {name: got[name] for name in names}), got["data"], list(damaged.values())
        if damaged:
            raise CheckpointError(
                "; ".join(damaged.values())
                + ": no checkpoint is left to continue from; restore the folder from a copy, or start "
                "a new run under another --name"
            )
        return None

    def restore_network(self, like: PyTree, weights: str = "ema", step: int | None = None) -> tuple[PyTree, int]:
        """One set of weights alone, or another item, into the structure of `like`, from `step` or the newest; and its step."""
        steps = self.steps()
        if not steps:
            raise CheckpointError(f"no checkpoint in {self.folder}: train first")
        step = steps[-1] if step is None else step
        if step not in steps:
            raise CheckpointError(f"no checkpoint {step} in {self.folder}: there are {', '.join(map(str, steps))}")
        arrays, static = eqx.partition(like, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct) or eqx.is_array(leaf))
        try:
            self._verify(step, [weights])
            wanted = {weights: ocp.args.StandardRestore(_abstract(arrays))}
            return eqx.combine(self._manager.restore(step, args=ocp.args.Composite(**wanted))[weights], static), step
        except Exception as error:
            others = ", ".join(str(other) for other in steps if other != step)
            remedy = f"choose another one with --step, of {others}" if others else "no other is there, train again"
            raise CheckpointError(f"checkpoint {step} in {self.folder} is damaged ({_first_line(error)}): {remedy}") from error

    def remove_after(self, step: int) -> None:
        """Remove the checkpoints of later steps."""
        with distributed.barrier():
            for later in self.steps() if distributed.is_main_process() else ():
                if later > step:
                    storage.remove(self.folder / str(later))
        self._manager.reload()

    def close(self) -> None:
        """Wait for what is being written. Raises CheckpointError if it could not be."""
        self.wait()
        self._manager.close()

    def _unwritten(self, error: Exception) -> CheckpointError:
        # Orbax has the step, and those that this one was to replace, off its list: it reads the folder again.
        self._last = None
        for _ in range(10):  # other threads of Orbax may go on for a moment
            if not self._remove_half_written():
                break
            time.sleep(0.1)
        self._manager.reload()
        steps = self.steps()
        kept = (
            f"checkpoint {steps[-1]} is intact, and the same command continues from it" if steps else "there is no earlier one"
        )
        return CheckpointError(
            f"could not write a checkpoint to {self.folder} ({_first_line(error)}); {kept}: free space on the disk, "
            "or name another place with --runs"
        )

    def _remove_half_written(self) -> bool:
        """Removes what a run that was killed or a full disk left, nothing being written now; returns whether there was any."""
        if jax.process_index():
            return False
        torn = self._unfinished()
        for path in torn:
            storage.remove(path)
        return bool(torn)

    def _unfinished(self) -> list[storage.Path]:
        """Folders of checkpoints that are not whole: in an object store they have their names already."""
        found = self.folder.glob("*" if storage.is_remote(self.folder) else f"*{TMP_DIR_SUFFIX}")
        return [path for path in found if not _whole(path) and (path.name.isdecimal() or TMP_DIR_SUFFIX in path.name)]

    def _write_checksums(self) -> None:
        # Orbax calls this when every item is written, just before the folder gets its name: so a checkpoint that bears
        # its name has its hashes. In an object store it gets its mark next.
        for folder in self._unfinished():
            storage.write(folder / MANIFEST, json.dumps(_hashes(folder), indent=1))

    def _verify(self, step: int, items: Iterable[str] | None = None) -> None:
        """Raises CheckpointError unless the files of these items, or of all, are those that were written.

        What others left beside them (`.DS_Store`, `._NAME`) is not looked at.
        """
        folder = self.folder / str(step)
        for name, digest in sorted(self._manifest(step).items()):
            if items is not None and name.split("/")[0] not in items:
                continue
            if not (folder / name).exists():
                raise CheckpointError(f"file {name} is missing")
            if storage.checksum([folder / name]) != digest:
                raise CheckpointError(f"file {name} has changed since it was written")

    def _manifest(self, step: int) -> dict[str, str]:
        return json.loads((self.folder / str(step) / MANIFEST).read_bytes())


def _steps(folder: storage.Path) -> list[int]:
    return sorted(int(path.name) for path in folder.glob("*") if _whole(path))


def _whole(folder: storage.Path) -> bool:
    return folder.name.isdecimal() and (not storage.is_remote(folder) or ocp.utils.is_checkpoint_finalized(folder))


def _rebuilt(like: TrainState, items: dict[str, PyTree]) -> TrainState:
    def fill(tree, name):
        return eqx.combine(items[name], eqx.filter(tree, eqx.is_array, inverse=True)) if name in items else None

    names = ("online", "ema", "teacher", "weak", "extra", "memory")
    networks = dataclasses.replace(like.networks, **{name: fill(getattr(like.networks, name), name) for name in names})
    averages = fill(like.averages, "averages") or ()
    return TrainState(networks=networks, opt_state=fill(like.opt_state, "optimizer"), averages=averages, **items["loop"])


def _abstract(tree: PyTree) -> PyTree:
    def describe(leaf):
        sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(describe, tree)


def _hashes(folder: storage.Path) -> dict[str, str]:
    """Checksums of the files of all items, by their path inside the folder of a checkpoint."""
    files = sorted(path for item in folder.iterdir() if item.is_dir() for path in storage.files(item))
    return {str(path.relative_to(folder)): storage.checksum([path]) for path in files}


def _first_line(error: Exception) -> str:
    text = first_line(error)
    short = text if len(text) < 240 else f"{text[:100]} ... {text[-120:]}"
    return f"{type(error).__name__}: {short}"
