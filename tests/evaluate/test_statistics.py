"""Files of statistics: what is written is read, and what is no set of statistics is refused in a sentence."""

import json
import warnings

import numpy as np
import pytest

from eqx_shortcut.evaluate import Moments, Statistics, frechet_distance, read_images, read_statistics, write_statistics

MEAN, COVARIANCE = np.arange(3.0), np.diag([1.0, 2.0, 3.0])
PROTOCOL = {"network": "inception", "resize": "bilinear"}
RNG = np.random.default_rng(0)


def statistics(*, spatial: bool = True) -> Statistics:
    vectors, places = Moments.of(RNG.standard_normal((20, 3))), Moments.of(RNG.standard_normal((20, 5)))
    kept = RNG.standard_normal((4, 3)).astype(np.float32) if spatial else None
    return Statistics.of(vectors, places if spatial else None, PROTOCOL, kept)


def rewritten(path, **changes):
    """The file with some of its arrays changed, or left out where None."""
    with np.load(path) as stored:
        arrays = {**stored, **changes}
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return path


@pytest.mark.parametrize("spatial", [True, False])
def test_what_is_written_is_read_bit_by_bit(tmp_path, spatial):
    written = statistics(spatial=spatial)
    write_statistics(tmp_path / "s.npz", written)
    found = read_statistics(tmp_path / "s.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["s.npz"]
    assert (found.count, found.protocol, found.hash) == (20, PROTOCOL, written.hash)
    np.testing.assert_array_equal(found.vectors.mean, written.vectors.mean)
    np.testing.assert_array_equal(found.vectors.covariance, written.vectors.covariance)
    assert (found.spatial is None) == (not spatial)
    if found.spatial is not None and written.spatial is not None:
        np.testing.assert_array_equal(found.spatial.covariance, written.spatial.covariance)
    assert (found.kept is None) == (not spatial)
    if found.kept is not None and written.kept is not None:
        assert found.kept.dtype == np.float32
        np.testing.assert_array_equal(found.kept, written.kept)


def test_any_reader_of_mu_and_sigma_reads_ours(tmp_path):
    write_statistics(tmp_path / "s.npz", statistics())
    with np.load(tmp_path / "s.npz", allow_pickle=False) as stored:
        assert stored["mu"].shape == (3,) and stored["sigma"].shape == (3, 3)
        assert json.loads(str(stored["protocol"])) == PROTOCOL and stored["count"] == 20


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_files_of_the_reference_are_read_in_double_precision(tmp_path, dtype):
    np.savez(tmp_path / "s.npz", mu=MEAN.astype(dtype), sigma=COVARIANCE.astype(dtype))
    found = read_statistics(tmp_path / "s.npz")
    assert found.vectors.mean.dtype == found.vectors.covariance.dtype == np.float64
    np.testing.assert_array_equal(found.vectors.mean, MEAN)
    np.testing.assert_array_equal(found.vectors.covariance, COVARIANCE)
    assert found.count is None and found.protocol is None and found.spatial is None
    assert found.provenance == "protocol of the statistics: not recorded"


def test_batches_of_adms_suite_hold_statistics_and_images(tmp_path):
    images = RNG.integers(0, 256, (4, 6, 5, 3), np.uint8)
    places = np.eye(7, dtype=np.float64)
    np.savez(tmp_path / "b.npz", arr_0=images, mu=MEAN, sigma=COVARIANCE, mu_s=places[0], sigma_s=places)
    found = read_statistics(tmp_path / "b.npz")
    np.testing.assert_array_equal(read_images(tmp_path / "b.npz"), images)
    assert found.spatial is not None
    np.testing.assert_array_equal(found.spatial.covariance, places)
    assert frechet_distance(found.spatial, found.spatial) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": MEAN}, "holds no arr_0"),
        ({"arr_0": np.zeros((4, 6, 5, 3))}, r"has shape \(4, 6, 5, 3\) and type float64: images are"),
        ({"arr_0": np.zeros((4, 6, 5), np.uint8)}, r"has shape \(4, 6, 5\) and type uint8"),
    ],
)
def test_batches_without_images_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "b.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        read_images(tmp_path / "b.npz")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": MEAN}, "holds no sigma"),
        ({"sigma": COVARIANCE}, "holds no mu"),
        ({"arr_0": np.zeros((4, 6, 5, 3), np.uint8)}, "holds no mu and no sigma"),
        ({"mu": MEAN[:2], "sigma": COVARIANCE}, r"mu of .* has shape \(2,\) and sigma \(3, 3\)"),
        ({"mu": MEAN[None], "sigma": COVARIANCE}, r"shape \(1, 3\)"),
        ({"mu": MEAN[:0], "sigma": COVARIANCE[:0, :0]}, r"shape \(0,\)"),
        ({"mu": MEAN * np.nan, "sigma": COVARIANCE}, "mu of .* other than finite"),
        ({"mu": MEAN, "sigma": COVARIANCE + np.inf}, "sigma of .* other than finite"),
        ({"mu": MEAN, "sigma": COVARIANCE + np.triu(np.ones((3, 3)), 1)}, "not symmetric"),
        ({"mu": MEAN, "sigma": -COVARIANCE}, "negative variances"),
        ({"mu": np.zeros(3, object), "sigma": COVARIANCE}, "cannot be read as an .npz"),
        ({"mu": np.zeros(3, complex), "sigma": COVARIANCE}, "other than finite real"),
        ({"mu": MEAN, "sigma": COVARIANCE, "mu_s": MEAN, "sigma_s": COVARIANCE[:2]}, r"mu_s of .* and sigma_s \(2, 3\)"),
        ({"mu": MEAN, "sigma": COVARIANCE, "count": 1}, "the count of .* is 1, not a whole number of 2 or more"),
        ({"mu": MEAN, "sigma": COVARIANCE, "count": 2.5}, "the count of .* is 2.5"),
        ({"mu": MEAN, "sigma": COVARIANCE, "protocol": "{"}, "the protocol of .* is no JSON of names and strings"),
        ({"mu": MEAN, "sigma": COVARIANCE, "protocol": '{"a": 1}'}, "is no JSON of names and strings"),
        ({"mu": MEAN, "sigma": COVARIANCE, "protocol": "[]"}, "is no JSON of names and strings"),
        ({"mu": MEAN, "sigma": COVARIANCE, "kept": np.zeros((4, 2))}, r"kept of .* must be finite real numbers \(count, 3\)"),
        ({"mu": MEAN, "sigma": COVARIANCE, "kept": np.full((4, 3), np.nan)}, "kept of .* must be finite"),
    ],
)
def test_other_arrays_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "s.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        read_statistics(tmp_path / "s.npz")


@pytest.mark.parametrize("name", ["mu", "sigma", "mu_s", "sigma_s"])
def test_a_changed_value_disagrees_with_the_hash(tmp_path, name):
    write_statistics(tmp_path / "s.npz", statistics())
    with np.load(tmp_path / "s.npz") as stored:
        changed = stored[name] * (1 + 1e-15)
        assert np.any(changed != stored[name])
    with pytest.raises(ValueError, match="not those that its hash was taken of: copy it again"):
        read_statistics(rewritten(tmp_path / "s.npz", **{name: changed}))


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"something else"])
def test_other_files_are_refused(tmp_path, data):
    (tmp_path / "s.npz").write_bytes(data)
    with pytest.raises(ValueError, match=r"s\.npz cannot be read"):
        read_statistics(tmp_path / "s.npz")


def test_a_file_cut_short_is_refused(tmp_path):
    write_statistics(tmp_path / "s.npz", statistics())
    whole = (tmp_path / "s.npz").read_bytes()
    for size in range(0, len(whole), 101):
        (tmp_path / "s.npz").write_bytes(whole[:size])
        with pytest.raises(ValueError, match="copy it again"):
            read_statistics(tmp_path / "s.npz")


def test_a_plain_array_and_an_absent_file_are_refused(tmp_path):
    np.save(tmp_path / "s.npy", MEAN)
    with pytest.raises(ValueError, match="cannot be read"):
        read_statistics(tmp_path / "s.npy")
    with pytest.raises(ValueError, match="no file of statistics"):
        read_statistics(tmp_path / "absent.npz")


def test_samples_of_the_same_features_are_accepted_without_a_word():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        statistics().check(dict(reversed(PROTOCOL.items())), 3, 4)
    assert statistics().provenance == "protocol of the statistics: network inception, resize bilinear"


def test_samples_of_other_features_are_refused():
    with pytest.raises(ValueError, match="the statistics are of 3 features, the samples' are 4: use the same"):
        statistics().check(PROTOCOL, 4, 100)
    with pytest.raises(ValueError, match=r"another protocol than the samples \(resize is bilinear there and bicubic here\)"):
        statistics().check({**PROTOCOL, "resize": "bicubic"}, 3, 100)
    with pytest.raises(ValueError, match=r"\(resize is bilinear there and None here; hash is None there and 1 here\)"):
        statistics().check({"network": "inception", "hash": "1"}, 3, 100)


def test_statistics_of_an_unknown_protocol_are_accepted_for_any_but_another_dimension(tmp_path):
    np.savez(tmp_path / "s.npz", mu=MEAN, sigma=COVARIANCE)
    found = read_statistics(tmp_path / "s.npz")
    found.check(PROTOCOL, 3, 100)
    with pytest.raises(ValueError, match="of 3 features"):
        found.check(PROTOCOL, 2, 100)


def test_too_few_vectors_are_warned_of():
    with pytest.warns(UserWarning, match="3 samples for 3 features: their covariance is singular"):
        statistics().check(PROTOCOL, 3, 3)
    few = Statistics.of(Moments.of(RNG.standard_normal((3, 3))), None, PROTOCOL)
    with pytest.warns(UserWarning, match="3 images of the statistics for 3 features"):
        few.check(PROTOCOL, 3, 4)
