"""Fine-tuning by a reward: where its minimum lies, in closed form on a Gaussian, and the loss beside its parts."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import papers
from eqx_shortcut import Batch, cli, losses, samplers
from exact import M, S, gaussian_field, gaussian_lines, gaussian_scale, gaussian_velocity, mean_of

pytestmark = pytest.mark.usefixtures("x64")
BETA, SLOPE = 0.3, 0.2
T = jnp.array([0.0, 0.3, 0.7])


def lines():
    """Of data N(M, S^2) through points at times: the points, the lines' velocities and data, and their shares."""
    x = jnp.array([[0.4], [-0.2], [1.1]])
    draws, shares = gaussian_lines(x, T, jnp.zeros(3), M, S)
    return x, draws, shares


def least(r_of_data, balance=False):
    """The velocity at which the mean gradient over the lines through each point vanishes, by one step of Newton."""
    x, draws, shares = lines()
    line, old = draws.x - draws.noise, gaussian_velocity(M, S)(x, T, T, None)
    each = jnp.repeat(old, shares.shape[1], axis=0)

    def mean(v):
        error = losses.reward_error(
            jnp.repeat(v, shares.shape[1], axis=0), each, line, r_of_data(draws.x), draws.t, beta=BETA, balance=balance
        )
        return jnp.sum(mean_of(error, shares))

    slope, curve = jax.grad(mean)(old), jax.hessian(mean)(old).reshape(3, 3)
    return old, old - (jnp.linalg.inv(curve) @ slope.ravel()).reshape(old.shape), mean_of(line - each, shares)


def test_the_minimum_on_a_gaussian_is_shifted_by_the_variance_of_the_data_given_the_point():
    old, found, _ = least(lambda data: 1 / 2 + SLOPE * (data[:, 0] - M))
    variance = (S * (1 - T) / gaussian_scale(T, S)) ** 2
    np.testing.assert_allclose(found - old, (2 * SLOPE * variance / ((1 - T) * BETA))[:, None], atol=1e-12)


def test_nothing_moves_where_the_reward_says_nothing():
    old, found, _ = least(lambda data: jnp.full(data.shape[0], 0.5))
    np.testing.assert_allclose(found, old, atol=1e-12)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_minimum_is_the_old_velocity_and_the_rewarded_lines(sign):
    r = lambda data: jax.nn.sigmoid(sign * data[:, 0])  # noqa: E731
    old, found, _ = least(r)
    _, draws, shares = lines()
    each = jnp.repeat(old, shares.shape[1], axis=0)
    pull = mean_of((2 * r(draws.x) - 1)[:, None] * (draws.x - draws.noise - each), shares) / BETA
    np.testing.assert_allclose(found - old, pull, atol=1e-12)
    assert (sign * np.asarray(found - old) > 1e-3).all()


def test_a_velocity_that_is_the_line_s_is_no_error():
    """Where the balanced weight, the size of the error, is 0 too."""
    line, one = jnp.array([[0.5, -1.0]]), jnp.ones(1)
    value, slope = jax.value_and_grad(lambda v: losses.reward_error(v, line, line, one / 2, one / 4)[0])(line)
    assert value == 0 and not np.any(slope)


def test_shares_are_scores_normalised_in_their_sets():
    scores = np.array([1.0, 2.0, 6.0, 10.0, 10.0, 40.0])
    sets = scores.reshape(2, 3)
    expected = 0.5 + ((sets - sets.mean(1, keepdims=True)) / sets.std(1, keepdims=True)) / 10
    np.testing.assert_allclose(losses.reward_share(jnp.asarray(scores), 2), expected.ravel(), rtol=1e-12)
    assert float(losses.reward_share(jnp.zeros(100).at[0].set(1.0)).max()) == 1.0


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([1.0, np.nan, 2.0, 0.0], "a reward is not finite"),
        ([1.0, 2.0, 3.0, 3.0], "the same for all samples of a set"),
        # Of three such numbers the mean is not exactly the number, so that their deviation is not 0.
        ([1.0, 2.0, 3.0, 0.1, 0.1, 0.1], "the same for all samples of a set"),
    ],
)
def test_a_reward_that_says_nothing_is_refused(scores, message):
    with pytest.raises(Exception, match=message):
        losses.reward_share(jnp.asarray(scores, jnp.float32), 2)


def test_a_command_says_so_in_one_sentence(capsys):
    def train(_):
        eqx.filter_jit(losses.reward_share)(jnp.array([1.0, jnp.nan]))

    with pytest.raises(SystemExit, match="1"):
        cli.command(train, Nothing, None, args=[])
    assert capsys.readouterr().err == "error: a reward is not finite: let it give a number for every sample\n"


@dataclasses.dataclass
class Nothing:
    """A command without options."""


def test_the_exact_map_says_the_velocity_at_any_step_and_the_loss_draws_by_the_old_one(key):
    """At the exact field `V` is the velocity; samples of the old field are those that the score is given."""
    x, draws, _ = lines()
    draws = dataclasses.replace(draws, d=jnp.full_like(draws.d, 0.25))
    field = gaussian_field(M, S)
    point = losses.map_velocity(field, draws)
    velocity = gaussian_velocity(M, S)(jnp.repeat(x, 3, axis=0), draws.t, draws.t, None)
    np.testing.assert_allclose(point, velocity, atol=1e-12)
    seen = []
    batch = Batch(jnp.zeros((8, 1)))

    def score(x, cond):
        seen.append(x)
        return x[:, 0]

    values, metrics = losses.reward(field, batch, key, old=field, score=score, steps=2, reduction=None)
    noise = jax.random.normal(jax.random.split(key, 3)[0], (8, 1), float)
    np.testing.assert_allclose(seen[0], samplers.euler(field, noise, None, steps=2), rtol=1e-12)
    np.testing.assert_allclose(metrics["reward"], np.mean(seen[0]), rtol=1e-12)
    assert values.shape == (8,) and np.isfinite(values).all()


@pytest.mark.parametrize("options", [{"beta": 0.3}, {"beta": 0.1, "balance": False}], ids=["balanced", "plain"])
def test_the_loss_and_its_gradient_are_the_paper_s_at_any_field(key, options):
    """Of lines through what the old field draws, as the score is given them; times and noise are read from what is asked."""
    rows, steps, old, samples = papers.given(2), 4, papers.field_of(papers.parameters(5)), []

    def score(x, cond):
        samples.append(x)
        return jnp.sin(jnp.sum(x, axis=1)) + cond.astype(x.dtype)

    def loss(p, **more):
        own = {"old": old, "score": score, "steps": steps, "groups": 3}
        return losses.reward(papers.field_of(p), Batch(rows.data, rows.cond), key, **own, **options, **more)

    field = papers.Recorded(papers.field_of(papers.parameters(0)))
    _, metrics = losses.reward(field, Batch(rows.data, rows.cond), key, old=old, score=score, steps=steps, groups=3, **options)
    point, t, _, _ = field.first(papers.N)
    x = samples[0]
    noise = (point - papers.over(t) * x) / papers.over(1 - t)
    np.testing.assert_allclose(t * steps, np.round(t * steps), atol=1e-12)
    assert len(set(np.asarray(t * steps))) > 1 and t.min() >= 0 and t.max() < 1
    drawn = papers.Rows(noise, x, t, jnp.full_like(t, 1 / steps), rows.cond)
    sets = np.asarray(score(x, rows.cond)).reshape(3, -1)
    shares = 0.5 + (sets - sets.mean(1, keepdims=True)) / sets.std(1, keepdims=True) / 10

    def formula(p):
        return papers.rewarded(papers.field_of(p), old, drawn, shares.ravel(), **options)

    papers.same(loss, formula, papers.parameters(0), rtol=1e-8)
    np.testing.assert_allclose(metrics["reward"], sets.mean(), rtol=1e-12)


def test_noise_is_of_the_scale_of_the_batch_at_the_start_and_on_the_lines(key):
    """A field of no velocity leaves samples at their noise, so that every point lies between two noises."""
    points, nothing = [], lambda x, t, d, cond: jnp.zeros_like(x)
    for scale in (1.0, 3.0):
        field = papers.Recorded(nothing)
        losses.reward(field, Batch(jnp.zeros((8, 2)), noise_scale=scale), key, old=nothing, score=lambda x, _: x[:, 0])
        points.append(field.first(8)[0])
    np.testing.assert_allclose(points[1], 3 * points[0], rtol=1e-12)
