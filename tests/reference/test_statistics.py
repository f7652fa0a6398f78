import numpy as np
import pytest

from eqx_shortcut import reference

MEAN, COVARIANCE = np.arange(3.0), np.diag([1.0, 2.0, 3.0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_statistics_are_read_in_double_precision(tmp_path, dtype):
    np.savez(tmp_path / "s.npz", mu=MEAN.astype(dtype), sigma=COVARIANCE.astype(dtype))
    mean, covariance = reference.read_statistics(tmp_path / "s.npz")
    assert mean.dtype == covariance.dtype == np.float64
    np.testing.assert_array_equal(mean, MEAN)
    np.testing.assert_array_equal(covariance, COVARIANCE)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": MEAN}, "holds no sigma"),
        ({"sigma": COVARIANCE}, "holds no mu"),
        ({"mu": MEAN[:2], "sigma": COVARIANCE}, r"mu of .* has shape \(2,\) and sigma \(3, 3\)"),
        ({"mu": MEAN[None], "sigma": COVARIANCE}, r"shape \(1, 3\)"),
        ({"mu": MEAN * np.nan, "sigma": COVARIANCE}, "mu of .* other than finite"),
        ({"mu": MEAN, "sigma": COVARIANCE + np.inf}, "sigma of .* other than finite"),
        ({"mu": MEAN, "sigma": COVARIANCE + np.triu(np.ones((3, 3)), 1)}, "not symmetric"),
        ({"mu": np.zeros(3, object), "sigma": COVARIANCE}, "cannot be read as an .npz"),
        ({"mu": np.zeros(3, complex), "sigma": COVARIANCE}, "other than finite real"),
    ],
)
def test_other_statistics_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "s.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        reference.read_statistics(tmp_path / "s.npz")


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"something else"])
def test_other_files_are_refused(tmp_path, data):
    (tmp_path / "s.npz").write_bytes(data)
    with pytest.raises(ValueError, match=r"s\.npz cannot be read"):
        reference.read_statistics(tmp_path / "s.npz")


def test_a_plain_array_and_an_absent_file_are_refused(tmp_path):
    np.save(tmp_path / "s.npy", MEAN)
    with pytest.raises(ValueError, match="cannot be read"):
        reference.read_statistics(tmp_path / "s.npy")
    with pytest.raises(ValueError, match="no file of statistics"):
        reference.read_statistics(tmp_path / "absent.npz")
