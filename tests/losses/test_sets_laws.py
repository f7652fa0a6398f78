"""Losses on sets: entropic plans between Gaussians in closed form, drifting's symmetry, and both against plain formulas."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm

from eqx_shortcut import Batch, losses

pytestmark = pytest.mark.usefixtures("x64")


# Entropic maps between Gaussians, on a grid: C = sqrt(A B + eps^2/16) - eps/4 for the cost |x - y|^2 + eps KL


def closed_form(a, b, epsilon):
    return np.sqrt(a * b + epsilon**2 / 16) - epsilon / 4


def on_grid(mean: float, variance: float, count: int = 121):
    """Points to eight standard deviations and the masses of a Gaussian there."""
    x = mean + np.sqrt(variance) * np.linspace(-8, 8, count)
    masses = np.asarray(norm.pdf(x, mean, np.sqrt(variance)))
    return jnp.asarray(x)[:, None], jnp.asarray(masses / masses.sum())


def mapped(x, y, masses, epsilon, iterations=100):
    cost = losses.distances(x, y) ** 2
    return losses.entropic_map(cost, y, epsilon=epsilon, iterations=iterations, masses=masses)


@pytest.mark.parametrize("epsilon", [0.3, 1.0, 8.0])
def test_the_map_between_gaussians_is_the_closed_form(epsilon):
    (a, var), (b, wide) = (0.3, 0.5), (-1.0, 2.0)
    (x, p), (y, q), (x2, p2) = on_grid(a, var), on_grid(b, wide), on_grid(a, var)
    to_data, error = mapped(x, y, (p, q), epsilon, 400)
    to_itself, _ = mapped(x, x2, (p, p2), epsilon, 400)
    middle = np.abs(np.asarray(x[:, 0]) - a) < 3 * np.sqrt(var)
    gain = closed_form(var, wide, epsilon) / var
    np.testing.assert_allclose(to_data[middle], (b + gain * (x - a))[middle], atol=1e-9)
    velocity = b - a + (gain - closed_form(var, var, epsilon) / var) * (x - a)
    np.testing.assert_allclose((to_data - to_itself)[middle], velocity[middle], atol=1e-9)
    assert float(error) < 1e-10


def test_the_map_between_gaussians_of_a_common_eigenbasis_is_the_closed_form():
    epsilon, (turn, _) = 2.0, np.linalg.qr(np.array([[2.0, -1.0], [1.0, 3.0]]))
    sides = [(on_grid(0, a, 25), on_grid(0.5, b, 25)) for a, b in ((0.5, 1.5), (1.0, 0.3))]

    def plane(which):
        points = np.stack(np.meshgrid(*(np.asarray(side[which][0])[:, 0] for side in sides), indexing="ij"), -1).reshape(-1, 2)
        return jnp.asarray(points @ turn.T), jnp.outer(sides[0][which][1], sides[1][which][1]).ravel()

    (x, p), (y, q) = plane(0), plane(1)
    found, _ = mapped(x, y, (p, q), epsilon)
    gains = [closed_form(a, b, epsilon) / a for a, b in ((0.5, 1.5), (1.0, 0.3))]
    expected = np.asarray(x) @ turn @ np.diag(gains) @ turn.T + np.full((1, 2), 0.5) @ turn.T
    middle = np.sum((np.asarray(x) @ turn) ** 2 / [0.5, 1.0], axis=1) < 6
    assert middle.sum() > 40
    np.testing.assert_allclose(found[middle], expected[middle], atol=5e-3)


# Plain formulas


def sets(seed=0, n=6, m=5, k=7, f=3):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((count, f)) + shift for count, shift in ((n, 0), (m, 0.7), (k, 0.2)))


def lengths(x, y):
    return np.linalg.norm(x[:, None] - y[None], axis=2)


def plain_map(x, y, epsilon, exponent, iterations=20):
    """Sinkhorn's scalings, rows last."""
    kernel = np.exp(-(lengths(x, y) ** exponent) / epsilon)
    u, v = np.ones(len(x)), np.ones(len(y))
    for _ in range(iterations):
        u = 1 / len(x) / (kernel @ v)
        v = 1 / len(y) / (kernel.T @ u)
    u = 1 / len(x) / (kernel @ v)
    plan = u[:, None] * kernel * v[None]
    return plan @ y / plan.sum(1, keepdims=True), np.abs(plan.sum(0) - 1 / len(y)).sum()


def plain_sinkhorn(x, data, others, share=0.05, exponent=1.0):
    epsilon = share * (lengths(x, data) ** exponent).mean()
    (to_data, error), (to_others, other) = (plain_map(x, y, epsilon, exponent) for y in (data, others))
    return to_data - to_others, max(error, other)


def plain_drift(x, data, others, temperature, weights=None, own=False):
    """By sums over pairs."""
    w = np.concatenate([np.ones(len(others)) if weights is None else weights, np.ones(len(data))])
    y, skip = np.concatenate([others, data]), np.eye(len(x), len(others) + len(data)) * own
    d, counted = lengths(x, y), w[None] * (1 - skip)
    e = np.exp(-d / ((d * counted).sum() / counted.sum() * temperature)) * (1 - skip)
    kernel = np.sqrt(e / e.sum(1, keepdims=True) * e / e.sum(0, keepdims=True)) * w
    v = np.zeros_like(x)
    for i in range(len(x)):
        for j in range(len(others), len(y)):
            for other in range(len(others)):
                v[i] += kernel[i, j] * kernel[i, other] * (y[j] - y[other])
    return v


@pytest.mark.parametrize(("share", "exponent"), [(0.3, 1.0), (0.5, 2.0)])
def test_sinkhorn_is_the_plain_formula(share, exponent):
    x, data, others = sets()
    found, error = losses.sinkhorn_velocity(*map(jnp.asarray, (x, data, others)), epsilon=share, exponent=exponent)
    expected, missed = plain_sinkhorn(x, data, others, share, exponent)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    np.testing.assert_allclose(error, missed, rtol=1e-6, atol=1e-14)
    coarse, more = losses.sinkhorn_velocity(*map(jnp.asarray, (x, data, others)), epsilon=0.05, iterations=1)
    assert more > 100 * error and np.isfinite(coarse).all()


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("weighed", [False, True])
def test_drifting_is_the_plain_formula(own, weighed):
    x, data, others = sets()
    others = np.concatenate([x, others]) if own else others
    weights = np.linspace(0.5, 2, len(others)) if weighed else None
    given = None if weights is None else jnp.asarray(weights)
    found = losses.drifting_velocity(*map(jnp.asarray, (x, data, others)), temperature=0.3, weights=given, own=own)
    np.testing.assert_allclose(found, plain_drift(x, data, others, 0.3, weights, own), rtol=1e-9)


def test_nothing_moves_between_equal_sets_and_drifting_turns_with_their_places():
    x, data, others = map(jnp.asarray, sets())
    assert float(jnp.abs(losses.sinkhorn_velocity(x, data, data)[0]).max()) < 1e-12
    assert float(jnp.abs(losses.drifting_velocity(x, data, data[::-1], temperature=0.2)).max()) < 1e-12
    there, back = (losses.drifting_velocity(x, *pair, temperature=0.2) for pair in ((data, others), (others, data)))
    np.testing.assert_allclose(there, -back, atol=1e-14)
    assert float(jnp.abs(there).max()) > 0.01


# The losses

N, GROUPS = 12, 2
TEMPERATURES = (0.1, 0.4)


def generator(p):
    """One step leads from `z` to `z a + b label`."""
    return lambda x, t, d, cond: x * (p["a"] - 1)[None] + cond[:, None] * p["b"][None]


def batch() -> Batch:
    x = np.random.default_rng(3).standard_normal((N, 3)) * [1.0, 0.5, 2.0]
    cond = np.repeat(np.arange(1.0, GROUPS + 1), N // GROUPS)
    return Batch(jnp.asarray(x + cond[:, None]), jnp.asarray(cond))


P = {"a": np.array([0.7, 1.2, 0.9]), "b": np.array([0.3, -0.2, 0.1])}


def of_groups(name: str, samples, data, everything, guidance: float) -> tuple[np.ndarray, dict[str, Any]]:
    """How a group's samples move, and the metrics."""
    if name == "drifting":
        everything = everything[: 0 if guidance == 1 else None]
        w = (guidance - 1) * (len(samples) - 1) / max(1, len(everything))
        others = np.concatenate([samples, everything])
        weights = np.concatenate([np.ones(len(samples)), np.full(len(everything), w)])
        moves = [plain_drift(samples, data, others, r, weights, own=True) for r in TEMPERATURES]
        v = np.sum([v / np.sqrt(np.mean(v**2)) for v in moves], axis=0)
        return v, {"drift": np.sqrt(np.mean(np.sum(moves, axis=0) ** 2))}
    a, b = np.split(samples, 2)
    parts, missed = zip(plain_sinkhorn(a, data, b), plain_sinkhorn(b, data, a), strict=True)
    away = np.concatenate([plain_sinkhorn(half, data, everything)[0] for half in (a, b)])
    v = np.concatenate(parts) + (guidance - 1) * away
    return v, {"drift": np.sqrt(np.mean(v**2)), "marginals": np.mean(missed)}


def called(name, field, key, **options):
    own = {"temperatures": TEMPERATURES} if name == "drifting" else {}
    return getattr(losses, name)(field, batch(), key, groups=GROUPS, **own, **options)


@pytest.mark.parametrize("name", ["sinkhorn_flow", "drifting"])
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_a_loss_moves_each_group_by_its_sets_alone(key, name, guidance):
    """Values and gradient, by `2 phi' (phi - sg(phi + V))` with a feature map that is not the identity."""
    mix = jnp.asarray(np.random.default_rng(1).standard_normal((3, 5)))
    copies = 2 if name == "sinkhorn_flow" else 1
    z = np.asarray(jax.random.normal(key, (copies * N, 3), float)).reshape(GROUPS, -1, 3)
    data = np.asarray(batch().x @ mix).reshape(GROUPS, -1, 5)
    x = np.stack([z[g] * P["a"] + (g + 1) * P["b"] for g in range(GROUPS)]) @ np.asarray(mix)
    unit = np.mean([lengths(x[g], data[g]) for g in range(GROUPS)]) / np.sqrt(5)
    everything = data.reshape(-1, 5) / unit
    moves = [of_groups(name, x[g] / unit, data[g] / unit, everything, guidance) for g in range(GROUPS)]
    v = np.stack([v for v, _ in moves])
    options = {"features": lambda rows: rows @ mix, "guidance": guidance}
    found, metrics = called(name, generator(P), key, reduction=None, **options)
    np.testing.assert_allclose(found, np.mean(v**2, axis=2).ravel(), rtol=1e-7)
    gradient = jax.grad(lambda p: called(name, generator(p), key, **options)[0])(P)
    pull = -2 * v @ np.asarray(mix).T / unit / v.size
    np.testing.assert_allclose(gradient["a"], np.sum(pull * z, axis=(0, 1)), rtol=1e-7)
    labels = np.arange(1.0, GROUPS + 1)[:, None, None]
    np.testing.assert_allclose(gradient["b"], np.sum(pull * labels, axis=(0, 1)), rtol=1e-7)
    for metric in moves[0][1]:
        np.testing.assert_allclose(metrics[metric], np.mean([own[metric] for _, own in moves]), rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], np.mean(v**2), rtol=1e-7)


def test_products_of_features_are_taken_in_full_precision():
    """Elsewhere than on a CPU products of float32 are rounded to fewer digits unless they say otherwise."""
    highest = (jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGHEST)
    for function in (
        lambda x: losses.entropic_map(x, x[:3], epsilon=0.5),
        lambda x: losses.drifting_velocity(x, x + 1, x - 1, temperature=0.5),
        lambda x: losses.Stream.of(3).updated(x, 0.5).products,
        lambda x: losses.frechet_distance(losses.Stream.of(3).updated(x, 0.5), losses.Stream.of(3)),
    ):
        steps = [step for step in jax.make_jaxpr(function)(jnp.ones((4, 3))).eqns if step.primitive.name == "dot_general"]
        assert steps and all(step.params["precision"] == highest for step in steps)


@pytest.mark.parametrize("name", ["sinkhorn_flow", "drifting"])
def test_several_spaces_count_alike_and_rows_of_any_shape_are_compared(key, name):
    spaces = [lambda rows: rows, lambda rows: 100 * rows[:, :2]]
    one, other = (called(name, generator(P), key, features=space)[0] for space in spaces)
    both, _ = called(name, generator(P), key, features=lambda rows: {"a": spaces[0](rows), "b": spaces[1](rows)})
    np.testing.assert_allclose(both, (one + other) / 2, rtol=1e-9)
    images = Batch(batch().x.reshape(N, 3, 1, 1), batch().cond)
    field = lambda x, t, d, cond: generator(P)(x.reshape(-1, 3), t, d, cond).reshape(x.shape)  # noqa: E731
    own = {"temperatures": TEMPERATURES} if name == "drifting" else {}
    np.testing.assert_allclose(getattr(losses, name)(field, images, key, groups=GROUPS, **own)[0], one, rtol=1e-9)


REFUSED = [
    ({"groups": 5}, r"batch 12 is not a multiple of groups=5: use a batch of 10 or 15, or groups=4 or 6"),
    ({"groups": 12}, r"groups=12 of a batch of 12 are sets of one row, which tell nothing: use a batch of 24 or more"),
    ({"features": lambda rows: rows[:, :, None]}, r"features are of shape \(\d+, 3, 1\) .*give one vector a row"),
]


@pytest.mark.parametrize("name", ["sinkhorn_flow", "drifting"])
@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_what_are_no_sets_is_refused(key, name, options, message):
    with pytest.raises(ValueError, match=message):
        getattr(losses, name)(generator(P), batch(), key, **options)


def test_pairs_are_refused(key):
    pairs = Batch(batch().x, batch().cond, jnp.zeros((N, 3)))
    with pytest.raises(ValueError, match="holds pairs of noise and data: train on the data"):
        losses.drifting(generator(P), pairs, key)


def test_a_guidance_of_drifting_below_1_is_refused(key):
    """Its weights would be negative, and with them the mean distance could be."""
    with pytest.raises(ValueError, match=r"guidance=0.5: .*: use 1 or more"):
        losses.drifting(generator(P), batch(), key, groups=GROUPS, guidance=0.5)
