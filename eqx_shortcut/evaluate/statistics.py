"""Files of the mean and covariance of features: ours, the reference's, and those of ADM's evaluation suite."""

import dataclasses
import hashlib
import json
import pathlib
import warnings
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, UInt8

from .. import storage
from .moments import Gaussian, Moments

MATRICES = ("mu", "sigma", "mu_s", "sigma_s")
REMEDY = "compute the statistics again"


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Mean and covariance of the features of a set of images, for Frechet distances, and which features these are."""

    vectors: Gaussian
    spatial: Gaussian | None = None
    """Moments of the features that keep their place in the image (sFID), if they were taken."""
    count: int | None = None
    """Number of images, if recorded."""
    protocol: Mapping[str, str] | None = None
    """The protocol of the features (see Features); None if the file does not record it."""
    kept: Float[np.ndarray, "kept features"] | None = None
    """Features of some of the images themselves, for the metrics that look at pairs of vectors."""

    @classmethod
    def of(
        cls,
        vectors: Moments,
        spatial: Moments | None,
        protocol: Mapping[str, str],
        kept: Float[np.ndarray, "kept features"] | None = None,
    ) -> "Statistics":
        """Statistics from moments of features with this protocol. Raises ValueError if there are fewer than 2 vectors."""
        return cls(vectors.gaussian, None if spatial is None else spatial.gaussian, vectors.count, dict(protocol), kept)

    @property
    def hash(self) -> str:
        """SHA-256 of the bytes of `mu` and `sigma`, and of `mu_s` and `sigma_s` if there are, in float64."""
        return _hash(_arrays(self))

    @property
    def provenance(self) -> str:
        """The protocol in words, for reports."""
        said = "not recorded" if self.protocol is None else ", ".join(f"{name} {said}" for name, said in self.protocol.items())
        return f"protocol of the statistics: {said}"

    def check(self, protocol: Mapping[str, str], dimension: int, count: int) -> None:
        """Refuses `count` samples to come, of features with `protocol` and `dimension`, if they cannot be compared with these.

        Raises ValueError if the dimension or a recorded protocol differs. Warns (UserWarning) if either side has no more
        vectors than features.
        """
        own = self.vectors.mean.size
        if own != dimension:
            raise ValueError(f"the statistics are of {own} features, the samples' are {dimension}: use the same for both")
        if self.protocol is not None and dict(self.protocol) != dict(protocol):
            names = [name for name in {**self.protocol, **protocol} if self.protocol.get(name) != protocol.get(name)]
            differ = "; ".join(f"{name} is {self.protocol.get(name)} there and {protocol.get(name)} here" for name in names)
            raise ValueError(f"the statistics are of another protocol than the samples ({differ}): {REMEDY} with this one")
        for vectors, whose in ((count, "samples"), (self.count, "images of the statistics")):
            if vectors is not None and vectors <= dimension:
                warnings.warn(
                    f"{vectors} {whose} for {dimension} features: their covariance is singular and the Frechet distance far "
                    f"from that of many; use more than {dimension}, and 50,000 to compare with published numbers",
                    stacklevel=2,
                )


def write_statistics(path: str | pathlib.Path, statistics: Statistics) -> None:
    """Writes an .npz of `mu`, `sigma`, hash, and as far as known `mu_s`, `sigma_s`, count, protocol (JSON) and kept."""
    path, arrays = pathlib.Path(path), _arrays(statistics)
    arrays["hash"] = np.array(_hash(arrays))
    if statistics.count is not None:
        arrays["count"] = np.array(statistics.count)
    if statistics.protocol is not None:
        arrays["protocol"] = np.array(json.dumps(dict(statistics.protocol)))
    if statistics.kept is not None:
        arrays["kept"] = statistics.kept
    with storage.draft_of(path) as draft, draft.open("wb") as file:
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]


def read_statistics(path: str | pathlib.Path) -> Statistics:
    """The statistics of a file that `write_statistics`, the reference or ADM's suite wrote, in float64.

    Raises ValueError if the file is no .npz of a mean and a covariance, or if its hash is not theirs.
    """
    path = pathlib.Path(path)
    stored = _load(path, (*MATRICES, "count", "protocol", "kept", "hash"))
    missing = [name for name in ("mu", "sigma") if name not in stored]
    if missing:
        raise ValueError(f"{path} holds no {' and no '.join(missing)}: statistics are an .npz of mu and sigma")
    statistics = Statistics(
        _gaussian(path, stored, "mu", "sigma"),
        _gaussian(path, stored, "mu_s", "sigma_s") if {"mu_s", "sigma_s"} <= stored.keys() else None,
        _count(path, stored["count"]) if "count" in stored else None,
        _protocol(path, stored["protocol"]) if "protocol" in stored else None,
        _kept(path, stored["kept"], stored["mu"].size) if "kept" in stored else None,
    )
    if "hash" in stored and str(stored["hash"]) != statistics.hash:
        raise ValueError(f"mu and sigma of {path} are not those that its hash was taken of: copy it again, or {REMEDY}")
    return statistics


def read_images(path: str | pathlib.Path) -> UInt8[np.ndarray, "count height width channels"]:
    """The images `arr_0` of a batch of ADM's evaluation suite. Raises ValueError if the file holds none."""
    path = pathlib.Path(path)
    images = _load(path, ("arr_0",)).get("arr_0")
    if images is None:
        raise ValueError(f"{path} holds no arr_0: batches of images are an .npz of arr_0")
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(
            f"arr_0 of {path} has shape {images.shape} and type {images.dtype}: "
            "images are (count, height, width, channels) in uint8"
        )
    return images


def _load(path: pathlib.Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise ValueError(f"no file of statistics {path}: check the path")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in names if name in stored}
    except Exception as error:  # whatever a damaged archive raises
        raise ValueError(f"{path} cannot be read as an .npz of statistics ({error}): copy it again") from error


def _gaussian(path: pathlib.Path, stored: dict[str, np.ndarray], mu: str, sigma: str) -> Gaussian:
    for name in (mu, sigma):
        if stored[name].dtype.kind != "f" or not np.isfinite(stored[name]).all():
            raise ValueError(f"{name} of {path} holds other than finite real numbers: {REMEDY}")
    mean, covariance = (stored[name].astype(np.float64) for name in (mu, sigma))
    if mean.ndim != 1 or covariance.shape != 2 * mean.shape or not mean.size:
        raise ValueError(f"{mu} of {path} has shape {mean.shape} and {sigma} {covariance.shape}: they must be (n,) and (n, n)")
    if not np.allclose(covariance, covariance.T, rtol=0, atol=1e-5 * np.abs(covariance).max()):
        raise ValueError(f"{sigma} of {path} is not symmetric and so no covariance: {REMEDY}")
    if (covariance.diagonal() < 0).any():
        raise ValueError(f"{sigma} of {path} has negative variances and so is no covariance: {REMEDY}")
    return Gaussian(mean, covariance)


def _count(path: pathlib.Path, stored: np.ndarray) -> int:
    if stored.dtype.kind not in "iu" or stored.ndim or stored < 2:
        raise ValueError(f"the count of {path} is {stored}, not a whole number of 2 or more: {REMEDY}")
    return int(stored)


def _protocol(path: pathlib.Path, stored: np.ndarray) -> dict[str, str]:
    try:
        protocol = json.loads(str(stored))
    except ValueError:
        protocol = None
    if not isinstance(protocol, dict) or not all(isinstance(said, str) for said in protocol.values()):
        raise ValueError(f"the protocol of {path} is no JSON of names and strings: {REMEDY}")
    return protocol


def _kept(path: pathlib.Path, stored: np.ndarray, features: int) -> np.ndarray:
    if stored.dtype.kind != "f" or stored.ndim != 2 or stored.shape[1] != features or not np.isfinite(stored).all():
        raise ValueError(
            f"kept of {path} has shape {stored.shape} and type {stored.dtype}: "
            f"it must be finite real numbers (count, {features})"
        )
    return stored


def _arrays(statistics: Statistics) -> dict[str, np.ndarray]:
    arrays = {"mu": statistics.vectors.mean, "sigma": statistics.vectors.covariance}
    if statistics.spatial is not None:
        arrays |= {"mu_s": statistics.spatial.mean, "sigma_s": statistics.spatial.covariance}
    return arrays


def _hash(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in MATRICES:
        if name in arrays:
            digest.update(np.ascontiguousarray(arrays[name], "<f8").data)
    return digest.hexdigest()
