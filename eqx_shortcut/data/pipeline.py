"""From images to batches on the devices, through Grain."""

import functools
import signal
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Integer, PRNGKeyArray, Shaped

from ..types import Batch
from .encoded import Encoded
from .records import ImageRecords


@runtime_checkable
class Rows(Protocol):
    """A set of which any rows can be had at any time, and what the device makes of them."""

    noun: ClassVar[str]
    """What a row is, in the plural."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of what a network sees."""
        ...

    @property
    def labels(self) -> Integer[np.ndarray, " count"]:
        """The label of each row."""
        ...

    @property
    def classes(self) -> int:
        """Labels are below it."""
        ...

    def rows(self, indices: Integer[np.ndarray, " rows"]) -> dict[str, np.ndarray]:
        """The rows at `indices`, by name, labels among them."""
        ...

    def first(self, count: int) -> "Rows":
        """The first so many rows."""
        ...

    @property
    def batch(self) -> Callable[..., Batch]:
        """The function `(raw rows, key, *, mirror) -> Batch` on the device: scaled, mirrored at random if `mirror`."""
        ...


class WholeBatches:
    """Random access to shuffled batches: item `i` is rows `i size ... (i + 1) size - 1` of one permutation after another.

    A whole batch is one gather, many times faster than one row at a time; the position of a run is the one number `i`,
    whatever the number of processes. Every row comes once an epoch; a batch may span two epochs. A process that needs only
    some rows of each batch says which by `share`.
    """

    def __init__(self, data: Rows, size: int, *, seed: int, share: Shaped[np.ndarray, " share"] | None = None):
        self.data, self.size, self.seed = data, size, seed
        self.count = len(data.labels)
        self.share = np.arange(size) if share is None else share
        self._orders: dict[int, Shaped[np.ndarray, " count"]] = {}

    def __len__(self) -> int:
        return 2**40

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self.data.rows(self.indices(index)[self.share])

    def indices(self, index: int) -> Shaped[np.ndarray, " size"]:
        """Row numbers of the whole batch `index`."""
        places = np.arange(index * self.size, (index + 1) * self.size)
        epochs = places // self.count
        return np.concatenate(
            [self._order(epoch)[places[epochs == epoch] % self.count] for epoch in range(epochs[0], epochs[-1] + 1)]
        )

    def _order(self, epoch: int) -> Shaped[np.ndarray, " count"]:
        order = self._orders.get(epoch)
        if order is None:
            order = np.random.default_rng([self.seed, epoch]).permutation(self.count)
            # A new dict, not an update: loader threads read the old one meanwhile. Two epochs are enough.
            self._orders = {**dict(list(self._orders.items())[-1:]), epoch: order}
        return order


class Batches:
    """An endless iterator over batches, whose state is the number of those handed out, whatever was read ahead.

    So a run continues with another number of workers or processes. `close` ends the workers; the next batch starts them anew.
    """

    def __init__(self, start: Callable[[int], Any]):
        self._start, self._next, self._running = start, 0, None

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> dict[str, Array]:
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


def batches(data: Rows, size: int, *, seed: int, sharding: jax.sharding.Sharding, workers: int = 0) -> Batches:
    """Shuffled batches of `data` on the devices, for ever.

    They are read ahead in a thread, or in so many worker processes, and sent ahead to the devices. Worker processes import
    the main script: it must start under `if __name__ == "__main__"`.
    """
    if workers < 0:
        raise ValueError(f"--workers {workers}: use 0 or more")
    source = WholeBatches(data, size, seed=seed, share=own_rows(sharding, size))
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


def _to_devices(sharding: jax.sharding.Sharding, size: int, share: dict[str, np.ndarray]) -> dict[str, Array]:
    """The whole batch, of which this process has its share."""
    make = jax.make_array_from_process_local_data
    return {name: make(sharding, array, (size, *array.shape[1:])) for name, array in share.items()}


def _prepare_worker(worker: int, workers: int) -> None:
    """A worker leaves the accelerators to the main process, and what an interrupt of the keyboard means."""
    jax.config.update("jax_platforms", "cpu")
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class Prepare(eqx.Module):
    """From raw rows to a Batch, in the compiled step: what the data make of them (see Rows.batch), with all labels hidden if
    not `labelled`."""

    batch: Callable[..., Batch]
    classes: int = eqx.field(static=True)
    mirror: bool = eqx.field(static=True)
    labelled: bool = eqx.field(static=True)

    def __call__(self, raw: Any, key: PRNGKeyArray) -> Batch:
        batch = self.batch(raw, key, mirror=self.mirror)
        return batch if self.labelled else Batch(batch.x, jnp.full_like(batch.cond, self.classes), batch.noise)


def prepare(data: Rows, *, mirror: bool = False, labelled: bool = True) -> Prepare:
    """The function from a raw batch of `data` to a Batch, for use inside the compiled step.

    What can be mirrored is, with probability 1/2 each if `mirror`. `labelled=False` hides all labels.
    """
    return Prepare(data.batch, data.classes, mirror, labelled)


def host_batches(x: Shaped[np.ndarray, "count *shape"], size: int) -> Iterator[Shaped[np.ndarray, "_ *shape"]]:
    """The rows of `x` in order, `size` at a time, the last batch smaller."""
    return (x[i : i + size] for i in range(0, len(x), size))
