"""Inductive moment matching beside its paper's equation, at an exact field, and with one particle as a consistency model."""

import dataclasses
import math
from statistics import NormalDist

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqx_shortcut import Batch, losses, times, weights
from eqx_shortcut.guidance import Guidance
from eqx_shortcut.models import NetworkField
from eqx_shortcut.objectives import InductiveMomentMatching, Networks
from eqx_shortcut.types import Draws, Regression
from exact import gaussian_field, perturbed
from papers import NULL, SIZE, N, field_of, given, parameters

pytestmark = pytest.mark.usefixtures("x64")
PARTICLES, HALVINGS = 3, 9
T, D = np.array([0.05, 0.3, 0.55, 0.8]), np.array([0.9, 0.6, 0.001, 0.2])
"""Of four groups; the third's step is shorter than the gap."""
EVERYWHERE = np.linspace(0, 1, 41)


def paper(field, target, rows, halvings: int) -> float:
    """The equation in the paper's time, 1 at the noise, by loops over groups and pairs of particles."""
    total, groups = 0.0, len(rows.data) // PARTICLES

    def reached(network, i, start, end, x):
        """`f_{end, start}(x)`."""
        answer = network(jnp.asarray(x)[None], jnp.array([1 - start]), jnp.array([start - end]), rows.cond[i][None])
        return x + (start - end) * np.asarray(answer[0])

    def line(i, at):
        return (1 - at) * np.asarray(rows.data[i]) + at * np.asarray(rows.noise[i])

    for group in range(groups):
        t = 1 - T[group]
        s = t - D[group]
        eta = t / (1 - t) - (160 - 0) / 2**halvings
        r = max(s, eta / (1 + eta))
        those = range(group * PARTICLES, (group + 1) * PARTICLES)
        y = [reached(field, i, t, s, line(i, t)) for i in those]
        z = [reached(target, i, r, s, line(i, r)) for i in those]

        def k(a, b, w=1 / (t - s)):
            return math.exp(-max(w * np.linalg.norm(a - b), 1e-8) / SIZE)

        pairs = [(i, j) for i in range(PARTICLES) for j in range(PARTICLES)]
        discrepancy = sum(k(y[i], y[j]) + k(z[i], z[j]) - 2 * k(y[i], z[j]) for i, j in pairs) / PARTICLES**2
        ratio = 2 * math.log((1 - t) / t)
        bound = 0.5 / (1 + math.exp(ratio - 5)) * 2 / (t * (1 - t)) * (1 - t) / ((1 - t) ** 2 + t**2)
        total += bound * discrepancy / groups
    return total


def of_groups(key, n, dtype):
    return jnp.asarray(T), jnp.asarray(D)


def test_the_loss_is_the_equation_of_the_paper(key):
    rows, field, target = given(1), field_of(parameters(0)), field_of(parameters(1))
    batch, options = Batch(rows.data, rows.cond, rows.noise), {"particles": PARTICLES, "halvings": HALVINGS, "pairs": of_groups}
    found, metrics = losses.inductive_moment_matching(field, batch, key, target=target, **options)
    np.testing.assert_allclose(found, paper(field, target, rows, HALVINGS), rtol=1e-9)
    each, _ = losses.inductive_moment_matching(field, batch, key, target=target, reduction=None, weigh=(), **options)
    assert each.shape == (N,)
    np.testing.assert_allclose(jnp.mean(each), metrics["error"], rtol=1e-12)
    grad = jax.grad(lambda p: losses.inductive_moment_matching(field, batch, key, target=field_of(p), **options)[0])
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(grad(parameters(1))))


def test_no_step_size_and_no_noise_spoil_the_gradient(key):
    """At `d = 0` and at both ends of time."""
    rows, p = given(1), parameters(0)
    pairs = lambda key, n, dtype: (jnp.array([0.0, 0.0, 0.5, 1.0]), jnp.array([1.0, 0.0, 0.0, 0.0]))  # noqa: E731
    options = {"target": field_of(p), "particles": PARTICLES, "pairs": pairs}

    def loss(p):
        return losses.inductive_moment_matching(field_of(p), Batch(rows.data, rows.cond, rows.noise), key, **options)[0]

    grad = jax.grad(loss)(p)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grad)) and np.any(grad["out"])


def test_the_second_time_lies_between_the_ends_of_the_step_and_a_gap_in_noise_over_data_further():
    t, share = (jnp.asarray(a.ravel()) for a in np.meshgrid(EVERYWHERE, EVERYWHERE))
    for halvings in (1, 6, 12):
        r = losses.moment_times(t, (1 - t) * share, halvings=halvings)
        assert (r >= t).all() and (r <= t + (1 - t) * share + 1e-15).all()
        inside = (r > t + 1.1e-4) & (r < t + (1 - t) * share - 1e-12)
        before, after = (1 - t[inside]) / t[inside], (1 - r[inside]) / r[inside]
        np.testing.assert_allclose(before - after, 160 / 2**halvings, rtol=1e-9)
        assert inside.any() == (halvings > 1)
    np.testing.assert_allclose(losses.moment_times(jnp.zeros(2), jnp.array([1.0, 1e-5])), [1e-4, 1e-5])


MEAN, SPREAD, QUANTILES = 0.7, 0.4, 16


def whole_distribution(t: float, d: float, halvings: int):
    """Lines of all quantiles of noise and data, as one group of particles, and their second time's share of the step."""
    normal = np.array([NormalDist().inv_cdf((i + 0.5) / QUANTILES) for i in range(QUANTILES)])
    noise, data = (jnp.asarray(a.reshape(-1, 1)) for a in np.meshgrid(normal, MEAN + SPREAD * normal))
    draws = Draws(data, noise, jnp.full(len(data), t), jnp.full(len(data), d))
    share = (losses.moment_times(draws.t, draws.d, halvings=halvings) - t) / d
    return losses.velocity_target(gaussian_field(MEAN, SPREAD), draws), share


@pytest.mark.parametrize("halvings", [3, 6])
def test_at_the_exact_field_the_gradient_vanishes_over_all_particles(halvings):
    """Also where the second time is far off: the sets agree, though no line agrees with itself."""
    exact = gaussian_field(MEAN, SPREAD)
    lines, share = whole_distribution(0.2, 0.7, halvings)

    def error(p, field):
        average = losses.alpha_flow_target(field, lines, share)
        return jnp.mean(losses.moment_error(perturbed(field)(p), average, particles=len(lines.t)))

    (value, grad), (wrong, pull) = (jax.value_and_grad(error)(jnp.array([p, p, 0.0]), exact) for p in (0.0, 0.2))
    by_lines = float(jnp.mean(losses.regress(exact, losses.alpha_flow_target(exact, lines, share))))
    assert value < 0.01 * wrong and np.abs(grad).max() < 0.03 * np.abs(pull).max() and by_lines > 0.005


def test_one_particle_is_the_error_of_consistency_training_under_a_kernel(key):
    rows = given(1, steps_to_data=True)
    field, target = field_of(parameters(0)), field_of(parameters(1))
    start, gap = jnp.full(N, 0.3), float(losses.moment_times(jnp.array([0.3]), jnp.array([0.7]), halvings=HALVINGS)[0]) - 0.3
    draws = Draws(rows.data, rows.noise, start, 1 - start, rows.cond)
    squared = losses.regress(field, losses.consistency_training_target(target, draws, gap=gap, floor=0))
    found, _ = losses.inductive_moment_matching(
        field,
        Batch(rows.data, rows.cond, rows.noise),
        key,
        target=target,
        particles=1,
        halvings=HALVINGS,
        pairs=lambda key, n, dtype: (draws.t, draws.d),
        weigh=(),
        reduction=None,
    )
    np.testing.assert_allclose(found, 2 * (1 - np.exp(-np.sqrt(squared / SIZE))), rtol=1e-6)


@pytest.mark.parametrize(("labels", "told"), [("00011011", False), ("00110011", True)], ids=["at random", "of one class"])
def test_pairs_of_different_rows_tell_classes_apart_if_they_are_of_one(key, labels, told):
    """Of two particles with all combinations of labels, a field that leads to the other class's end is as good as the exact."""
    labels = jnp.asarray([int(label) for label in labels])
    end = lambda labels: jnp.where(labels == 0, -2.0, 2.0)[:, None]  # noqa: E731

    def leading(sign):
        return lambda x, t, d, cond: (sign * end(cond) - x) / (1 - t)[:, None]

    def of_different_rows(sign):
        pairs = lambda key, n, dtype: (jnp.full(n, 0.3), jnp.full(n, 0.7))  # noqa: E731
        both, itself = (
            losses.inductive_moment_matching(
                leading(sign), Batch(end(labels), labels), key, target=leading(1), particles=n, pairs=pairs, weigh=()
            )[0]
            for n in (2, 1)
        )
        return both - itself / 2

    np.testing.assert_allclose(of_different_rows(1), 0, atol=1e-12)
    assert (float(of_different_rows(-1)) > 0.5) == told and abs(float(of_different_rows(-1))) < (2 if told else 1e-12)


def test_units_of_data_and_noise_cancel(key):
    field = lambda x, t, d, cond: 0.3 * x  # noqa: E731
    x = jax.random.normal(key, (8, SIZE))
    one, other = (
        losses.inductive_moment_matching(field, Batch(c * x, noise_scale=c), key, target=field)[0] for c in (1.0, 3.0)
    )
    np.testing.assert_allclose(one, other, rtol=1e-9)


def test_the_weight_is_the_slope_of_the_bound_of_the_likelihood():
    t = jnp.array([0.0, 0.01, 0.3, 0.9, 1.0])
    rows, inner = Regression(t[:, None], t, t, None, t[:, None]), np.asarray(t[1:-1])
    for shift, power in ((5.0, 1.0), (4.0, 2.0)):
        found = weights.sigmoid(jnp.full(5, 2.0), rows, shift=shift, power=power)
        slope, ratio = 2 / inner + 2 / (1 - inner), 2 * np.log(inner / (1 - inner))
        expected = slope / (1 + np.exp(ratio - shift)) * inner**power / (inner**2 + (1 - inner) ** 2)
        np.testing.assert_allclose(found[1:-1], expected, rtol=1e-12)
        np.testing.assert_allclose(found[jnp.array([0, 4])], [2.0 if power == 1 else 0.0, 0.0])


class Toy(eqx.Module):
    """A network of one example; with a key it adds noise, as dropout would."""

    weight: jax.Array

    def __call__(self, x, t, d, cond, *, key=None):
        noise = 0.0 if key is None else jax.random.normal(key, x.shape, x.dtype)
        return self.weight * x + t - d + cond.astype(x.dtype) / 10 + noise


def test_the_objective_is_its_loss_and_its_target_the_network_under_the_same_mask(key):
    objective = InductiveMomentMatching(particles=2, halvings=5, to_data=0.5, label_dropout=0.5)
    networks, rows = Networks(Toy(jnp.float64(0.5)), Toy(jnp.float64(-0.7)), null=jnp.int32(NULL)), given(1)
    batch, (k_draws, k_mask) = Batch(rows.data, rows.cond), jax.random.split(key)
    field = NetworkField(networks.online, k_mask)
    pairs, guidance = times.to_end(times.uniform_steps, 0.5), Guidance(jnp.int32(NULL), 0.5)
    options = {"target": field, "particles": 2, "halvings": 5, "pairs": pairs, "guidance": guidance}
    expected, _ = losses.inductive_moment_matching(field, batch, k_draws, **options)
    np.testing.assert_allclose(objective(networks, batch, key, jnp.asarray(0.5))[0], expected, rtol=1e-9)
    plain = dataclasses.replace(objective, to_data=0.0)
    assert float(plain(networks, batch, key, jnp.asarray(0.5))[0]) != float(expected)
    assert objective.continuous and objective.velocity_step is None and objective.guides(1) and not objective.stages
    objective.check(N)
    with pytest.raises(ValueError, match=r"batch 13 is not a multiple of particles=2: use a batch of 12 or 14"):
        objective.check(13)
    assert objective.sets is None
    of_classes = dataclasses.replace(objective, groups=3, particles=4)
    of_classes.check(24)
    assert of_classes.sets == 3
    with pytest.raises(ValueError, match=r"batch 6 is not a multiple of particles=4"):
        of_classes.check(18)  # a set of particles would be of two classes
    with pytest.raises(ValueError, match=r"batch 12 is not a multiple of particles=5"):
        losses.inductive_moment_matching(field, batch, key, target=field, particles=5)
