"""From rows to batches on the devices, through Grain."""

import dataclasses
import functools
import signal
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree, Shaped

from ..guidance import null_rows
from ..rows import check_groups
from ..types import Batch, Cond
from .encoded import Encoded
from .records import ImageRecords
from .source import Rows, null_of


class WholeBatches:
    """Random access to shuffled batches: item `i` is rows `i size ... (i + 1) size - 1` of one permutation after another.

    A whole batch is one gather, many times faster than one row at a time; the position of a run is the one number `i`,
    whatever the number of processes. Every row comes once an epoch; a batch may span two epochs. A process that needs only
    some rows of each batch says which by `share`. With `groups` a batch is that number of equal sets after one another, each
    of rows of one label: every label comes once in a round of sets, every row once in an epoch of its label. Raises ValueError
    if `groups` does not divide `size`, for sets of one row, and for a label with one row.
    """

    def __init__(
        self, data: Rows, size: int, *, seed: int, share: Shaped[np.ndarray, " share"] | None = None, groups: int | None = None
    ):
        self.data, self.size, self.seed = data, size, seed
        self.count = len(data.labels)
        self.share = np.arange(size) if share is None else share
        self._groups = None if groups is None else Groups(np.asarray(data.labels), size, groups, data.noun)
        self._orders: dict[tuple[int, ...], Shaped[np.ndarray, " count"]] = {}

    def __len__(self) -> int:
        return 2**40

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.data.rows(self.indices(index)[self.share])

    def indices(self, index: int) -> Shaped[np.ndarray, " size"]:
        """Row numbers of the whole batch `index`."""
        if self._groups is None:
            return self._drawn(self.count, index, self.size)
        first = index * self._groups.count
        return np.concatenate([self._set(self._groups, number) for number in range(first, first + self._groups.count)])

    def _set(self, groups: "Groups", number: int) -> Shaped[np.ndarray, " rows"]:
        """Row numbers of set `number`, of the label whose turn it is."""
        of_label, turn = divmod(number, len(groups.members))
        label = int(self._order(len(groups.members), of_label)[turn])
        members = groups.members[label]
        return members[self._drawn(len(members), of_label, self.size // groups.count, label)]

    def _drawn(self, count: int, index: int, size: int, *label: int) -> Shaped[np.ndarray, " size"]:
        """Numbers below `count`: set `index` of size `size` of one permutation after another."""
        positions = np.arange(index * size, (index + 1) * size)
        epochs = positions // count
        return np.concatenate(
            [
                self._order(count, int(epoch), *label)[positions[epochs == epoch] % count]
                for epoch in range(epochs[0], epochs[-1] + 1)
            ]
        )

    def _order(self, count: int, *key: int) -> Shaped[np.ndarray, " count"]:
        order = self._orders.get(key)
        if order is None:
            order = np.random.default_rng([self.seed, *key]).permutation(count)
            # A new dict, not an update: loader threads read the old one meanwhile. Two epochs are enough.
            self._orders = {**dict(list(self._orders.items())[-1:]), key: order}
        return order


class Groups:
    """The rows of each label, for batches made of `count` sets."""

    def __init__(self, labels: Shaped[np.ndarray, " count"], size: int, count: int, noun: str):
        check_groups(size, count)
        found, numbers = np.unique(labels, return_counts=True)
        if (numbers < 2).any():
            raise ValueError(
                f"class {found[numbers < 2][0]} has 1 of the {noun}, and a set of one class holds different ones: leave the "
                "class out, or train with --unconditional"
            )
        self.count, self.members = count, [np.flatnonzero(labels == label) for label in found]


class Batches:
    """An endless iterator over batches, whose state is the number of those handed out, whatever was read ahead.

    So a run continues with another number of workers or processes. `close` ends the workers; the next batch starts them anew.
    """

    def __init__(self, start: Callable[[int], Any]):
        self._start, self._next, self._running = start, 0, None

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> dict[str, Any]:
        if self._running is None:
            self._running = self._start(self._next)
        batch = next(self._running)
        self._next += 1
        return batch

    def get_state(self) -> dict[str, int]:
        """The position, for JSON."""
        return {"next_index": self._next}  # what Grain calls it, so that earlier checkpoints continue

    def set_state(self, state: dict[str, int]) -> None:
        """Goes to a position."""
        self.close()
        self._next = state["next_index"]

    def close(self) -> None:
        """Ends threads and workers."""
        if self._running is not None:
            self._running.close()
            self._running = None


def batches(
    data: Rows, size: int, *, seed: int, sharding: jax.sharding.Sharding, workers: int = 0, groups: int | None = None
) -> Batches:
    """Shuffled batches of `data` on the devices, for ever; with `groups` of that number of sets of one label (WholeBatches).

    They are read ahead in a thread, or in `workers` processes, and sent ahead to the devices. Worker processes import
    the main script: it must start under `if __name__ == "__main__"`.
    """
    if workers < 0:
        raise ValueError(f"--workers {workers}: use 0 or more")
    source = WholeBatches(data, size, seed=seed, share=own_rows(sharding, size), groups=groups)
    return Batches(functools.partial(_start, source, sharding, workers))


def own_rows(sharding: jax.sharding.Sharding, size: int) -> Shaped[np.ndarray, " share"]:
    """The rows of a batch that lie on devices of this process, in rising order."""
    indices = sharding.addressable_devices_indices_map((size,)).values()
    return np.unique(np.concatenate([np.arange(size)[index] for index in indices]))


def _start(source: WholeBatches, sharding: jax.sharding.Sharding, workers: int, first: int) -> Any:
    import grain
    from absl import flags

    read = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
    dataset = grain.MapDataset.source(source)[first:].to_iter_dataset(read)
    if workers:
        if not flags.FLAGS.is_parsed():  # Grain asks for flags of absl, which a script that is not run by absl never parsed
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
        dataset = dataset.mp_prefetch(options, worker_init_fn=_prepare_worker)
    if isinstance(source.data, ImageRecords | Encoded):
        dataset = dataset.map(source.data.note)
    prefetch = grain.experimental.ThreadPrefetchIterDataset
    to_devices = functools.partial(_to_devices, sharding, source.size)
    dataset = prefetch(dataset, prefetch_buffer_size=4).map(to_devices)
    return iter(prefetch(dataset, prefetch_buffer_size=2))


def _to_devices(sharding: jax.sharding.Sharding, size: int, share: PyTree[np.ndarray]) -> PyTree[Array]:
    """The whole batch as global arrays, made of each process's share."""
    make = jax.make_array_from_process_local_data
    return jax.tree.map(lambda array: make(sharding, array, (size, *array.shape[1:])), share)


def _prepare_worker(worker: int, workers: int) -> None:
    """Leaves accelerators and Ctrl-C to the main process."""
    jax.config.update("jax_platforms", "cpu")
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class Prepare(eqx.Module):
    """From raw rows to a Batch, in the compiled step: by the data's own `Rows.batch`, with all conditions hidden if not
    `labelled`, and noise of the standard deviation `noise_scale`."""

    batch: Callable[..., Batch]
    null: Cond
    mirror: bool = eqx.field(static=True)
    labelled: bool = eqx.field(static=True)
    noise_scale: float = eqx.field(static=True, default=1.0)

    def __call__(self, raw: Any, key: PRNGKeyArray) -> Batch:
        batch = dataclasses.replace(self.batch(raw, key, mirror=self.mirror), noise_scale=self.noise_scale)
        return batch if self.labelled else dataclasses.replace(batch, cond=null_rows(batch.cond, self.null, "labelled=False"))


def prepare(data: Rows, *, mirror: bool = False, labelled: bool = True, noise_scale: float = 1.0) -> Prepare:
    """The function from a raw batch of `data` to a Batch, for use inside the compiled step.

    With `mirror` each row that can be mirrored is, with probability 1/2. `labelled=False` hides all conditions.
    """
    return Prepare(data.batch, null_of(data), mirror, labelled, noise_scale)


def example(data: Rows, *, labelled: bool = True) -> Batch:
    """Shapes and dtypes of one row of `data` as a network sees it, without a batch axis."""
    to_batch = prepare(data, labelled=labelled)
    batch = eqx.filter_eval_shape(to_batch, data.rows(np.zeros(1, np.int64)), jax.random.key(0))
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), batch)


def host_batches(x: Shaped[np.ndarray, "count *shape"], size: int) -> Iterator[Shaped[np.ndarray, "_ *shape"]]:
    """The rows of `x` in order, `size` at a time, the last batch smaller."""
    return (x[i : i + size] for i in range(0, len(x), size))
