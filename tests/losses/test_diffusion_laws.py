"""Diffusion on data N(M, S^2): the exact predictor of noise has no mean gradient, and DDIM carries noise to the data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqx_shortcut import losses, paths, samplers
from eqx_shortcut.guidance import guided
from eqx_shortcut.rows import expand
from exact import M, S, mean_gradient, quadrature

pytestmark = pytest.mark.usefixtures("x64")
variance_preserving = paths.variance_preserving


def weights(t):
    """Of data and noise, from the integral of the linear schedule from 0.1 to 20."""
    left = 1 - t
    a = np.exp(-0.5 * (0.1 * left + 19.9 * left**2 / 2))
    return a, np.sqrt(1 - a**2)


def noise_in(x, t, d, cond):
    """`E[noise | a data + s noise = x]`."""
    a, s = (expand(part, x) for part in variance_preserving(t))
    return s * (x - a * M) / (a**2 * S**2 + s**2)


def bias(field=noise_in) -> np.ndarray:
    """Mean gradient, exact over noise and data, at all grid times."""
    draws, weight = quadrature(np.arange(32) / 32, 1 / 32)
    return mean_gradient(field, losses.diffusion_target(draws), weight)


def test_the_exact_predictor_has_no_mean_gradient():
    np.testing.assert_allclose(bias(), 0, atol=1e-12)


def test_the_opposite_noise_breaks_the_diffusion_law():
    assert np.abs(bias(lambda *asked: -noise_in(*asked))).max() > 1e-2


WRONG = {
    "weights swapped": lambda t: variance_preserving(t)[::-1],
    "time reversed": lambda t: variance_preserving(1 - t),
    "time late": lambda t: variance_preserving(0.95 * t),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
def test_a_planted_error_breaks_the_diffusion_law(monkeypatch, wrong):
    monkeypatch.setattr(paths, "variance_preserving", wrong)
    assert np.abs(bias()).max() > 1e-2


# DDIM


def exact_end(noise):
    """Of the probability flow: `x` has mean `a M` and variance `a^2 S^2 + s^2`, and its quantile does not change."""
    a, s = weights(0.0)
    return M + S * (noise - a * M) / np.sqrt(a**2 * S**2 + s**2)


def ddim_error(key, steps: int) -> float:
    noise = jax.random.normal(key, (16, 3), dtype=float)
    return float(jnp.abs(samplers.ddim(noise_in, noise, steps=steps) - exact_end(noise)).max())


def test_ddim_converges_to_the_exact_map_at_first_order(key):
    errors = [ddim_error(key, n) for n in (256, 512, 1024)]
    assert 1e-4 < errors[0] < 0.1
    np.testing.assert_allclose([errors[0] / errors[1], errors[1] / errors[2]], 2, rtol=0.1)


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("steps", [1, 3, 8])
def test_ddim_is_the_loop_of_its_paper(key, steps, clip):
    """Song, Meng and Ermon (2021), eq. 12 with sigma 0; it ends on the predicted data."""
    x = noise = np.asarray(jax.random.normal(key, (6, 2), dtype=float))
    for i in range(steps):
        (a, s), (a_next, s_next) = weights(i / steps), weights((i + 1) / steps)
        predicted = s * (x - a * M) / (a**2 * S**2 + s**2)
        data = (x - s * predicted) / a
        if clip is not None:
            data = np.clip(data, -clip, clip)
            predicted = (x - a * data) / s
        x = a_next * data + s_next * predicted
    np.testing.assert_allclose(samplers.ddim(noise_in, jnp.asarray(noise), steps=steps, clip=clip), x, rtol=1e-9, atol=1e-9)


def test_guidance_of_the_noise_is_guidance_of_the_velocity(key):
    """The velocity of a DDIM step is linear in the predicted noise."""

    def field(x, t, d, cond):
        return noise_in(x, t, d, None) * expand(cond, x)

    x, t, d = jax.random.normal(key, (6, 2), dtype=float), jnp.linspace(0, 0.9, 6), jnp.full(6, 0.05)
    cond, null = jnp.arange(6.0) + 1, jnp.array(0.0)
    inside = samplers.ddim_field(guided(field, 3.0, null))(x, t, d, cond)
    outside = guided(samplers.ddim_field(field), 3.0, null)(x, t, d, cond)
    np.testing.assert_allclose(inside, outside, rtol=1e-9)
    assert float(jnp.abs(inside - samplers.ddim_field(field)(x, t, d, cond)).min()) > 1e-3


@pytest.mark.parametrize("wrong", [WRONG["time reversed"], WRONG["time late"]], ids=["time reversed", "time late"])
def test_a_planted_error_breaks_ddim(key, monkeypatch, wrong):
    assert ddim_error(key, 1024) < 0.03
    monkeypatch.setattr(paths, "variance_preserving", wrong)
    assert not ddim_error(key, 1024) < 0.03
