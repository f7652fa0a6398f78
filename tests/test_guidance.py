import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqx_shortcut import sharding
from eqx_shortcut.guidance import (
    Guidance,
    Guided,
    Scales,
    at_scale,
    autoguided,
    draw_guided,
    drop_condition,
    guided,
    guided_velocity,
    same_condition,
)
from eqx_shortcut.rows import expand
from scripts import script

collectives = script("collectives")

N = 6
NULL = jnp.array(9)


def field(x, t, d, cond):
    return jnp.sin(expand(cond.astype(x.dtype), x) * x) + expand(t - d, x)


def inputs(key, n: int = N):
    k_x, k_t = jax.random.split(key)
    return jax.random.normal(k_x, (n, 3)), jax.random.uniform(k_t, (n,)), jnp.full(n, 0.25), jnp.arange(n)


def both(key):
    x, t, d, cond = inputs(key)
    return field(x, t, d, cond), field(x, t, d, jnp.full_like(cond, NULL))


class Counted:
    """The field above, with the rows of each call."""

    def __init__(self):
        self.calls = []

    def __call__(self, x, t, d, cond):
        self.calls.append(x.shape[0])
        return field(x, t, d, cond)


@pytest.mark.parametrize("scale", [0, 0.0, 1, 1.0, 1.5, -2.0, 4])
def test_extrapolates_from_null_to_condition(key, scale):
    u, u_null = both(key)
    np.testing.assert_allclose(guided(field, scale, NULL)(*inputs(key)), u_null + scale * (u - u_null), atol=1e-6)


def test_scale_one_is_the_field_itself():
    assert guided(field, 1.0, None) is field
    assert guided(field, 1, None) is field


@pytest.mark.parametrize(("scale", "first", "calls"), [(1, None, [N]), (0, None, [N]), (3.0, None, [2 * N]), (3.0, 2, [N + 2])])
def test_calls_the_field_once(key, scale, first, calls):
    counted = Counted()
    guided(counted, scale, NULL, first=first)(*inputs(key))
    assert counted.calls == calls


def test_a_scale_of_one_asks_no_weak_network(key):
    counted = Counted()
    np.testing.assert_array_equal(autoguided(field, counted, 1.0)(*inputs(key)), field(*inputs(key)))
    assert not counted.calls
    twice = lambda x, t, d, cond: 2 * field(x, t, d, cond)  # noqa: E731
    np.testing.assert_allclose(autoguided(field, twice, 2.0)(*inputs(key)), jnp.zeros((N, 3)), atol=1e-6)


@pytest.mark.parametrize("scale", [0.0, 3.0])
@pytest.mark.parametrize("first", [None, 2, N])
def test_outside_of_its_interval_guidance_leaves_the_conditional_field(key, scale, first):
    x, _, d, cond = inputs(key)
    t = jnp.array([0.1, 0.25, 0.3, 0.5, 0.75, 1.0])
    u, u_null = field(x, t, d, cond), field(x, t, d, jnp.full_like(cond, NULL))
    found = guided(field, scale, NULL, interval=(jnp.float32(0.25), 0.5), first=first)(x, t, d, cond)
    applies = jnp.array([False, True, True, True, False, False]) & (jnp.arange(N) < (first or N))
    np.testing.assert_allclose(found, jnp.where(applies[:, None], u_null + scale * (u - u_null), u), atol=1e-6)


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("first", [0, 1, 4, N])
def test_first_guides_leading_rows_only(key, first, scale):
    u, u_null = both(key)
    expected = jnp.concatenate([u_null[:first] + scale * (u - u_null)[:first], u[first:]])
    np.testing.assert_allclose(guided(field, scale, NULL, first=first)(*inputs(key)), expected, atol=1e-6)


@pytest.mark.parametrize("first", [None, 2])
def test_scale_may_be_traced(key, first):
    at = jax.jit(lambda scale: guided(field, scale, NULL, first=first)(*inputs(key)))
    for scale in (0.0, 1.0, 2.5):
        expected = guided(field, scale, NULL, first=first)(*inputs(key))
        np.testing.assert_allclose(at(jnp.float32(scale)), expected, atol=1e-6)


def test_conditions_of_any_structure(key):
    x, t, d, _ = inputs(key)
    cond = {"text": jnp.ones((N, 3)), "label": jnp.arange(N)}
    null = {"text": jnp.array([0.0, 1.0, 2.0]), "label": 7}

    def from_dict(x, t, d, cond):
        return x + cond["text"] * expand(cond["label"].astype(x.dtype), x)

    u, u_null = from_dict(x, t, d, cond), x + 7 * jnp.array([[0.0, 1.0, 2.0]])
    np.testing.assert_allclose(guided(from_dict, 2.0, null)(x, t, d, cond), 2 * u - u_null, rtol=1e-5)


OBSERVED = {
    "state": jnp.linspace(-1, 1, 8 * 2 * 3).reshape(8, 2, 3),
    "camera": jnp.arange(8 * 4, dtype=jnp.uint8).reshape(8, 2, 2),
    "blind": jnp.arange(8) % 3 == 0,
}
UNSEEN = {"state": jnp.full((2, 3), 0.5), "camera": np.full((2, 2), 255, np.uint8), "blind": True}


def acting(x, t, d, cond):
    """A field of actions (4, 2) that sees all of an observation."""
    seen = (
        jnp.sum(cond["state"], (1, 2))
        + jnp.max(cond["camera"], (1, 2)).astype(jnp.float32) / 255
        - cond["blind"].astype(t.dtype)
    )
    return jnp.cos(x) * expand(seen, x) + expand(t - d, x)


@pytest.mark.parametrize(("first", "groups"), [(None, 1), (3, 1), (3, 4)])
@pytest.mark.parametrize("interval", [None, (0.2, 0.6)])
def test_observations_guide_actions_of_any_rank(key, first, groups, interval):
    """Row b of group a was number `b groups + a`."""
    x, t, d = jax.random.normal(key, (8, 4, 2)), jnp.linspace(0, 1, 8), jnp.full(8, 0.25)
    nothing = jax.tree.map(lambda c, n: jnp.broadcast_to(jnp.asarray(n, c.dtype), c.shape), OBSERVED, UNSEEN)
    u, u_null = acting(x, t, d, OBSERVED), acting(x, t, d, nothing)
    a, b = np.divmod(np.arange(8), 8 // groups)
    applies = (b * groups + a < (8 if first is None else first)) & (
        np.ones(8, bool) if interval is None else (t >= 0.2) & (t <= 0.6)
    )
    found = guided(acting, 3.0, UNSEEN, interval=interval, first=first, groups=groups)(x, t, d, OBSERVED)
    np.testing.assert_allclose(found, np.where(applies[:, None, None], u_null + 3 * (u - u_null), u), atol=1e-5)


def test_observations_are_hidden_whole_and_what_is_hidden_is_not_guided(key):
    x, t = jax.random.normal(key, (8, 4, 2)), jnp.linspace(0, 1, 8)
    cond = drop_condition(jax.random.key(3), OBSERVED, Guidance(UNSEEN, 0.5), 8)
    hidden = np.asarray(cond["camera"][:, 0, 0] == 255)
    assert 0 < hidden.sum() < 8
    for name, null in UNSEEN.items():
        np.testing.assert_array_equal(cond[name][hidden], np.broadcast_to(null, cond[name][hidden].shape))
        np.testing.assert_array_equal(cond[name][~hidden], OBSERVED[name][~hidden])
    v, found = jnp.sin(x), guided_velocity(acting, x, t, jnp.sin(x), cond, Guidance(UNSEEN, scale=2.0))
    nothing = jax.tree.map(lambda c, n: jnp.broadcast_to(jnp.asarray(n, c.dtype), c.shape), OBSERVED, UNSEEN)
    expected = 2 * v - acting(x, t, 0 * t, nothing)
    np.testing.assert_allclose(found, np.where(hidden[:, None, None], v, expected), atol=1e-5)


def test_observations_are_the_same_where_every_part_is():
    others = jax.tree.map(lambda a: a[::-1], OBSERVED)
    np.testing.assert_array_equal(same_condition(OBSERVED, others, (8, 8)), np.eye(8)[::-1].astype(bool))
    one_part = OBSERVED | {"camera": OBSERVED["camera"].at[:, 1, 1].set(0)}
    assert not np.any(same_condition(OBSERVED, one_part, (8, 8)))


def test_a_null_with_a_batch_axis_is_refused():
    with pytest.raises(ValueError, match=r"dropout=0\.1 needs `null` without a batch axis: found \(8,\) for conditions \(8,\)"):
        drop_condition(jax.random.key(0), OBSERVED, Guidance(OBSERVED, 0.1), 8)


@pytest.mark.parametrize("first", [None, 2])
def test_missing_null_is_named(key, first):
    with pytest.raises(ValueError, match=r"guidance=3.0 needs `null`, the condition without its batch axis"):
        guided(field, 3.0, None, first=first)(*inputs(key))


@pytest.mark.parametrize(("groups", "calls"), [(1, 12 + 4), (4, 12 + 4), (6, 12 + 6)])
def test_of_rows_interleaved_over_groups_the_first_are_guided(key, groups, calls):
    """Row b of group a was number `b groups + a`; where 4 are not a multiple of the groups, more are evaluated."""
    counted, (x, t, d, cond) = Counted(), inputs(key, 12)
    found = Guidance(NULL, 0.0, 3.0).of(counted, first=4, groups=groups)(x, t, d, cond)
    u, u_null = field(x, t, d, cond), field(x, t, d, jnp.full_like(cond, NULL))
    a, b = np.divmod(np.arange(12), 12 // groups)
    first = (b * groups + a < 4)[:, None]
    np.testing.assert_allclose(found, np.where(first, u_null + 3 * (u - u_null), u), atol=1e-6)
    assert counted.calls == [calls]


@pytest.mark.parametrize(("rows", "groups"), [(64, 16), (16, 4)])
def test_guiding_some_rows_of_a_sharded_batch_moves_nothing_between_devices(rows, groups):
    """Neither where each device holds whole groups, nor where a group lies on two of them."""
    mesh = sharding.make_mesh()
    layout = sharding.batch_sharding(mesh)
    arguments = jax.device_put(inputs(jax.random.key(0), rows), layout)
    function = lambda *a: guided(field, 3.0, NULL, first=groups - 1, groups=groups)(*a)  # noqa: E731
    with jax.set_mesh(mesh):
        compiled = jax.jit(function, in_shardings=layout, out_shardings=layout).lower(*arguments).compile()
        assert not collectives.read(compiled.as_text() or "")
        np.testing.assert_allclose(compiled(*arguments), function(*map(np.asarray, arguments)), atol=1e-6)


def test_guiding_a_sharded_batch_moves_nothing_between_devices():
    layout = sharding.batch_sharding(sharding.make_mesh())
    arguments = jax.device_put(inputs(jax.random.key(0), 16), layout)
    function = jax.jit(lambda *a: guided(field, 3.0, NULL)(*a), in_shardings=layout, out_shardings=layout)
    text = function.lower(*arguments).compile().as_text() or ""
    assert not [name for name in ("all-gather", "all-to-all", "collective-permute", "all-reduce") if name in text]


# Dropped conditions


def test_conditions_drop_at_their_rate(key):
    n = 8192
    found = drop_condition(key, jnp.zeros(n, int), Guidance(jnp.array(1), 0.25), n)
    assert abs(float(jnp.mean(found)) - 0.25) < 5 * np.sqrt(0.25 * 0.75 / n)


def test_a_row_drops_whole_or_not_at_all(key):
    n = 64
    cond = {"text": jnp.ones((n, 2, 3)), "label": jnp.arange(n)}
    found = drop_condition(key, cond, Guidance({"text": jnp.zeros((2, 3)), "label": -1}, 0.5), n)
    dropped = np.asarray(found["label"] == -1)
    assert 0 < dropped.sum() < n
    np.testing.assert_array_equal(found["label"][~dropped], np.arange(n)[~dropped])
    np.testing.assert_array_equal(found["text"], np.broadcast_to(~dropped[:, None, None], (n, 2, 3)).astype(float))


def test_rate_one_drops_every_row(key):
    np.testing.assert_array_equal(drop_condition(key, jnp.arange(5), Guidance(NULL, 1.0), 5), np.full(5, 9))


def test_nothing_to_drop_passes_through(key):
    cond = jnp.arange(5)
    assert drop_condition(key, cond, Guidance(), 5) is cond and drop_condition(key, cond, None, 5) is cond
    assert drop_condition(key, None, Guidance(None, 0.5), 5) is None


def test_dropping_without_null_is_refused(key):
    with pytest.raises(ValueError, match=r"dropout=0.1 needs `null`"):
        drop_condition(key, jnp.arange(5), Guidance(None, 0.1), 5)


# Velocities guided in training


def velocities(key, guidance: Guidance | None, cond=None):
    """A velocity before and after guidance by the field above, with what that answers at `d = 0` with and without label."""
    x, t, d, labels = inputs(key)
    cond = labels if cond is None else cond
    v, nothing = jnp.cos(x), jnp.full(N, NULL)
    return guided_velocity(field, x, t, v, cond, guidance), v, field(x, t, 0 * d, labels), field(x, t, 0 * d, nothing), t


@pytest.mark.parametrize(("scale", "mix"), [(2.0, 0.0), (1.5, 0.4), (1.0, 0.6), (jnp.linspace(1, 3, N), jnp.linspace(0, 1, N))])
def test_a_velocity_is_guided_by_its_law(key, scale, mix):
    found, v, u, u_null, _ = velocities(key, Guidance(NULL, 0.0, scale, mix))
    w, k = (np.broadcast_to(a, N)[:, None] for a in (scale, mix))
    np.testing.assert_allclose(found, w * v + k * u + (1 - w - k) * u_null, atol=1e-5)


def test_the_guided_field_is_the_fixed_point_at_scale_over_one_less_mix():
    """With the conditional velocity as `v`, and a network that answers `u_null + w (v - u_null)` where it has a label."""
    x, t, _, cond = inputs(jax.random.key(1))
    v, u_null, w = jnp.cos(x), jnp.sin(2 * x), 1.5 / (1 - 0.4)

    def network(x, t, d, cond):
        v, u_null = jnp.cos(x), jnp.sin(2 * x)
        return jnp.where((cond == NULL)[:, None], u_null, u_null + w * (v - u_null))

    found = guided_velocity(network, x, t, v, cond, Guidance(NULL, 0.0, 1.5, 0.4))
    np.testing.assert_allclose(found, u_null + w * (v - u_null), atol=1e-5)


def test_rows_outside_of_the_interval_and_without_label_keep_their_velocity(key):
    labels = jnp.arange(N).at[3].set(NULL)
    found, v, *_, t = velocities(key, Guidance(NULL, 0.0, 3.0, 0.0, (0.1, 0.4)), labels)
    kept = np.all(np.asarray(found == v), axis=1)
    np.testing.assert_array_equal(kept, (t < 0.1) | (t > 0.4) | (labels == NULL))
    assert 0 < kept.sum() < N
    np.testing.assert_array_equal(velocities(key, None)[0], v)


@pytest.mark.parametrize(("mix", "calls"), [(0, [N]), (0.0, [N]), (0.4, [2 * N]), (jnp.zeros(N), [2 * N])])
def test_without_a_share_of_its_own_the_field_is_asked_without_labels_alone(key, mix, calls):
    counted, (x, t, _, cond) = Counted(), inputs(key)
    guided_velocity(counted, x, t, jnp.cos(x), cond, Guidance(NULL, 0.0, 2.0, mix))
    assert counted.calls == calls


def test_conditions_are_the_same_when_all_of_them_are():
    """And a row is without its label when it is the null one in every part and element."""
    cond = {"text": jnp.array([[1.0, 2.0], [1.0, 3.0], [1.0, 2.0]]), "label": jnp.array([0, 0, 0])}
    expected = [[True, False, True], [False, True, False], [True, False, True]]
    np.testing.assert_array_equal(same_condition(cond, cond, (3, 3)), expected)
    np.testing.assert_array_equal(same_condition(None, None, (2, 3)), np.ones((2, 3), bool))

    def network(x, t, d, cond):
        return jnp.zeros_like(x)

    null, x, t = {"text": jnp.array([1.0, 3.0]), "label": jnp.array(0)}, jnp.ones((3, 2)), jnp.full(3, 0.5)
    found = guided_velocity(network, x, t, x, cond, Guidance(null, scale=2.0))
    np.testing.assert_array_equal(found, [[2, 2], [1, 1], [2, 2]])


def test_scales_are_drawn_with_density_one_over_scale(key):
    """So that `log scale` is uniform; the intervals lie about the middle."""
    n = 8192
    found = draw_guided(key, None, Scales(1, 8, intervals=True), jnp.zeros(n))
    share = np.mean(np.asarray(found.scale) < 8**0.5)
    assert abs(share - 0.5) < 5 * 0.5 / np.sqrt(n)
    assert float(found.scale.min()) >= 1 and float(found.scale.max()) <= 8
    for ends, low in ((found.start, 0.0), (found.stop, 0.5)):  # both uniform
        assert low <= float(ends.min()) and float(ends.max()) <= low + 0.5
        assert abs(float(ends.mean()) - low - 0.25) < 5 * 0.5 / np.sqrt(12 * n)
    plain = draw_guided(key, None, Scales(2, 2), jnp.zeros(3))
    np.testing.assert_allclose([plain.scale, plain.start, plain.stop], [[2] * 3, [0] * 3, [1] * 3], rtol=1e-6)
    fixed = draw_guided(key, None, Scales(interval=(0.25, 0.5)), jnp.zeros(3))
    np.testing.assert_array_equal([fixed.start, fixed.stop], [[0.25] * 3, [0.5] * 3])


def test_without_a_label_the_guidance_that_a_network_is_told_stays(key):
    cond = Guided(jnp.arange(N), jnp.full(N, 2.0), jnp.zeros(N), jnp.ones(N))
    dropped = drop_condition(key, cond, Guidance(NULL, 1.0), N)
    np.testing.assert_array_equal(dropped.cond, np.full(N, 9))
    np.testing.assert_array_equal(dropped.scale, cond.scale)

    def network(x, t, d, cond):
        return field(x, t, d, cond.cond) * cond.scale[:, None] + expand(cond.start + cond.stop, x)

    x, t, d, labels = inputs(key)
    found = at_scale(network, 3.0, interval=(0.25, 0.5))(x, t, d, labels)
    np.testing.assert_allclose(found, 3 * field(x, t, d, labels) + 0.75, rtol=1e-5)
