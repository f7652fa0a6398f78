"""The Frechet loss: its gradient for a linear map of noise in closed form, its distance beside the evaluation's, its memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from eqx_shortcut import Batch, evaluate, losses
from eqx_shortcut.evaluate import Gaussian

pytestmark = pytest.mark.usefixtures("x64")
F, N, EPS = 3, 12, 0.01
RNG = np.random.default_rng(5)
DATA = RNG.standard_normal((N, F)) @ [[1.0, 0.4, 0.0], [0.0, 0.6, -0.3], [0.0, 0.0, 1.5]] + [0.3, -1.0, 0.5]
MEAN, COVARIANCE = DATA.mean(0), np.cov(DATA.T, bias=True)
A, B = np.array([[1.0, 0.2, 0.0], [-0.3, 0.8, 0.1], [0.2, 0.0, 1.3]]), np.array([0.5, 0.1, -0.2])


def whitened(noise: np.ndarray) -> np.ndarray:
    """Of mean 0 and covariance 1 to the last digit."""
    centred = noise - noise.mean(0)
    return centred @ np.linalg.inv(np.linalg.cholesky(centred.T @ centred / len(noise))).T


NOISE = whitened(RNG.standard_normal((N, F)))


def linear(a, b):
    """One step leads to `A x_0 + b` of noise whose moments are those of N(0, 1)."""
    return lambda x, t, d, cond: jnp.asarray(NOISE) @ a.T + b[None] - x


def fresh():
    return [losses.Streams(losses.Stream.of(F), losses.Stream.of(F))]


def called(field, key, memory, **options):
    return losses.frechet(field, Batch(jnp.asarray(DATA)), key, memory=memory, eps=EPS, **options)


def gradient(a, b, key):
    """Of the distance itself."""
    (_, metrics), _ = called(linear(jnp.asarray(a), jnp.asarray(b)), key, fresh())
    of_loss = jax.grad(lambda a, b: called(linear(a, b), key, fresh())[0][0], (0, 1))(jnp.asarray(a), jnp.asarray(b))
    return [np.asarray(g) * (float(metrics["frechet"]) + EPS) for g in of_loss]


def test_the_gradient_for_a_linear_map_is_the_closed_form(key):
    root = np.real(scipy.linalg.sqrtm(COVARIANCE))
    optimal = root @ np.linalg.inv(np.real(scipy.linalg.sqrtm(root @ A @ A.T @ root))) @ root
    found_a, found_b = gradient(A, B, key)
    np.testing.assert_allclose(found_a, 2 * (A - optimal @ A), atol=1e-9)
    np.testing.assert_allclose(found_b, 2 * (B - MEAN), atol=1e-12)


def test_the_gradient_vanishes_at_the_moments_of_the_data_alone(key):
    turn, _ = np.linalg.qr(RNG.standard_normal((F, F)))
    root = np.linalg.cholesky(COVARIANCE)
    assert max(np.abs(g).max() for g in gradient(root @ turn, MEAN, key)) < 1e-7
    assert np.abs(gradient(1.1 * root @ turn, MEAN, key)[0]).max() > 0.1


def stream(mean, covariance) -> losses.Stream:
    return losses.Stream(jnp.ones(()), jnp.asarray(mean), jnp.asarray(covariance + np.outer(mean, mean)))


@pytest.mark.parametrize("rank", [0, 1, 2, 3])
def test_the_distance_is_the_evaluation_s_at_any_rank(rank):
    low = DATA[:, :rank] @ RNG.standard_normal((rank, F))
    wide = A @ A.T
    for mean, covariance in ((B, wide), (low.mean(0), np.cov(low.T, bias=True))):
        pairs = [(stream(mean, covariance), stream(low.mean(0), np.cov(low.T, bias=True)))]
        expected = evaluate.frechet_distance(Gaussian(mean, covariance), Gaussian(low.mean(0), np.cov(low.T, bias=True)))
        for samples, data in pairs:
            np.testing.assert_allclose(losses.frechet_distance(samples, data), expected, atol=1e-6)
            slopes = jax.grad(lambda s, data=data: losses.frechet_distance(s, data))(samples)
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))


def test_float32_has_the_distance_and_gradient_of_double_precision_where_variances_differ():
    """As those of features do: their least are 1e-6 of the largest."""
    rng, spread = np.random.default_rng(7), np.exp(-np.linspace(0, 7, 24))
    turn, _ = np.linalg.qr(rng.standard_normal((24, 24)))
    x, data = (scale * spread * rng.standard_normal((300, 24)) @ turn + 0.5 for scale in (0.8, 1.0))

    def distance(x):
        fresh = jax.tree.map(lambda a: a.astype(x.dtype), losses.Stream.of(24))
        return losses.frechet_distance(fresh.updated(x, 1.0), fresh.updated(jnp.asarray(data, x.dtype), 1.0))

    (exact, slope), (found, coarse) = (jax.value_and_grad(distance)(jnp.asarray(x, kind)) for kind in (float, jnp.float32))
    np.testing.assert_allclose(found, exact, rtol=2e-4)
    assert np.linalg.norm(np.asarray(coarse) - np.asarray(slope)) < 0.005 * np.linalg.norm(slope)


def test_between_equal_moments_the_loss_never_changes_its_sign(key, monkeypatch):
    """Where rounding leaves a distance of less than 0."""
    distance = losses.frechet_distance
    monkeypatch.setattr("eqx_shortcut.losses._frechet.frechet_distance", lambda *both: distance(*both) - 100)
    below = jax.grad(lambda a: called(linear(a, jnp.asarray(B)), key, fresh())[0][0])(jnp.asarray(A)) * EPS
    monkeypatch.undo()
    expected, _ = gradient(A, B, key)
    np.testing.assert_allclose(below, expected, rtol=1e-6)


def test_the_distance_is_that_of_other_units():
    for unit in (1e-4, 1e4):
        pairs = [(stream(s * B, s**2 * A @ A.T), stream(s * MEAN, s**2 * COVARIANCE)) for s in (1.0, unit)]
        one, other = (losses.frechet_distance(*pair) for pair in pairs)
        np.testing.assert_allclose(other, unit**2 * one, rtol=1e-6)


def test_moments_stream_with_falling_weights():
    parts = [RNG.standard_normal((n, F)) for n in (4, 4, 4)]
    found = losses.Stream.of(F)
    for part in parts:
        found = found.updated(jnp.asarray(part), 0.5)
    weights = np.repeat([0.25, 0.5, 1.0], 4)
    rows = np.concatenate(parts)
    np.testing.assert_allclose(found.mean, np.average(rows, axis=0, weights=weights), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(rows.T, bias=True, aweights=weights), rtol=1e-10)


def test_the_memory_holds_samples_that_fade_and_all_data(key):
    memory = fresh()
    for scale in (1.0, 2.0):
        _, memory = called(linear(jnp.asarray(scale * A), jnp.asarray(B)), key, memory, decay=0.25)
    np.testing.assert_allclose(memory[0].data.mean, MEAN, rtol=1e-12)
    np.testing.assert_allclose(memory[0].data.count, 2)
    products = (0.25 * A @ A.T + 4 * A @ A.T) / 1.25 + np.outer(B, B)
    np.testing.assert_allclose(memory[0].samples.products, products, rtol=1e-10)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(jax.grad(_of_memory(key))(memory)[0].data))


def _of_memory(key):
    """The moments that are remembered pass no gradient on."""
    return lambda memory: jnp.sum(called(linear(jnp.asarray(A), jnp.asarray(B)), key, memory)[1][0].data.products)


def test_features_of_another_size_are_refused(key):
    with pytest.raises(ValueError, match="features of 2 numbers for moments of 3: give the memory of these features"):
        called(linear(jnp.asarray(A), jnp.asarray(B)), key, fresh(), features=lambda x: x[:, :2])


def test_a_memory_of_more_spaces_than_the_features_have_is_refused(key):
    with pytest.raises(ValueError, match="shorter"):
        called(linear(jnp.asarray(A), jnp.asarray(B)), key, fresh() + fresh())
