"""Feature moments of a set of images, with some features and logits, gathered batch by batch: every metric needs only these."""

import dataclasses
import functools
import operator
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float, Float32

from .. import storage
from .features import Features
from .moments import Moments


@dataclasses.dataclass(frozen=True)
class Collected:
    """Moments of the features of all images, and the features and logits themselves of the first ones; `a + b` is both sets.

    The sum of the parts of a set, in order, is the same bits however the parts were shared out.
    """

    moments: Moments
    spatial: Moments | None
    kept: Float32[np.ndarray, "kept features"]
    logits: Float32[np.ndarray, "kept classes"] | None

    def __add__(self, other: "Collected") -> "Collected":
        return Collected(
            self.moments + other.moments,
            None if self.spatial is None or other.spatial is None else self.spatial + other.spatial,
            np.concatenate([self.kept, other.kept]),
            None if self.logits is None or other.logits is None else np.concatenate([self.logits, other.logits]),
        )

    def save(self, path: pathlib.Path) -> None:
        """Writes an .npz, which is whole if it is there."""
        arrays = _unpacked(self.moments, "moments") | {"kept": self.kept}
        if self.spatial is not None:
            arrays |= _unpacked(self.spatial, "spatial")
        if self.logits is not None:
            arrays["logits"] = self.logits
        with storage.draft_of(path) as draft, draft.open("wb") as file:
            np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]

    @classmethod
    def load(cls, path: pathlib.Path) -> "Collected":
        """Reads the file that `save` wrote."""
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = dict(stored)
        spatial = _packed(arrays, "spatial") if "spatial/mean" in arrays else None
        return cls(_packed(arrays, "moments"), spatial, arrays["kept"], arrays.get("logits"))


class Gathering:
    """Gathers the `Collected` of images batch by batch, with the features and logits of the first `keep` images."""

    def __init__(self, features: Features, *, keep: int):
        self._features, self._left = features, keep
        self._total: Moments | None = None
        self._spatial: Moments | None = None
        self._kept: list[np.ndarray] = []
        self._logits: list[np.ndarray] = []

    def add(self, images: Float[np.ndarray, "_ height width channels"]) -> None:
        """Takes images in [-1, 1]; raises ValueError for what the features refuse."""
        found = self._features(images)
        self._total = _plus(self._total, found.vectors)
        self._spatial = None if found.spatial is None else _plus(self._spatial, found.spatial)
        self._kept.append(np.asarray(found.vectors[: self._left], np.float32))
        if found.logits is not None:
            self._logits.append(np.asarray(found.logits[: self._left], np.float32))
        self._left -= len(self._kept[-1])

    @property
    def collected(self) -> Collected:
        """The moments, features and logits of all images so far. Raises ValueError if there are none."""
        if self._total is None:
            raise ValueError("no images to collect features of: there were no batches")
        logits = np.concatenate(self._logits) if self._logits else None
        return Collected(self._total, self._spatial, np.concatenate(self._kept), logits)


def collect(batches: Iterable[Float[np.ndarray, "_ height width channels"]], features: Features, *, keep: int) -> Collected:
    """Moments of the features of all images in [-1, 1], and the features and logits of the first `keep` of them.

    One batch of images is in memory at a time. Raises ValueError if there are no images, or for what `features` refuses.
    """
    found = Gathering(features, keep=keep)
    for images in batches:
        found.add(images)
    return found.collected


def merged(parts: Sequence[Collected]) -> Collected:
    """All parts of a set as one, added in their order."""
    return functools.reduce(operator.add, parts)


def _plus(total: Moments | None, vectors: Float[np.ndarray, "batch features"]) -> Moments:
    part = Moments.of(vectors)
    return part if total is None else total + part


def _unpacked(moments: Moments, name: str) -> dict[str, np.ndarray]:
    return {f"{name}/count": np.asarray(moments.count), f"{name}/mean": moments.mean, f"{name}/scatter": moments.scatter}


def _packed(arrays: dict[str, np.ndarray], name: str) -> Moments:
    return Moments(int(arrays[f"{name}/count"]), arrays[f"{name}/mean"], arrays[f"{name}/scatter"])
