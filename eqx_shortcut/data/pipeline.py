"""From images in memory to batches on the devices, through Grain."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray, Shaped

from ..types import Batch
from .images import Images

if TYPE_CHECKING:
    from grain import DatasetIterator


class WholeBatches:
    """Random access to shuffled batches: item `i` is rows `i size ... (i + 1) size - 1` of one permutation after another.

    A whole batch is one gather, many times faster than one row at a time; the position of a run is the one number `i`,
    whatever the number of processes. Every row comes once an epoch; a batch may span two epochs. Process `process` of
    `processes` gets its share of each batch.
    """

    def __init__(self, arrays: dict[str, np.ndarray], size: int, *, seed: int, process: int = 0, processes: int = 1):
        self.arrays, self.size, self.seed = arrays, size, seed
        self.count = len(next(iter(arrays.values())))
        if size % processes:
            raise ValueError(f"batch {size} is not a multiple of {processes} processes: choose one that is")
        share = size // processes
        self.share = slice(process * share, (process + 1) * share)
        self._orders: dict[int, Shaped[np.ndarray, " count"]] = {}

    def __len__(self) -> int:
        return 2**40

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        rows = self.rows(index)[self.share]
        return {name: array[rows] for name, array in self.arrays.items()}

    def rows(self, index: int) -> Shaped[np.ndarray, " size"]:
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


def batches(images: Images, size: int, *, seed: int, sharding: jax.sharding.Sharding) -> "DatasetIterator":
    """An endless Grain iterator of `{"pixels", "labels"}` batches on the devices, with exact `get_state` and `set_state`.

    Batches are read ahead in a thread and sent ahead to the devices; the state is that of the batches handed out.
    """
    import grain

    source = WholeBatches(
        {"pixels": images.pixels, "labels": images.labels},
        size,
        seed=seed,
        process=jax.process_index(),
        processes=jax.process_count(),
    )
    read = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
    dataset = grain.MapDataset.source(source).to_iter_dataset(read)
    return iter(grain.experimental.device_put(dataset, sharding))


def prepare(images: Images, *, mirror: bool, labelled: bool = True) -> Callable[[Any, PRNGKeyArray], Batch]:
    """The function from a raw batch to a Batch, for use inside the compiled step.

    Scales to [-1, 1], mirrors each image with probability 1/2, and with `labelled=False` hides all labels.
    """
    half, null = images.peak / 2, images.classes

    def to_batch(raw: dict[str, Array], key: PRNGKeyArray) -> Batch:
        x = raw["pixels"].astype(jnp.float32) / half - 1
        if mirror:
            flip = jax.random.bernoulli(key, 0.5, (x.shape[0], 1, 1, 1))
            x = jnp.where(flip, x[:, :, ::-1], x)
        labels = raw["labels"]
        return Batch(x, labels if labelled else jnp.full_like(labels, null))

    return to_batch


def host_batches(x: Shaped[np.ndarray, "count *shape"], size: int) -> Iterator[Shaped[np.ndarray, "_ *shape"]]:
    """The rows of `x` in order, `size` at a time, the last batch smaller."""
    return (x[i : i + size] for i in range(0, len(x), size))
