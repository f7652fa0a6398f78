import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

import flat
from eqx_shortcut import Batch, losses, times
from eqx_shortcut.guidance import Guidance
from eqx_shortcut.rows import merge_rows
from plain import NULL, PARAMETERS, SHAPES, SHAPES_AND_KINDS, TEACHER, N, Recorded, batch_of, field_of

STEPS, EVERY = 8, 4


def shortcut(batch, key, field=None, target=None, **options):
    options = {"steps": STEPS, "bootstrap_every": EVERY, **options}
    return flat.shortcut(field or field_of(PARAMETERS), batch, key, target=target or field_of(TEACHER), **options)


OPTIONS = [
    {},
    {"guidance": 3.0, "null": NULL},
    {"guidance": 0.0, "null": NULL, "dt_bias": True, "clip": None},
    {"guidance": 2.0, "null": NULL, "guide_all": True},
    {"dropout": 0.5, "null": NULL, "clip": 0.5, "floor": 0.1},
]


@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "guided", "bias", "all", "dropout"])
def test_loss_is_its_builders_row_by_row(key, options):
    batch = batch_of(key)
    everywhere = options.get("guide_all", False)
    guidance = Guidance(options.get("null"), options.get("dropout", 0.0), options.get("guidance", 1.0), all_steps=everywhere)
    drawing = {"guidance": guidance, "dt_bias": options.get("dt_bias", False)}
    groups = times.level_groups(N // EVERY, STEPS) if "guidance" in options and not everywhere else 1
    drawing["groups"] = groups
    first, rest = losses.shortcut_draws(batch, key, steps=STEPS, bootstrap_every=EVERY, **drawing)
    building = {name: options[name] for name in ("clip", "floor") if name in options}
    guided_rows = None if everywhere else times.finest_rows(N // EVERY, STEPS, bias=options.get("dt_bias", False))
    bootstrap = losses.bootstrap_target(
        field_of(TEACHER), first, guidance=guidance, guided_rows=guided_rows, groups=groups, **building
    )
    flow = losses.flow_target(rest, floor=options.get("floor", 1e-5))
    errors = [losses.regress(field_of(PARAMETERS), part) for part in (bootstrap, flow)]
    expected = merge_rows(errors[0], errors[1], EVERY)

    found, metrics = shortcut(batch, key, reduction=None, **options)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    loss, _ = shortcut(batch, key, **options)
    np.testing.assert_allclose([loss, metrics["loss"]], jnp.mean(expected), rtol=1e-6)
    np.testing.assert_allclose(metrics["loss_bootstrap"], jnp.mean(errors[0]), rtol=1e-6)
    np.testing.assert_allclose(metrics["loss_flow"], jnp.mean(errors[1]), rtol=1e-6)
    for name, u in {"velocity": flow.u, "velocity_bootstrap": bootstrap.u}.items():
        np.testing.assert_allclose(metrics[name], jnp.sqrt(jnp.mean(u**2)), rtol=1e-6)


@pytest.mark.parametrize(("shape", "kind"), SHAPES_AND_KINDS)
def test_any_rank_and_condition_differentiate(key, shape, kind):
    """d/da mean |a x_t + ... - u|^2 = 2 mean (error x_t), with what the field was asked."""
    batch = batch_of(key, shape, kind)
    grad = jax.grad(lambda p: shortcut(batch, key, field_of(p))[0])(PARAMETERS)
    recorded = Recorded()
    loss, _ = shortcut(batch, key, recorded)
    x = recorded.asked[0][0]
    assert x.shape == batch.x.shape
    bumped = {**PARAMETERS, "a": PARAMETERS["a"] + 1}
    # The loss is quadratic in a: f(a + 1) - f(a) = f'(a) + mean x^2.
    difference = shortcut(batch, key, field_of(bumped))[0] - loss
    np.testing.assert_allclose(grad["a"] + jnp.mean(x**2), difference, rtol=1e-4)


def test_target_gets_no_gradient(key):
    batch = batch_of(key)
    grad = jax.grad(lambda p: shortcut(batch, key, target=field_of(p))[0])(TEACHER)
    assert all(float(g) == 0 for g in jax.tree.leaves(grad))
    itself = jax.grad(lambda p: shortcut(batch, key, field_of(p), field_of(p))[0])(PARAMETERS)
    frozen = jax.grad(lambda p: shortcut(batch, key, field_of(p), field_of(PARAMETERS))[0])(PARAMETERS)
    np.testing.assert_allclose([itself["a"], itself["b"]], [frozen["a"], frozen["b"]], rtol=1e-6)
    assert float(abs(frozen["a"])) > 0.01


def test_target_is_required(key):
    with pytest.raises(TypeError, match="target"):
        flat.shortcut(field_of(PARAMETERS), batch_of(key), key)  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize("shape", SHAPES)
def test_without_reduction_one_value_a_row(key, shape):
    batch = batch_of(key, shape, "none")
    values, _ = shortcut(batch, key, reduction=None)
    assert values.shape == (N,)
    np.testing.assert_allclose(jnp.mean(values), shortcut(batch, key)[0], rtol=1e-6)


def test_weight_scales_rows_by_their_time_and_step(key):
    recorded = Recorded()
    plain, _ = shortcut(batch_of(key), key, recorded, reduction=None)
    ((_, t, d, _),) = recorded.asked
    found, _ = shortcut(batch_of(key), key, reduction=None, weight=lambda t, d: 1 + t + 10 * d)
    np.testing.assert_allclose(found, plain * (1 + t + 10 * d), rtol=1e-6)


def test_every_row_is_used_once_and_keeps_its_place(key):
    recorded = Recorded()
    noise = jnp.arange(3.0 * N).reshape(N, 3)
    batch = Batch(batch_of(key).x, jnp.arange(N), noise)
    shortcut(batch, key, recorded)
    ((x, t, _, cond),) = recorded.asked
    np.testing.assert_array_equal(cond, np.arange(N))
    s = np.asarray(t)[:, None]
    np.testing.assert_allclose(x, (1 - (1 - 1e-5) * s) * noise + s * batch.x, rtol=1e-5)


def test_steps_are_strata_on_bootstrap_rows_and_the_finest_elsewhere(key):
    recorded = Recorded()
    shortcut(batch_of(key), key, recorded)
    ((_, t, d, _),) = recorded.asked
    first = np.arange(N) % EVERY == 0
    np.testing.assert_array_equal(d[first], 0.5 ** times.dyadic_levels(N // EVERY, STEPS))
    np.testing.assert_array_equal(d[~first], np.full(N - N // EVERY, 1 / STEPS))
    np.testing.assert_array_equal(t / d, np.round(t / d))
    assert np.all(t + d <= 1)


def test_labels_drop_on_flow_rows_only(key):
    recorded = Recorded()
    shortcut(batch_of(key), key, recorded, null=NULL, dropout=1.0)
    ((_, _, _, cond),) = recorded.asked
    np.testing.assert_array_equal(cond, np.where(np.arange(N) % EVERY == 0, np.arange(N), 99))


def test_guidance_reaches_the_finest_bootstrap_rows_only(key):
    n = times.finest_rows(N // EVERY, STEPS)
    assert 0 < n < N // EVERY
    for groups in (1, times.level_groups(N // EVERY, STEPS)):
        first, _ = losses.shortcut_draws(batch_of(key), key, steps=STEPS, bootstrap_every=EVERY, groups=groups)
        target = functools.partial(losses.bootstrap_target, field_of(TEACHER), first, clip=None)
        plain, guided = (target(guidance=Guidance(NULL, scale=g), guided_rows=n, groups=groups).u for g in (1, 3))
        finest = np.asarray(first.d == np.min(first.d))
        assert finest.sum() == n
        assert np.all(np.abs(plain - guided)[finest] > 0.1)
        np.testing.assert_allclose(guided[~finest], plain[~finest], rtol=1e-6)


def test_targets_are_clipped_unless_told_otherwise(key):
    batch, far = batch_of(key), lambda x, t, d, cond: jnp.full_like(x, -50.0)
    first, _ = losses.shortcut_draws(batch, key, steps=STEPS, bootstrap_every=EVERY)
    for clip, expected in ((4.0, -4.0), (7, -7.0), (None, -50.0)):
        np.testing.assert_array_equal(losses.bootstrap_target(far, first, clip=clip).u, np.full((N // EVERY, 3), expected))


def test_noise_differs_between_all_rows(key):
    first, rest = losses.shortcut_draws(Batch(jnp.zeros((N, 512))), key, steps=STEPS, bootstrap_every=EVERY)
    noise = np.concatenate([first.noise, rest.noise])
    np.testing.assert_allclose(noise @ noise.T / 512, np.eye(N), atol=6 / np.sqrt(512))


def test_pairs_keep_their_noise(key):
    batch = Batch(batch_of(key).x, None, noise=jnp.arange(3.0 * N).reshape(N, 3))
    first, rest = losses.shortcut_draws(batch, key, steps=STEPS, bootstrap_every=EVERY)
    np.testing.assert_array_equal(merge_rows(first.noise, rest.noise, EVERY), batch.noise)


def test_an_int_serves_where_a_float_is_asked_for(key):
    ints, _ = shortcut(batch_of(key), key, guidance=2, null=NULL, clip=4, floor=0, dropout=0)
    floats, _ = shortcut(batch_of(key), key, guidance=2.0, null=NULL, clip=4.0, floor=0.0, dropout=0.0)
    assert float(ints) == float(floats)


@pytest.mark.parametrize(
    ("n", "options", "message"),
    [
        (9, {"steps": 2, "bootstrap_every": 8}, r"batch 9 is not a multiple of bootstrap_every=8: use a batch of 8 or 16, or "),
        (24, {"steps": 100}, r"steps=100 is not a power of two: .*use 64 or 128"),
        (24, {"bootstrap_every": 1}, r"bootstrap_every=1 leaves no row for flow matching: use 2 or more"),
        (24, {"bootstrap_every": 0}, r"bootstrap_every=0 leaves no row for flow matching: use 2 or more"),
        (32, {"steps": 128, "bootstrap_every": 8}, r"batch 32 .*4 bootstrap rows for the 7 step sizes.*at least 56"),
    ],
    ids=["indivisible", "steps", "every", "zero", "strata"],
)
def test_what_cannot_be_laid_out_is_refused_with_the_remedy(key, n, options, message):
    with pytest.raises(ValueError, match=message):
        shortcut(Batch(jnp.zeros((n, 3))), key, **options)


def test_smallest_batch_that_holds_every_step_size(key):
    losses.check_strata(56, 128, 8)
    with pytest.raises(ValueError):
        losses.check_strata(55, 128, 8)
    first, _ = losses.shortcut_draws(Batch(jnp.zeros((56, 1))), key, steps=128, bootstrap_every=8)
    np.testing.assert_array_equal(first.d, 0.5 ** np.arange(6, -1, -1))


def test_guidance_without_null_is_refused(key):
    with pytest.raises(ValueError, match=r"guidance=3.0 needs `null`"):
        shortcut(batch_of(key), key, guidance=3.0)


def test_a_network_of_another_shape_is_refused(key):
    with pytest.raises(TypeCheckError):
        shortcut(batch_of(key), key, lambda x, t, d, cond: x[:, :1])


def test_equinox_modules_are_fields(key):
    linear = eqx.nn.Linear(3, 3, key=key)

    def loss(network):
        field = lambda x, t, d, cond: jax.vmap(network)(x)  # noqa: E731
        return shortcut(batch_of(key), key, field, field)[0]

    assert float(jnp.abs(eqx.filter_grad(loss)(linear).weight).max()) > 0
