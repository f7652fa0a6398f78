"""What the losses at continuous step sizes share."""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

import flat
from eqx_shortcut import Batch, losses, sharding, tangents, times
from eqx_shortcut.guidance import Guidance, Guided, Scales
from eqx_shortcut.models.field import NetworkField
from eqx_shortcut.rows import merge_rows, split_rows
from eqx_shortcut.types import Draws
from plain import NULL, PARAMETERS, TEACHER, N, batch_of, field_of

ALPHA = 0.3
HELPERS = {"target": {"a": jnp.float32(0.7), "b": jnp.float32(0.2)}, "teacher": TEACHER}
NEEDS: dict[str, dict[str, Any]] = {
    "mean_flow": {},
    "improved_mean_flow": {},
    "alpha_flow": {"target": True, "alpha": ALPHA},
    "split_mean_flow": {"target": True},
    "so_flow": {"target": True, "alpha": ALPHA},
    "lagrangian": {"target": True},
    "terminal_velocity": {"target": True},
    "eulerian": {},
    "progressive_map": {"target": True},
    "continuous_consistency": {"teacher": True},
}
PAIRED = [name for name in NEEDS if name != "continuous_consistency"]
PAIRS = {
    "lagrangian": times.uniform_pairs,
    "terminal_velocity": times.logit_normal_gaps,
    "eulerian": times.uniform_pairs,
    "progressive_map": times.uniform_pairs,
    "so_flow": times.logit_normal_ends,
}


def loss(name: str, field, batch: Batch, key, helpers=HELPERS, **options):
    """One of the losses; `helpers` are the parameters of its target and teacher."""
    needs = {k: field_of(helpers[k]) if v is True else v for k, v in NEEDS[name].items()}
    return getattr(flat, name)(field, batch, key, **needs | options)


def every(name: str) -> int:
    return 2 if name == "improved_mean_flow" else 4


def draws_of(name: str, batch: Batch, key, **options) -> Draws:
    """The draws of a loss at its default settings."""
    key = jax.random.split(key)[0] if name in ("improved_mean_flow", "split_mean_flow", "progressive_map") else key
    pairs, at = (PAIRS[name], times.uniform) if name in PAIRS else (times.logit_normal_pairs, None)
    at = partial(times.logit_normal, mean=0.2) if name == "so_flow" else at
    own = {name: options.pop(name) for name in ("posterior_every",) if name in options}
    return losses.Intervals(pairs, every(name), at, **own).draw(batch, key, **options)


def errors_of(name: str, draws: Draws, key):
    """Errors of bootstrap rows from the builders."""
    field, target = field_of(PARAMETERS), field_of(HELPERS["target"])
    if name == "lagrangian" or name == "terminal_velocity":
        return losses.lagrangian_error(field, target, draws)[0]
    if name == "eulerian":
        return losses.eulerian_error(field, draws)[0]
    lines = losses.velocity_target(field, draws)
    if "mean_flow" in name and name != "split_mean_flow":
        u, average = losses.mean_flow_target(field, lines, along=field if name == "improved_mean_flow" else None)
        return losses.row_error(u, average.u)
    own = name in ("split_mean_flow", "progressive_map")
    share = jax.random.uniform(jax.random.split(key)[1], draws.t.shape) if name == "split_mean_flow" else ALPHA
    share = 0.5 if name == "progressive_map" else share
    return losses.regress(field, losses.alpha_flow_target(target, lines, share, own_first=own))


@pytest.mark.parametrize("name", PAIRED)
def test_loss_is_its_builders_row_by_row_and_logs_the_raw_error(key, name):
    batch, field = batch_of(key), field_of(PARAMETERS)
    draws = draws_of(name, batch, key)
    first, rest = split_rows(draws, every(name))
    errors = errors_of(name, first, key), losses.regress(field, losses.velocity_target(field, rest))
    unit = ALPHA if name in ("alpha_flow", "so_flow") else 1.0
    share = jnp.where(draws.d > 0, 0.5, 1.0) if name == "so_flow" else 1.0
    expected = merge_rows(errors[0] / unit, errors[1], every(name)) * share * (1 + draws.t + 10 * draws.d)
    options: dict[str, Any] = {"power": 0.0, "weight": lambda t, d: 1 + t + 10 * d}
    found, metrics = loss(name, field, batch, key, reduction=None, **options)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(metrics["error"], jnp.mean(merge_rows(*errors, every(name))), rtol=1e-4)
    np.testing.assert_allclose([metrics["loss_bootstrap"], metrics["loss_flow"]], [jnp.mean(e) for e in errors], rtol=1e-4)
    value, metrics = loss(name, field, batch, key, **options)
    np.testing.assert_allclose([value, metrics["loss"]], jnp.mean(expected), rtol=1e-4)


def test_rows_of_no_step_have_times_of_their_own_or_those_at_which_steps_start(key):
    """Two uniform times in order start at 1/3 on average: a velocity learnt there alone is hardly asked for near the data."""
    batch = Batch(jnp.zeros((4096, 1)))
    starts, own = (losses.Intervals(times.uniform_pairs, 4, at).draw(batch, key) for at in (None, times.uniform))
    (steps, at_starts), (same, at_own) = (split_rows((draws.t, draws.d), 4) for draws in (starts, own))
    np.testing.assert_array_equal(steps, same)
    assert not jnp.any(at_starts[1]) and not jnp.any(at_own[1])
    assert abs(at_starts[0].mean() - 1 / 3) < 0.02 and abs(at_own[0].mean() - 1 / 2) < 0.02
    np.testing.assert_array_equal(starts.noise, own.noise)


def test_continuous_consistency_is_its_builder_row_by_row(key):
    batch, field = batch_of(key), field_of(PARAMETERS)
    draws = losses.whole_way_draws(batch, key, at=partial(times.logit_normal, mean=1.0, std=1.4))
    u, rows, g = losses.continuous_consistency_target(field, draws, teacher=field_of(TEACHER))
    scale = jnp.cos(jnp.arctan2(1 - draws.t, draws.t / 2)) + jnp.sin(jnp.arctan2(1 - draws.t, draws.t / 2)) / 2
    expected = losses.row_error(u, rows.u) / scale**2 * (2 + draws.t)
    run = partial(loss, "continuous_consistency", field, batch, key, weight=lambda t, d: 2 + t)
    np.testing.assert_allclose(run(reduction=None)[0], expected, rtol=1e-4)
    value, metrics = run()
    np.testing.assert_allclose([value, metrics["loss"]], jnp.mean(expected), rtol=1e-4)
    np.testing.assert_allclose(metrics["error"], jnp.mean(g**2), rtol=1e-4)


@pytest.mark.parametrize("name", ["mean_flow", "lagrangian", "continuous_consistency"])
def test_weights_that_adapt_and_weights_that_are_learned(key, name):
    """`L = e / (e + eps/elements)` of the error `e`, then `exp(-w) L + w`, with a gradient for `w`."""
    run = partial(loss, name, field_of(PARAMETERS), batch_of(key), key, reduction=None)
    error = run(power=0.0)[0]
    np.testing.assert_allclose(run(power=1.0, eps=0.3)[0], error / (error + 0.1), rtol=1e-4)
    learned = lambda w: run(power=0.0, log_variance=lambda t, d: jnp.full_like(t, w))[0]  # noqa: E731
    np.testing.assert_allclose(learned(0.4), jnp.exp(-0.4) * error + 0.4, rtol=1e-4)
    slope = jax.grad(lambda w: jnp.mean(learned(w)))(0.4)
    np.testing.assert_allclose(slope, 1 - jnp.exp(-0.4) * jnp.mean(error), rtol=1e-4)


@pytest.mark.parametrize("name", ["alpha_flow", "lagrangian", "continuous_consistency"])
def test_target_and_teacher_get_no_gradient(key, name):
    grad = jax.grad(lambda helpers: loss(name, field_of(PARAMETERS), batch_of(key), key, helpers)[0])(HELPERS)
    assert all(float(g) == 0 for g in jax.tree.leaves(grad))


def test_only_the_value_is_differentiated(key):
    """`d/da mean |a x + ... - target|^2 = 2 mean (error x)`: the network's own velocity and tangent are held fixed."""
    batch, field = batch_of(key), field_of(PARAMETERS)
    lines = losses.velocity_target(field, draws_of("improved_mean_flow", batch, key))
    u, average = losses.mean_flow_target(field, lines, along=field)
    found = jax.grad(lambda p: loss("improved_mean_flow", field_of(p), batch, key, power=0.0)[0])(PARAMETERS)
    np.testing.assert_allclose(found["a"], 2 * jnp.mean((u - average.u) * lines.x), rtol=1e-4)


def test_a_target_that_is_the_network_itself_is_held_fixed(key):
    def run(parameters, held):
        return loss("alpha_flow", field_of(parameters), batch_of(key), key, {"target": held}, power=0.0)[0]

    itself = jax.grad(lambda p: run(p, p))(PARAMETERS)
    frozen = jax.grad(lambda p: run(p, PARAMETERS))(PARAMETERS)
    np.testing.assert_allclose([itself["a"], itself["b"]], [frozen["a"], frozen["b"]], rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "shape", "kind"),
    [
        ("lagrangian", (2, 1, 3), "dict"),
        *(pytest.param(name, (), "none", marks=pytest.mark.slow) for name in NEEDS),
        *(pytest.param(name, (2, 3), "vectors", marks=pytest.mark.slow) for name in NEEDS),
    ],
)
def test_any_rank_and_condition_differentiate(key, name, shape, kind):
    value, grad = jax.jit(jax.value_and_grad(lambda p: loss(name, field_of(p), batch_of(key, shape, kind), key)[0]))(PARAMETERS)
    assert np.isfinite(value) and all(np.isfinite(g) and float(g) != 0 for g in jax.tree.leaves(grad))


# Draws


def test_pairs_keep_their_noise_and_rows_their_place(key):
    noise = jnp.arange(3.0 * N).reshape(N, 3)
    draws = draws_of("mean_flow", Batch(batch_of(key).x, jnp.arange(N), noise), key)
    np.testing.assert_array_equal(draws.noise, noise)
    np.testing.assert_array_equal(draws.cond, np.arange(N))
    np.testing.assert_array_equal(draws.d > 0, np.arange(N) % 4 == 0)
    np.testing.assert_array_equal(losses.whole_way_draws(Batch(noise, None, noise), key, at=times.logit_normal).noise, noise)


def test_conditions_drop_in_rows_of_both_kinds(key):
    dropped = np.asarray(draws_of("mean_flow", batch_of(key), key, guidance=Guidance(NULL, 0.5)).cond == NULL)
    for kind in split_rows(dropped, 4):
        assert 0 < kind.sum() < kind.size


def test_conditions_drop_in_rows_of_no_step_alone_and_as_many_of_all(key):
    batch = Batch(jnp.zeros((4096, 1)), jnp.arange(4096))
    draws = draws_of("mean_flow", batch, key, guidance=Guidance(NULL, 0.3), drop_steps=False)
    steps, rest = split_rows(np.asarray(draws.cond) == NULL, 4)
    assert not steps[1:].any() and abs(rest.sum() / 4096 - 0.3) < 0.03  # the first row's label is NULL


@pytest.mark.parametrize("name", ["mean_flow", "improved_mean_flow"])
@pytest.mark.parametrize("guidance", [None, Guidance(scale=2.0)])
def test_the_labels_of_steps_are_dropped_unless_guidance_is_inside(key, name, guidance):
    seen = []

    def field(x, t, d, cond):
        seen.append((np.asarray(d > 0), np.asarray(cond)))
        return field_of(PARAMETERS)(x, t, d, cond)

    batch = Batch(batch_of(key).x, jnp.full(N, 1))
    losses_of = getattr(flat, name)
    losses_of(field, batch, key, null=NULL, dropout=0.5, guidance=guidance, jvp=tangents.finite_difference(1e-3))
    dropped = [np.any(cond[steps] == NULL) for steps, cond in seen if len(cond) == N // every(name) and steps.any()]
    assert dropped and any(dropped) is (guidance is None)


def test_posterior_rows_are_a_half_of_either_kind(key):
    batch = Batch(batch_of(key).x, jnp.zeros(N, int))
    plain, draws = (jax.jit(partial(draws_of, "mean_flow", posterior_every=every))(batch, key) for every in (None, 2))
    moved = np.any(np.asarray(plain.x != draws.x), axis=1)
    for kind in split_rows(moved, 4):
        assert not np.any(kind[1::2]) and np.sum(kind[::2]) >= kind[::2].size - 1  # the mean may be the row's own data
    np.testing.assert_array_equal(plain.d, draws.d)


@pytest.mark.parametrize("name", ["mean_flow", "improved_mean_flow", "split_mean_flow", "continuous_consistency"])
def test_draws_are_a_function_of_the_key(key, name):
    one, again, other = (float(loss(name, field_of(PARAMETERS), batch_of(key), k)[0]) for k in (key, key, jax.random.key(5)))
    assert one == again != other


# Guidance


def test_guidance_and_dropout_change_the_loss_where_they_apply(key):
    run = partial(loss, field=field_of(PARAMETERS), batch=batch_of(key), key=key, null=NULL, power=0.0)
    for name in ("mean_flow", "lagrangian"):
        plain = run(name)[0]
        assert float(abs(run(name, guidance=Guidance(scale=2.0))[0] - plain)) > 1e-3
        assert float(abs(run(name, dropout=0.5)[0] - plain)) > 1e-3
    plain = run("continuous_consistency")[0]
    assert float(abs(run("continuous_consistency", guidance=2.0)[0] - plain)) > 1e-3


def test_a_network_is_told_its_guidance(key):
    """Conditions hold scales and intervals of each row, and its velocity is guided as they say, but without its label."""
    seen = []

    def field(x, t, d, cond):
        seen.append(cond)
        return field_of(PARAMETERS)(x, t, d, cond.cond) * cond.scale[:, None]

    options: dict[str, Any] = {"guidance": Scales(1, 8, intervals=True), "null": NULL, "dropout": 0.3, "power": 0.0}
    value, _ = flat.improved_mean_flow(field, batch_of(key), key, velocity=field, **options)
    assert np.isfinite(value) and all(isinstance(cond, Guided) for cond in seen)
    with_labels, asked = seen[0].cond[::2], seen[0]
    assert np.all((asked.scale >= 1) & (asked.scale <= 8) & (asked.start <= 0.5) & (asked.stop >= 0.5))
    np.testing.assert_array_equal(asked.scale[::2], asked.scale[1::2])
    assert np.all(asked.cond[1::2] == NULL) and 0 < np.sum(with_labels == NULL) < N


def test_a_head_for_the_velocity_is_trained_beside(key):
    """By flow matching on all rows, and not through the tangent."""
    field, batch = field_of(PARAMETERS), batch_of(key)

    def run(p):
        return flat.improved_mean_flow(field, batch, key, velocity=field_of(p), power=0.0)

    draws = draws_of("improved_mean_flow", batch, key)
    head = losses.regress(
        field_of(TEACHER), losses.velocity_target(field, Draws(draws.x, draws.noise, draws.t, 0 * draws.d, draws.cond))
    )
    np.testing.assert_allclose(run(TEACHER)[1]["loss_velocity"], jnp.mean(head), rtol=1e-4)
    grad = jax.grad(lambda p: run(p)[0])(TEACHER)
    alone = jax.grad(lambda p: run(p)[1]["loss_velocity"])(TEACHER)
    np.testing.assert_allclose(grad["a"], alone["a"], rtol=1e-4)


# Networks


def test_value_and_tangent_have_the_same_dropout_mask(key):
    class Masked(eqx.Module):
        def __call__(self, x, t, d, cond, *, key):
            return jnp.where(jax.random.bernoulli(key, 0.5, x.shape), x, 0)

    draws = losses.whole_way_draws(Batch(jnp.ones((N, 3))), key, at=times.logit_normal)
    field = NetworkField(Masked(), key)
    u, rows = losses.mean_flow_target(field, losses.velocity_target(field, draws))
    tangent = (rows.u - (draws.x - draws.noise)) != 0
    np.testing.assert_array_equal(tangent, u != 0)
    assert 0 < tangent.sum() < 3 * N


@pytest.mark.parametrize("name", NEEDS)
def test_a_network_of_another_shape_is_refused_and_the_axis_named(key, name):
    with pytest.raises(TypeCheckError, match=r"shape=\(3,\)"):
        loss(name, lambda x, t, d, cond: x[:, :1], batch_of(key), key)


def test_a_sharded_batch_sends_nothing():
    layout = sharding.batch_sharding(sharding.make_mesh())
    batch = Batch(jnp.ones((64, 3)), jnp.zeros(64, int))

    def rows(batch):
        options: dict[str, Any] = {"guidance": Guidance(scale=2.0, mix=0.5), "null": NULL, "dropout": 0.1, "reduction": None}
        return flat.mean_flow(field_of(PARAMETERS), batch, jax.random.key(0), **options)[0]

    function = jax.jit(rows, in_shardings=layout, out_shardings=layout)
    text = function.lower(jax.device_put(batch, layout)).compile().as_text() or ""
    assert not [name for name in ("all-gather", "all-to-all", "collective-permute", "all-reduce") if name in text]


@pytest.mark.parametrize("name", sorted({*NEEDS} - {"split_mean_flow", "so_flow", "progressive_map", "alpha_flow"}))
def test_tangents_are_those_of_the_jvp_that_is_given(name, key):
    asked = []

    def jvp(function, primals, tangents):
        asked.append(len(primals))
        return jax.jvp(function, primals, tangents)

    batch = batch_of(key)
    found = loss(name, field_of(PARAMETERS), batch, key, jvp=jvp)[0]
    np.testing.assert_allclose(found, loss(name, field_of(PARAMETERS), batch, key)[0], rtol=1e-6)
    assert asked


# What is refused

REFUSED = [
    ("mean_flow", {"bootstrap_every": 1}, r"bootstrap_every=1 leaves no row for flow matching: use 2 or more"),
    ("lagrangian", {"bootstrap_every": 5}, r"batch 24 is not a multiple of bootstrap_every=5: use a batch of 20 or 25, or "),
    ("eulerian", {"dropout": 0.1}, r"dropout=0.1 needs `null`"),
    ("mean_flow", {"guidance": Guidance(scale=2.0)}, r"guidance needs `null`"),
    ("continuous_consistency", {"guidance": 2.0}, r"guidance=2.0 needs `null`"),
]


@pytest.mark.parametrize(("name", "options", "message"), REFUSED)
def test_what_cannot_be_done_is_refused_with_the_remedy(key, name, options, message):
    with pytest.raises(ValueError, match=message):
        loss(name, field_of(PARAMETERS), batch_of(key), key, **options)


def test_the_posterior_of_stored_pairs_is_refused(key):
    batch = batch_of(key)
    with pytest.raises(ValueError, match=r"posterior_every=2 takes the noise to be independent of the data.*leave it None"):
        flat.mean_flow(field_of(PARAMETERS), Batch(batch.x, None, batch.x), key, posterior_every=2)


@pytest.mark.parametrize("name", [name for name, needs in NEEDS.items() if "target" in needs])
def test_a_target_is_required(key, name):
    with pytest.raises(TypeError, match="target"):
        getattr(flat, name)(field_of(PARAMETERS), batch_of(key), key, **({"alpha": 1.0} if name == "alpha_flow" else {}))
