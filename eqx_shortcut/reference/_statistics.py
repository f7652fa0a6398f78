"""The reference's statistics of Inception features."""

import pathlib

import numpy as np
from jaxtyping import Float64


def read_statistics(
    path: str | pathlib.Path,
) -> tuple[Float64[np.ndarray, " features"], Float64[np.ndarray, "features features"]]:
    """Mean and covariance (`mu` and `sigma`) of the reference's file of FID statistics.

    Raises ValueError if the file is no `.npz` of both, if their sizes disagree, or if they are no mean and covariance.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise ValueError(f"no file of statistics {path}: check the path")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            found = {name: stored[name] for name in ("mu", "sigma") if name in stored}
    except Exception as error:  # whatever a damaged archive raises
        raise ValueError(f"{path} cannot be read as an .npz of statistics ({error}): copy it again") from error
    for name in ("mu", "sigma"):
        if name not in found:
            raise ValueError(f"{path} holds no {name}: statistics are an .npz of mu and sigma")
        if found[name].dtype.kind != "f" or not np.isfinite(found[name]).all():
            raise ValueError(f"{name} of {path} holds other than finite real numbers: compute the statistics again")
    mean, covariance = (found[name].astype(np.float64) for name in ("mu", "sigma"))
    if mean.ndim != 1 or covariance.shape != 2 * mean.shape:
        raise ValueError(f"mu of {path} has shape {mean.shape} and sigma {covariance.shape}: they must be (n,) and (n, n)")
    if not np.allclose(covariance, covariance.T, rtol=0, atol=1e-5 * np.abs(covariance).max(initial=0)):
        raise ValueError(f"sigma of {path} is not symmetric and so no covariance: compute the statistics again")
    return mean, covariance
