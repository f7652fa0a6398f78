import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqx_shortcut import Batch, losses
from eqx_shortcut.models import NetworkField
from eqx_shortcut.objectives import AtStep, FlowMatching, Networks, Objective, Shortcut

N = 24
PROGRESS = jnp.float32(0.5)


class Toy(eqx.Module):
    """A network of one example; with a key it adds noise, as dropout would."""

    weight: jax.Array

    @property
    def null(self):
        return jnp.array(9)

    def __call__(self, x, t, d, cond, *, key=None):
        noise = 0.0 if key is None else jax.random.normal(key, x.shape)
        return self.weight * x + t - d + cond.astype(x.dtype) / 10 + noise


def networks() -> Networks:
    return Networks(Toy(jnp.float32(0.5)), Toy(jnp.float32(-0.7)))


def batch() -> Batch:
    x = np.random.default_rng(0).standard_normal((N, 3))
    return Batch(jnp.asarray(x, jnp.float32), jnp.arange(N) % 9)


def asked(field, d):
    """The step size that the network under `field` is told."""
    x, t, d = jnp.zeros((len(d), 1)), jnp.zeros(len(d)), jnp.asarray(d, jnp.float32)
    return -np.asarray(field(x, t, d, jnp.zeros(len(d), int)))[:, 0]


@pytest.mark.parametrize("objective", [FlowMatching(), Shortcut()])
def test_satisfies_the_protocol(objective):
    assert isinstance(objective, Objective)
    assert not objective.continuous


def test_flow_matching_is_sampled_at_its_one_step():
    field = FlowMatching(steps=8).sampling(networks().online)
    np.testing.assert_allclose(asked(field, [1.0, 0.5, 1 / 8, 1 / 100]), np.full(4, 1 / 8), rtol=1e-6)


def test_shortcut_is_sampled_no_finer_than_trained():
    field = Shortcut(steps=8).sampling(networks().online)
    np.testing.assert_allclose(asked(field, [1.0, 0.3, 1 / 8, 1 / 100]), [1.0, 0.3, 1 / 8, 1 / 8], rtol=1e-6)


def test_views_take_the_network_without_dropout():
    field = Shortcut().sampling(networks().online)
    assert isinstance(field, AtStep) and field.field.key is None


@pytest.mark.parametrize(
    ("objective", "steps", "applies"),
    [
        (FlowMatching(), 1, True),
        (FlowMatching(), 128, True),
        (Shortcut(steps=32), 1, True),
        (Shortcut(steps=32, guidance=1.5), 1, False),
        (Shortcut(steps=32, guidance=1.5), 16, False),
        (Shortcut(steps=32, guidance=1.5), 32, True),
        (Shortcut(steps=32, guidance=1.5), 64, True),
    ],
)
def test_guidance_applies_where_the_network_does_not_contain_it(objective, steps, applies):
    assert objective.guides(steps) is applies


def test_any_batch_serves_flow_matching():
    FlowMatching(steps=100).check(3)


def test_shortcut_accepts_the_smallest_batch():
    Shortcut(steps=128, bootstrap_every=8).check(56)
    Shortcut(steps=128, bootstrap_every=8, guidance=1.5).check(56)
    Shortcut(steps=128, bootstrap_every=8, guidance=1.5, dt_bias=True).check(112)


@pytest.mark.parametrize(
    ("objective", "rows", "message"),
    [
        (Shortcut(steps=128, bootstrap_every=8), 32, r"batch 32 .*4 bootstrap rows for the 7 step sizes .*at least 56"),
        (Shortcut(steps=96), 64, r"steps=96 is not a power of two: .*64 or 128"),
        (Shortcut(bootstrap_every=1), 64, r"bootstrap_every=1 .*use 2 or more"),
        (Shortcut(guidance=1.5, dt_bias=True), 104, r"guidance=1.5 would guide nothing: with dt_bias 13 .*larger batch"),
    ],
    ids=["rows", "steps", "every", "guidance"],
)
def test_check_names_value_and_remedy(objective, rows, message):
    with pytest.raises(ValueError, match=message):
        objective.check(rows)


def test_flow_matching_is_its_loss_with_dropout_on(key):
    k_draws, k_mask = jax.random.split(key)
    online = networks().online
    found, metrics = FlowMatching(steps=8, label_dropout=0.5)(networks(), batch(), key, PROGRESS)
    field = NetworkField(online, k_mask)
    expected, _ = losses.flow_matching(field, batch(), k_draws, steps=8, null=online.null, dropout=0.5)
    np.testing.assert_allclose([found, metrics["loss"]], expected, rtol=1e-6)


SETTINGS = {"guidance": 2.0, "dt_bias": True, "clip": 1.0}


@pytest.mark.parametrize("average", [True, False])
def test_shortcut_is_its_loss_on_targets_without_dropout(key, average):
    k_draws, k_mask = jax.random.split(key)
    both = networks()
    objective = Shortcut(steps=4, bootstrap_every=4, bootstrap_ema=average, label_dropout=0.5, **SETTINGS)
    found, metrics = objective(both, batch(), key, PROGRESS)
    expected, _ = losses.shortcut(
        NetworkField(both.online, k_mask),
        batch(),
        k_draws,
        target=NetworkField(both.ema if average else both.online),
        steps=4,
        bootstrap_every=4,
        null=both.online.null,
        dropout=0.5,
        **SETTINGS,
    )
    np.testing.assert_allclose([found, metrics["loss"]], expected, rtol=1e-6)


@pytest.mark.parametrize("objective", [FlowMatching(steps=4), Shortcut(steps=4, bootstrap_every=4)], ids=["flow", "shortcut"])
def test_only_the_online_network_is_trained(key, objective):
    grad = eqx.filter_grad(lambda networks: objective(networks, batch(), key, PROGRESS)[0])(networks())
    assert float(jnp.abs(grad.online.weight)) > 0
    assert float(grad.ema.weight) == 0
