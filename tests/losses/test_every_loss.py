"""What the losses of distillation, consistency, live reflow and diffusion share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

import flat
from eqx_shortcut import Batch, losses
from eqx_shortcut.guidance import Guidance
from eqx_shortcut.rows import expand, merge_rows
from plain import NULL, PARAMETERS, SHAPES_AND_KINDS, TEACHER, N, Recorded, batch_of, field_of

STEPS, LEVEL, EVERY, ROLLOUT = 8, 2, 4, 3
TARGET = {"target": {"a": jnp.float32(0.7), "b": jnp.float32(0.2)}, "teacher": TEACHER}


def loss(name: str, field, batch: Batch, key, helpers=TARGET, **options):
    """One of the losses; `helpers` are the parameters of its target and teacher."""
    target, teacher = field_of(helpers["target"]), field_of(helpers["teacher"])
    settings = {
        "progressive_distillation": {"teacher": teacher, "level": LEVEL},
        "consistency_distillation": {"target": target, "teacher": teacher, "steps": STEPS},
        "consistency_training": {"target": target, "level": LEVEL},
        "live_reflow": {"target": target, "steps": STEPS, "bootstrap_every": EVERY, "rollout": ROLLOUT},
        "diffusion": {"steps": STEPS},
    }
    return getattr(flat, name)(field, batch, key, **settings[name] | options)


def regression(name: str, batch: Batch, key, **options):
    """The rows of a loss from its builders."""
    target, teacher = field_of(TARGET["target"]), field_of(TARGET["teacher"])
    null, dropout, scale = (options.pop(name, usual) for name, usual in (("null", None), ("dropout", 0.0), ("guidance", 1.0)))
    guidance = Guidance(null, dropout, scale)
    if name == "progressive_distillation":
        return losses.progressive_target(guidance.of(teacher), losses.level_draws(batch, key, level=LEVEL), **options)
    if name == "consistency_distillation":
        draws = losses.consistency_draws(batch, key, level=3)
        return losses.consistency_distillation_target(target, teacher, draws, gap=1 / STEPS, **options)
    if name == "consistency_training":
        draws = losses.consistency_draws(batch, key, level=LEVEL)
        return losses.consistency_training_target(target, draws, gap=1 / 4, **options)
    if name == "diffusion":
        return losses.diffusion_target(losses.flow_draws(batch, key, steps=STEPS, guidance=guidance))
    first, rest = losses.live_reflow_draws(batch, key, steps=STEPS, bootstrap_every=EVERY, guidance=guidance)
    reflow = losses.live_reflow_target(target, first, steps=STEPS, rollout=ROLLOUT, guidance=guidance, **options)
    floor = {k: v for k, v in options.items() if k == "floor"}
    return merge_rows(reflow, losses.flow_target(rest, **floor), EVERY)


NAMES = ["progressive_distillation", "consistency_distillation", "consistency_training", "live_reflow", "diffusion"]
OPTIONS = [
    *((name, {}) for name in NAMES),
    ("progressive_distillation", {"guidance": 3.0, "null": NULL, "clip": 0.5, "floor": 0.1}),
    ("progressive_distillation", {"clip": None}),
    ("consistency_distillation", {"clip": 0.5, "floor": 0.1}),
    ("consistency_training", {"floor": 0.1}),
    ("live_reflow", {"guidance": 3.0, "null": NULL, "floor": 0.1}),
    ("live_reflow", {"dropout": 0.5, "null": NULL}),
    ("diffusion", {"dropout": 0.5, "null": NULL}),
]


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_loss_is_its_builders_row_by_row(key, name, options):
    batch = batch_of(key)
    built = regression(name, batch, key, **options)
    expected = np.mean(np.square(field_of(PARAMETERS)(built.x, built.t, built.d, built.cond) - built.u), axis=1)
    found, _ = loss(name, field_of(PARAMETERS), batch, key, reduction=None, **options)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    value, metrics = loss(name, field_of(PARAMETERS), batch, key, **options)
    np.testing.assert_allclose([value, metrics["loss"]], np.mean(expected), rtol=1e-5)
    flow = np.arange(N) % EVERY > 0 if name == "live_reflow" else np.full(N, True)
    np.testing.assert_allclose(metrics["velocity"], np.sqrt(np.mean(built.u[flow] ** 2)), rtol=1e-5)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "consistency_training"])
def test_dropout_and_guidance_change_the_loss_where_they_apply(key, name):
    taken = {"guidance": 3.0} if "distillation" in name else {"dropout": 0.5}
    plain, changed = (loss(name, field_of(PARAMETERS), batch_of(key), key, null=NULL, **o)[0] for o in ({}, taken))
    assert float(abs(changed - plain)) > 1e-3


@pytest.mark.parametrize(("shape", "kind"), SHAPES_AND_KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_any_rank_and_condition_differentiate(key, name, shape, kind):
    """d/da mean |a x_t + ... - u|^2 = 2 mean (error x_t)."""
    batch = batch_of(key, shape, kind)
    built = regression(name, batch, key)
    error = field_of(PARAMETERS)(built.x, built.t, built.d, built.cond) - built.u
    grad = jax.grad(lambda p: loss(name, field_of(p), batch, key)[0])(PARAMETERS)
    assert built.x.shape == batch.x.shape
    np.testing.assert_allclose(grad["a"], 2 * jnp.mean(error * built.x), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(grad["b"], 2 * jnp.mean(error * expand(built.t - built.d, error)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NAMES[:4])
def test_target_and_teacher_get_no_gradient(key, name):
    """Neither as networks of their own, nor where they are the network that is trained."""
    batch = batch_of(key)
    grad = jax.grad(lambda helpers: loss(name, field_of(PARAMETERS), batch, key, helpers)[0])(TARGET)
    assert all(float(g) == 0 for g in jax.tree.leaves(grad))
    copy = {"target": PARAMETERS, "teacher": PARAMETERS}
    itself = jax.grad(lambda p: loss(name, field_of(p), batch, key, {"target": p, "teacher": p})[0])(PARAMETERS)
    frozen = jax.grad(lambda p: loss(name, field_of(p), batch, key, copy)[0])(PARAMETERS)
    np.testing.assert_allclose([itself["a"], itself["b"]], [frozen["a"], frozen["b"]], rtol=1e-6)
    assert float(abs(frozen["a"])) > 0.01


@pytest.mark.parametrize("name", NAMES)
def test_weight_scales_rows_by_their_time_and_step(key, name):
    recorded = Recorded()
    plain, _ = loss(name, recorded, batch_of(key), key, reduction=None)
    ((_, t, d, _),) = recorded.asked
    found, _ = loss(name, recorded, batch_of(key), key, reduction=None, weight=lambda t, d: 1 + t + 10 * d)
    np.testing.assert_allclose(found, plain * (1 + t + 10 * d), rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_pairs_keep_their_noise_and_rows_their_place(key, name):
    noise, recorded = jnp.arange(3.0 * N).reshape(N, 3), Recorded()
    batch = Batch(batch_of(key).x, jnp.arange(N), noise)
    loss(name, recorded, batch, key)
    ((x, t, _, cond),) = recorded.asked
    np.testing.assert_array_equal(cond, np.arange(N))
    at_noise = np.asarray(t) == 0
    assert at_noise.any()
    if name != "diffusion":
        np.testing.assert_array_equal(x[at_noise], noise[at_noise])
    else:
        np.testing.assert_allclose(x[at_noise], noise[at_noise], rtol=1e-2, atol=0.05)


@pytest.mark.parametrize("name", NAMES)
def test_draws_are_a_function_of_the_key(key, name):
    one, again, other = (float(loss(name, field_of(PARAMETERS), batch_of(key), k)[0]) for k in (key, key, jax.random.key(5)))
    assert one == again != other


@pytest.mark.parametrize("name", NAMES)
def test_a_network_of_another_shape_is_refused_and_the_axis_named(key, name):
    with pytest.raises(TypeCheckError, match=r"shape=\(3,\)"):
        loss(name, lambda x, t, d, cond: x[:, :1], batch_of(key), key)


@pytest.mark.parametrize("name", ["progressive_distillation", "consistency_distillation", "live_reflow"])
def test_a_teacher_of_another_shape_is_refused(key, name):
    wrong = lambda x, t, d, cond: jnp.zeros((x.shape[0], 1))  # noqa: E731
    with pytest.raises(TypeCheckError, match=r"shape=\(3,\)"):
        loss(name, field_of(PARAMETERS), batch_of(key), key, **{"target" if name == "live_reflow" else "teacher": wrong})


REFUSED = [
    ("progressive_distillation", {"guidance": 3.0}, r"guidance=3.0 needs `null`"),
    ("progressive_distillation", {"guidance": jnp.float32(3)}, r"guidance=.* needs `null`"),
    ("consistency_distillation", {"guidance": 3.0}, r"guidance=3.0 needs `null`"),
    ("consistency_distillation", {"steps": 100}, r"steps=100 is not a power of two: .*use 64 or 128"),
    ("live_reflow", {"guidance": 3.0}, r"guidance=3.0 needs `null`"),
    ("live_reflow", {"dropout": 0.1}, r"dropout=0.1 needs `null`"),
    ("live_reflow", {"bootstrap_every": 1}, r"bootstrap_every=1 leaves no row for flow matching: use 2 or more"),
    ("live_reflow", {"bootstrap_every": 5}, r"batch 24 is not a multiple of bootstrap_every=5: use a batch of 20 or 25, or "),
    ("diffusion", {"dropout": 0.1}, r"dropout=0.1 needs `null`"),
]


@pytest.mark.parametrize(("name", "options", "message"), REFUSED)
def test_what_cannot_be_done_is_refused_with_the_remedy(key, name, options, message):
    with pytest.raises(ValueError, match=message):
        loss(name, field_of(PARAMETERS), batch_of(key), key, **options)


HELP = {
    "progressive_distillation": ({"level": 1}, "teacher"),
    "consistency_distillation": ({"target": field_of(TEACHER)}, "teacher"),
    "consistency_training": ({"level": 1}, "target"),
    "live_reflow": ({}, "target"),
}


@pytest.mark.parametrize("name", HELP)
def test_target_and_teacher_are_required(key, name):
    given, missing = HELP[name]
    with pytest.raises(TypeError, match=missing):
        getattr(flat, name)(field_of(PARAMETERS), batch_of(key), key, **given)


@pytest.mark.parametrize("name", ["progressive_distillation", "consistency_training"])
def test_a_traced_level_is_the_concrete_one_and_compiled_once(key, name):
    batch, traces = batch_of(key), []

    @jax.jit
    def traced(level):
        traces.append(name)
        return loss(name, field_of(PARAMETERS), batch, key, level=level)

    for level in range(5):
        value, metrics = traced(level)
        np.testing.assert_allclose(value, loss(name, field_of(PARAMETERS), batch, key, level=level)[0], rtol=1e-5)
        assert float(metrics["level"]) == level
    assert len(traces) == 1


def test_a_traced_guidance_is_the_concrete_one(key):
    guided = functools.partial(loss, "progressive_distillation", field_of(PARAMETERS), batch_of(key), key, null=NULL)
    traced = jax.jit(lambda scale: guided(guidance=scale)[0])
    for scale in (0.0, 1.0, 3.0):
        np.testing.assert_allclose(traced(scale), guided(guidance=scale)[0], rtol=1e-5)
