"""The Inception Score: its bounds, its definition, and torch-fidelity."""

import numpy as np
import pytest

from eqx_shortcut.evaluate import inception_score
from fidelity import torch_fidelity

RNG = np.random.default_rng(0)


def test_sure_and_balanced_classes_score_their_number():
    logits = np.where(np.eye(5)[np.arange(40) % 5] > 0, 0.0, -1000.0)
    np.testing.assert_allclose(inception_score(logits, splits=4), [5, 0], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(inception_score(np.repeat(logits[:1], 40, axis=0), splits=4), [1, 0], atol=1e-12)


def test_classes_that_say_nothing_score_one():
    logits = np.broadcast_to(RNG.standard_normal(7), (20, 7))
    np.testing.assert_allclose(inception_score(logits, splits=3), [1, 0], atol=1e-12)


def test_the_score_is_its_definition_over_contiguous_splits():
    logits = RNG.standard_normal((23, 6)).astype(np.float32) * 2
    p = np.exp(logits.astype(float)) / np.exp(logits.astype(float)).sum(axis=1, keepdims=True)
    expected = []
    for part in (p[:7], p[7:15], p[15:]):
        expected.append(np.exp(np.mean(np.sum(part * np.log(part / part.mean(axis=0)), axis=1))))
    np.testing.assert_allclose(inception_score(logits, splits=3), [np.mean(expected), np.std(expected)], rtol=1e-10)


def test_a_constant_added_to_the_logits_of_an_image_changes_nothing():
    logits = RNG.standard_normal((20, 4))
    shifted = logits + 100 * RNG.standard_normal((20, 1))
    np.testing.assert_allclose(inception_score(shifted), inception_score(logits), rtol=1e-10)


def test_order_matters_only_between_splits():
    logits = RNG.standard_normal((30, 5))
    within = np.concatenate([RNG.permutation(part) for part in np.split(logits, 3)])
    np.testing.assert_allclose(inception_score(within, splits=3), inception_score(logits, splits=3), rtol=1e-12)
    assert abs(inception_score(RNG.permutation(logits), splits=3)[0] - inception_score(logits, splits=3)[0]) > 1e-6


def test_there_are_ten_splits_unless_told():
    logits = RNG.standard_normal((40, 5))
    assert inception_score(logits) == inception_score(logits, splits=10) != inception_score(logits, splits=9)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("count", "splits"), [(100, 10), (57, 4), (9, 1)])
def test_the_score_is_that_of_torch_fidelity(count, splits):
    torch = pytest.importorskip("torch", reason="pip install 'eqx_shortcut[parity]'")
    metric = torch_fidelity("metric_isc")
    logits = (3 * RNG.standard_normal((count, 20))).astype(np.float32)
    names = ("inception_score_mean", "inception_score_std")
    for order in (np.arange(count), np.random.RandomState(2020).permutation(count)):
        shuffled = order[0] != 0
        expected = metric.isc_features_to_metric(torch.from_numpy(logits), splits, shuffle=bool(shuffled), rng_seed=2020)
        found = inception_score(logits[order], splits=splits)
        np.testing.assert_allclose(found, [expected[name] for name in names], rtol=1e-6, atol=1e-12)


def test_logits_that_cannot_be_scored_are_refused():
    logits = RNG.standard_normal((4, 3))
    for splits in (0, 5):
        with pytest.raises(ValueError, match=f"4 images cannot be cut into {splits} splits: use 1 to 4"):
            inception_score(logits, splits=splits)
    logits[2, 1] = np.nan
    with pytest.raises(ValueError, match="logits hold NaN or infinity"):
        inception_score(logits, splits=1)
