"""Errors by time and step size, denoising and validation: asked only what training asks, and equal to values by hand."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqx_shortcut import Batch, paths
from eqx_shortcut.evaluate.held_out import (
    Curve,
    all_rows,
    curves,
    denoised,
    fraction,
    squared_errors,
    times_in_turn,
    validation_loss,
)
from eqx_shortcut.models import DataPrediction, NetworkField
from eqx_shortcut.objectives import (
    ConsistencyDistillation,
    ConsistencyTraining,
    Diffusion,
    FlowMatching,
    ImprovedMeanFlow,
    LiveReflow,
    Networks,
    Objective,
    ProgressiveDistillation,
    Shortcut,
    SoFlow,
)
from toy import networks

N = 24


class Exact(eqx.Module):
    """The velocity, or the noise, where all data are one point."""

    data: jax.Array
    noise: bool = eqx.field(static=True)

    def __call__(self, x, t, d, cond, *, key=None):
        if self.noise:
            a, s = paths.variance_preserving(t)
            return (x - a * self.data) / s
        return (self.data - x) / (1 - t)


def batch() -> Batch:
    x = np.random.default_rng(0).standard_normal((N, 3))
    return Batch(jnp.asarray(x, jnp.float32), jnp.arange(N) % 9)


ALL = [
    FlowMatching(steps=8),
    Shortcut(steps=8, bootstrap_every=4),
    Shortcut(steps=8, bootstrap_every=4, guidance=2.0),
    ProgressiveDistillation(steps=8, guidance=2.0),
    ConsistencyDistillation(steps=8),
    ConsistencyTraining(steps=8),
    LiveReflow(steps=8, bootstrap_every=4),
    Diffusion(steps=8),
]
each = pytest.mark.parametrize("objective", ALL, ids=lambda objective: type(objective).__name__)


def trained_at(objective, progress) -> set[tuple[float, float]]:
    """Times and step sizes that the loss asks the network at, over so many batches that none is missing."""
    seen = []

    def field(x, t, d, cond):
        jax.debug.callback(lambda t, d: seen.extend(zip(t.tolist(), d.tolist(), strict=True)), t, d)
        return jnp.zeros_like(x)

    loss = jax.jit(lambda key: objective.loss(field, networks(), batch(), key, progress)[0])
    for i in range(40):
        loss(jax.random.key(i)).block_until_ready()
    jax.effects_barrier()
    return set(seen)


@each
def test_a_network_is_asked_just_where_training_asks_it(objective):
    for progress in (jnp.float32(0.0), jnp.float32(0.4)) if objective.stages > 1 else (jnp.float32(0.4),):
        asked = squared_errors(objective, networks(), batch(), jax.random.key(0), progress)
        pairs = {pair for _, a in asked for pair in zip(np.ravel(a.t).tolist(), np.ravel(a.d).tolist(), strict=True)}
        assert pairs == trained_at(objective, progress)
        assert sum(part.share for _, part in asked) == pytest.approx(1)
        few = squared_errors(objective, networks(), batch(), jax.random.key(0), progress, times=2)
        assert all(len(np.unique(row)) <= 2 for _, part in few for row in part.t)


@pytest.mark.parametrize(("sections", "times"), [(1, 8), (2, 8), (8, 8), (32, 8), (128, 8), (12, 8), (128, 5)])
def test_times_are_on_the_grid_spread_evenly_and_each_has_as_many_rows(sections, times):
    t = np.asarray(times_in_turn(jnp.array(sections), times, 40)) * sections
    places, counts = np.unique(t, return_counts=True)
    np.testing.assert_allclose(places, np.floor(np.arange(min(times, sections)) * sections / min(times, sections)), atol=1e-4)
    assert np.ptp(counts) <= 1 and counts.sum() == 40


GUIDE_ALL = {"guidance": 2.5, "guide_all": True}


def by_hand(objective: Shortcut, guided: tuple[float, ...]) -> dict[float, np.ndarray]:
    """Errors of every row at each step size, in NumPy."""
    given, nets = batch(), networks()
    data, labels = np.asarray(given.x, np.float64), np.asarray(given.cond, np.float64)
    noise = np.asarray(jax.random.normal(jax.random.key(3), given.x.shape), np.float64)

    def answer(network, x, t, d, labels):
        return float(network.weight) * x + (t - d + labels / 10)[:, None]

    def teacher(x, t, half, d):
        u = answer(nets.ema, x, t, half, labels)
        return 9 / 10 + (u - labels[:, None] / 10) + objective.guidance * (labels[:, None] - 9) / 10 if d in guided else u

    found = {}
    for n in (8, 4, 2, 1):
        t, d = (np.arange(N) % n) / n, 1 / n
        x = (1 - (1 - 1e-5) * t[:, None]) * noise + t[:, None] * data
        u = data - (1 - 1e-5) * noise
        if n < 8:
            first = teacher(x, t, d / 2, d)
            middle = np.clip(x + d / 2 * first, -4, 4)
            u = np.clip((first + teacher(middle, t + d / 2, d / 2, d)) / 2, -4, 4)
        found[d] = np.square(answer(nets.online, x, t, d, labels) - u).mean(axis=1)
    return found


@pytest.mark.parametrize(("options", "guided"), [({}, ()), ({"guidance": 2.5}, (1 / 4,)), (GUIDE_ALL, (1 / 4, 1 / 2, 1))])
def test_errors_of_a_shortcut_model_are_those_by_hand(options, guided):
    objective = Shortcut(steps=8, bootstrap_every=4, **options)
    asked = dict(squared_errors(objective, networks(), batch(), jax.random.key(3), jnp.float32(0.5)))
    assert list(asked) == ["flow", "bootstrap"]
    found = {float(d[0]): error for part in asked.values() for d, error in zip(part.d, part.error, strict=True)}
    expected = by_hand(objective, guided)
    assert found.keys() == expected.keys()
    for d, error in expected.items():
        np.testing.assert_allclose(found[d], error, rtol=2e-4)


def test_curves_are_means_by_time_over_all_batches_from_the_finest_step():
    asked = [squared_errors(Shortcut(steps=4), networks(), batch(), jax.random.key(i), jnp.float32(0.5)) for i in (0, 1)]
    found = curves(asked)
    assert [(name, [curve.d for curve in levels]) for name, levels in found.items()] == [
        ("flow", ["1/4"]),
        ("bootstrap", ["1/2", "1"]),
    ]
    half = found["bootstrap"][0]
    np.testing.assert_array_equal(half.t, [0, 0.5])
    rows = np.concatenate([np.asarray(part[1][1].error[1]) for part in asked])
    np.testing.assert_allclose(half.error, [rows[::2].mean(), rows[1::2].mean()], rtol=1e-6)
    mixed = all_rows(found, {"flow": 0.75, "bootstrap": 0.25})
    assert [curve.d for curve in mixed] == ["1/2", "1"]
    np.testing.assert_allclose(mixed[0].error, 0.75 * found["flow"][0].error[::2] + 0.25 * half.error, rtol=1e-12)


def test_a_curve_whose_step_is_the_whole_way_says_so():
    (asked,) = squared_errors(ConsistencyDistillation(steps=8), networks(), batch(), jax.random.key(0), jnp.float32(0))
    (curve,) = curves([[asked]])["consistency"]
    assert curve.d == "1 - t" and isinstance(curve, Curve) and len(curve.t) == 8


@pytest.mark.parametrize(("value", "text"), [(1 / 128, "1/128"), (0.0, "0"), (1.0, "1"), (0.875, "7/8")])
def test_fractions_are_those_of_the_grid(value, text):
    assert fraction(value) == text


@each
def test_an_exact_network_finds_the_image_from_every_time(objective):
    image = jnp.array([0.5, -1.0, 0.25])
    network = Exact(image, isinstance(objective, Diffusion))
    same = Batch(jnp.tile(image, (4, 1)), jnp.arange(4))
    found = denoised(objective, Networks(network, network, network, null=9), same, jax.random.key(0), jnp.float32(0.4))
    assert [name for name, _ in found] == [term.name for term in objective.terms(networks(), jnp.float32(0.4))]
    for _, part in found:
        np.testing.assert_allclose(part.data, jnp.broadcast_to(image, part.data.shape), atol=2e-3)
        noised = np.asarray(part.noised) - np.asarray(image)
        assert np.abs(noised[np.asarray(part.t) == 0]).mean() > 0.3
        assert np.all(np.asarray(part.t) < 1) and np.all(np.asarray(part.d) > 0)


def test_a_shortcut_model_denoises_where_its_step_ends_and_from_noise():
    found = dict(denoised(Shortcut(steps=8), networks(), batch(), jax.random.key(0), jnp.float32(0.5), times=4))
    np.testing.assert_array_equal(found["flow"].t, [0, 1 / 4, 1 / 2, 3 / 4])
    np.testing.assert_array_equal(found["flow"].d, [1 / 8] * 4)
    np.testing.assert_array_equal(found["bootstrap"].t, [0, 1 / 2, 3 / 4, 0, 0, 0])
    np.testing.assert_array_equal(found["bootstrap"].d, [1, 1 / 2, 1 / 4] * 2)
    part = found["bootstrap"]
    told = NetworkField(networks().online)(part.noised[5], jnp.zeros(N), jnp.full(N, 1 / 4), batch().cond)
    np.testing.assert_allclose(part.data[5], part.noised[5] + told, rtol=1e-5)


def test_an_objective_that_does_not_say_its_terms_has_no_errors():
    class Bare(Objective):
        def __call__(self, networks, batch, key, progress):
            return jnp.zeros(()), {}

        def sampling(self, network):
            return NetworkField(network)

    for function in (squared_errors, denoised):
        assert function(Bare(), networks(), batch(), jax.random.key(0), jnp.float32(0)) == []


@pytest.mark.parametrize("objective", [Shortcut(steps=8, bootstrap_every=4), ImprovedMeanFlow(power=0.0, velocity_head=True)])
def test_the_validation_loss_is_the_loss_without_dropout(key, objective):
    found = validation_loss(objective, networks(), batch(), key, jnp.float32(0.5))
    draws, _ = jax.random.split(key)
    _, expected = objective.loss(NetworkField(networks().online), networks(), batch(), draws, jnp.float32(0.5))
    assert set(found) == {name for name in expected if name.startswith("loss")}
    for name, value in found.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-6)
    noisy = objective(networks(), batch(), key, jnp.float32(0.5))[0]
    assert abs(float(noisy) - float(found["loss"])) > 0.1


class Rounding(eqx.Module):
    """A network that answers to 8 bits, as one in bfloat16 does, unless it is asked in float32."""

    coarse: bool = eqx.field(static=True, default=True)

    @property
    def in_float32(self):
        return Rounding(coarse=False)

    def __call__(self, x, t, d, cond, *, key=None):
        u = jnp.sin(x + t - d)
        return u.astype(jnp.bfloat16).astype(x.dtype) if self.coarse else u


@pytest.mark.parametrize("wrapped", [lambda network: network, DataPrediction])
def test_a_network_is_asked_in_float32_where_training_asks_it_so(key, wrapped):
    """A residual that is divided by a small alpha is else all rounding."""
    networks = (Networks(wrapped(network), wrapped(network), null=9) for network in (Rounding(), Rounding().in_float32))
    losses = (validation_loss(SoFlow(), both, batch(), key, jnp.float32(0.999))["loss_bootstrap"] for both in networks)
    np.testing.assert_allclose(*losses, rtol=1e-6)
