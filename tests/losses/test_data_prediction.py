"""Networks that answer data: the field is the one whose data they answer, and noise of another scale is data of another."""

import dataclasses
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flat
from eqx_shortcut import Batch, losses, samplers, times
from eqx_shortcut.models import DataPrediction, DiTConfig, MLPConfig, NetworkField
from eqx_shortcut.objectives import Diffusion, FlowMatching
from eqx_shortcut.rows import expand
from eqx_shortcut.trained import Trained, noise
from exact import M, S, gaussian_batch, gaussian_field

pytestmark = pytest.mark.usefixtures("x64")
EXACT = gaussian_field(M, S)


class Seen(eqx.Module):
    """The data that the exact field sees at the end of a straight way from `x`."""

    def __call__(self, x, t, d, cond, *, key=None):
        u = EXACT(x[None], t[None], d[None], None)[0]
        return x + (1 - t) * u


def asked(t):
    t = jnp.asarray(t)
    return jnp.linspace(-2.0, 3.0, 3 * len(t)).reshape(-1, 3), t, (1 - t) / 2, None


def test_a_wrapped_exact_network_is_the_exact_field_up_to_the_clip():
    field = NetworkField(DataPrediction(Seen()))
    np.testing.assert_allclose(field(*asked([0.0, 0.3, 0.8, 0.95])), EXACT(*asked([0.0, 0.3, 0.8, 0.95])), rtol=1e-12)
    late = asked([0.96, 0.99])
    np.testing.assert_allclose(field(*late), EXACT(*late) * (1 - late[1])[:, None] / 0.05, rtol=1e-12)


def test_one_step_ends_at_the_answer():
    class Answer(eqx.Module):
        def __call__(self, x, t, d, cond, *, key=None):
            return jnp.sin(x) + t

    x, t, _, _ = asked([0.0, 0.5, 0.9])
    field = NetworkField(DataPrediction(Answer()))
    np.testing.assert_allclose(x + expand(1 - t, x) * field(x, t, 1 - t, None), jnp.sin(x) + t[:, None], rtol=1e-12)
    found = samplers.euler(field, x, steps=1)
    np.testing.assert_allclose(found, jnp.sin(x), rtol=1e-12)


@pytest.mark.parametrize(
    ("config", "shape"),
    [(MLPConfig(hidden=8, depth=1, frequencies=4), (3,)), (DiTConfig(hidden=8, depth=1, heads=2, step="linear"), (2, 2, 1))],
)
def test_the_option_is_the_wrapper_of_the_same_weights(config, shape, key):
    """Weights that are not zero, in the same places."""
    plain, data = (
        eqx.filter_eval_shape(dataclasses.replace(config, predict=what).build, shape, 2, key=key)
        for what in ("velocity", "data")
    )
    leaves = [jnp.asarray(0.3 * np.cos(np.arange(a.size)), a.dtype).reshape(a.shape) for a in jax.tree.leaves(plain)]
    plain, data = (jax.tree.unflatten(jax.tree.structure(network), leaves) for network in (plain, data))
    inputs = jnp.ones(shape), jnp.asarray(0.3), jnp.asarray(0.2), jnp.asarray(1)
    answers = eqx.filter_jit(lambda networks: [network(*inputs) for network in networks])([plain, data, DataPrediction(plain)])
    answer, found, wrapped = map(np.asarray, answers)
    np.testing.assert_allclose(found, wrapped, rtol=1e-6)
    assert np.abs(found - answer).max() > 0.1
    config.check(FlowMatching())
    with pytest.raises(ValueError, match=r"Diffusion trains the network to answer noise.*use --network.predict velocity"):
        dataclasses.replace(config, predict="data").check(Diffusion())


@pytest.mark.parametrize("name", ["flow_matching", "mean_flow"])
def test_noise_of_another_scale_is_data_of_another(key, name):
    """With data and field in its units: the same loss, in its square."""
    scale, batch = 2.5, gaussian_batch(key, 8)
    field = lambda x, t, d, cond: jnp.sin(x) + expand(t - d, x) * x  # noqa: E731
    wide = lambda x, t, d, cond: scale * field(x / scale, t, d, cond)  # noqa: E731
    options = {"power": 0.0} if name == "mean_flow" else {}
    expected, _ = getattr(flat, name)(field, batch, key, **options)
    found, _ = getattr(flat, name)(wide, Batch(scale * batch.x, noise_scale=scale), key, **options)
    np.testing.assert_allclose(found, scale**2 * expected, rtol=1e-10)


def test_samples_begin_at_noise_of_that_scale(key):
    model = Trained(None, FlowMatching(), (3,), 0, 1)
    wide = dataclasses.replace(model, noise_scale=2.5)
    np.testing.assert_allclose(noise(wide, key, jnp.arange(4)), 2.5 * noise(model, key, jnp.arange(4)), rtol=1e-6)


def test_posterior_means_know_one_scale(key):
    batch = Batch(jnp.ones((8, 3)), noise_scale=2.0)
    with pytest.raises(ValueError, match=r"posterior_every=2 takes noise to be of standard deviation 1, not 2: leave it"):
        losses.Intervals(bootstrap_every=2, posterior_every=2).draw(batch, key)


def test_flow_matching_at_other_times(key):
    own = partial(times.logit_normal, mean=-0.8, std=0.8)
    draws = losses.flow_draws(Batch(jnp.zeros((4000, 1))), key, steps=8, at=own)
    found = jnp.log(draws.t) - jnp.log1p(-draws.t)
    assert abs(float(found.mean()) + 0.8) < 0.05 and abs(float(found.std()) - 0.8) < 0.03 and np.all(draws.d == 1 / 8)
