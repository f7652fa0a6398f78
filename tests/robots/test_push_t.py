"""Push-T: windows of demonstrations, what is refused, the simulator against recorded episodes, and policies."""

import dataclasses
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export as jax_export

from eqx_shortcut import paths
from eqx_shortcut.commands import export
from eqx_shortcut.data import DataError
from eqx_shortcut.experiment import Quality
from eqx_shortcut.models import DiTConfig, MLPConfig
from eqx_shortcut.objectives import ConsistencyTraining, Diffusion, Shortcut
from eqx_shortcut.robots import Policy, PushT
from eqx_shortcut.robots.demonstrations import OBSERVED, in_pixels, observed, on_board, read_episodes, windows
from eqx_shortcut.trained import Trained, sample, sample_from
from eqx_shortcut.trained import noise as normal

PEOPLE = pathlib.Path(__file__).parents[3] / "shared" / "data" / "pusht" / "pusht.npz"
people = pytest.mark.skipif(not PEOPLE.exists(), reason="no demonstrations in ../shared/data/pusht")
simulated = pytest.mark.skipif(importlib.util.find_spec("gym_pusht") is None, reason="pip install 'eqx_shortcut[robots]'")


@pytest.fixture
def steps() -> dict[str, np.ndarray]:
    """Three short episodes of random numbers on the board."""
    rng = np.random.default_rng(0)
    ends = np.array([20, 45, 75])
    return {"action": rng.uniform(0, 512, (75, 2)), "state": rng.uniform(0, 6, (75, 5)), "episode_ends": ends}


@pytest.fixture
def policy_model() -> Trained:
    """An untrained one."""
    network = MLPConfig(hidden=8, depth=1, observed=OBSERVED).build((16, 2), 0, key=jax.random.key(0))
    null = {"agent": np.zeros((2, 2), np.float32), "block": np.zeros((2, 4), np.float32)}
    return Trained(network, Shortcut(steps=8), (16, 2), 0, 0, null=null)


def saved(folder: pathlib.Path, steps: dict[str, np.ndarray]) -> pathlib.Path:
    np.savez(folder / "pusht.npz", **steps)  # pyright: ignore[reportArgumentType]
    return folder / "pusht.npz"


def test_windows_are_padded_as_the_diffusion_policys():
    """Its authors' `create_indices` with a horizon of 16, 1 before and 7 after, written as they have it."""
    length = 30
    found = []
    for start in range(-1, length - 16 + 7 + 1):
        inside = np.arange(max(start, 0), min(start + 16, length))
        found.append([inside[0]] * max(-start, 0) + [*inside] + [inside[-1]] * max(start + 16 - length, 0))
    np.testing.assert_array_equal(windows(100, 100 + length), 100 + np.array(found))


def test_a_row_holds_what_was_seen_and_then_done(tmp_path, steps):
    train, held_out = PushT(saved(tmp_path, steps), held_out=0.3).build()
    assert len(train.x) + len(held_out.x) == sum(end - 7 for end in (20, 25, 30))
    both = np.concatenate([train.x, held_out.x])
    agent = np.concatenate([train.condition["agent"], held_out.condition["agent"]])
    place = np.argmin(np.abs(on_board(steps["action"]) - both[0, 5]).sum(1))  # a step that is not padded
    np.testing.assert_allclose(both[0, 1], on_board(steps["action"][place - 4]), atol=1e-6)
    np.testing.assert_allclose(agent[0, 1], on_board(steps["state"][place - 4, :2]), atol=1e-6)


def test_an_angle_is_seen_without_a_jump_and_pixels_come_back():
    states = np.array([[10.0, 20, 30, 40, 1e-6], [10.0, 20, 30, 40, 2 * np.pi - 1e-6]])
    first, last = observed(states[:, None])["block"]
    np.testing.assert_allclose(first, last, atol=1e-5)
    pixels = np.random.default_rng(0).uniform(0, 512, (9, 2))
    np.testing.assert_allclose(in_pixels(on_board(pixels)), pixels)
    assert in_pixels(np.array([-2.0, 2.0])).tolist() == [0, 512]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"action": np.zeros((75, 3))}, "action of .* is of shape \\(75, 3\\): Push-T has 2 numbers a step"),
        ({"episode_ends": np.array([20, 15, 75])}, "episodes overlap"),
        ({"episode_ends": np.array([20.0, 45.0, 75.0])}, "float64 of shape \\(3,\\): give whole numbers"),
        ({"episode_ends": np.array([20, 45, 70])}, "75 actions and 75 states for episodes that end at 70"),
        ({"state": np.where(np.arange(75)[:, None] == 7, np.nan, np.ones((75, 5)))}, "state of .* is not finite at step 7"),
        ({"episode_ends": np.array([75])}, "1 episode, and one must be held out"),
    ],
)
def test_bad_demonstrations_are_refused_in_a_sentence(tmp_path, steps, change, said):
    with pytest.raises(DataError, match=said):
        PushT(saved(tmp_path, steps | change)).build()


def test_a_missing_or_truncated_file_is_refused_in_a_sentence(tmp_path, steps):
    with pytest.raises(DataError, match="no demonstrations are named: fetch https"):
        PushT().build()
    with pytest.raises(DataError, match=r"no file .*gone.npz: fetch https"):
        PushT(tmp_path / "gone.npz").build()
    path = saved(tmp_path, steps)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match="is damaged, or no file of demonstrations"):
        PushT(path).build()
    np.savez(path, action=steps["action"])
    with pytest.raises(DataError, match="state is not a file in the archive"):
        PushT(path).build()


def test_the_published_folder_gives_the_same_rows(tmp_path, steps):
    zarr = pytest.importorskip("zarr", reason="pip install 'eqx_shortcut[robots]'")
    root = zarr.open_group(str(tmp_path / "replay.zarr"), mode="w", zarr_format=2)
    for name, place in (("action", "data/action"), ("state", "data/state"), ("episode_ends", "meta/episode_ends")):
        root.create_array(place, data=steps[name])
    found, wanted = read_episodes(tmp_path / "replay.zarr"), read_episodes(saved(tmp_path, steps))
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(a, b)


@simulated
@people
def test_five_people_replay_to_the_recorded_states():
    from eqx_shortcut.robots.simulation import replay

    episodes = read_episodes(PEOPLE)
    for first, end in episodes.spans[:30:6]:
        found = replay(episodes.action[first:end], episodes.state[first])
        np.testing.assert_allclose(found.states[:-1, :4], episodes.state[first + 1 : end, :4], atol=1e-2)
        assert 0.9 < found.score <= 1


@simulated
def test_boards_start_alike_are_apart_and_end_at_the_limit():
    from eqx_shortcut.robots.simulation import roll_out

    seen = []

    def act(observation):
        seen.append(observation)
        return np.zeros((2, 8, 2))

    first, second = roll_out(act, [5, 6], limit=20)
    assert len(first.states) == len(second.states) == 20 and len(seen) == 3
    np.testing.assert_array_equal(roll_out(act, [6], limit=20)[0].states, second.states)
    np.testing.assert_array_equal(seen[0]["agent"][:, 0], seen[0]["agent"][:, 1])  # at the start both are the same
    np.testing.assert_allclose(seen[1]["agent"][0], on_board(first.states[6:8, :2]), atol=1e-6)
    assert not np.array_equal(first.states, second.states)


@simulated
def test_a_judgement_that_was_made_is_not_made_again(tmp_path, policy_model, monkeypatch):
    from eqx_shortcut.robots import judging

    monkeypatch.setattr(judging, "LIMIT", 8)
    monkeypatch.setattr(judging, "roll_out", lambda act, seeds, note: judging_rollout(act, seeds))
    calls = []

    def judging_rollout(act, seeds):
        from eqx_shortcut.robots.simulation import roll_out

        calls.append(list(seeds))
        return roll_out(act, seeds, limit=8)

    quality = Quality(steps=(1,), count=2)
    first = judging.judged(policy_model, 1, quality, tmp_path)
    assert judging.judged(policy_model, 1, quality, tmp_path) == first and calls == [[100_000, 100_001]]
    judging.judged(policy_model, 1, Quality(steps=(1,), count=3), tmp_path)
    assert len(calls) == 2


def test_a_policy_answers_the_actions_to_do_and_is_warm(policy_model):
    seen = observed(np.random.default_rng(0).uniform(0, 500, (3, 2, 5)))
    policy = Policy(policy_model, steps=2)
    first = policy.act(seen)
    assert first.shape == (3, 8, 2)
    policy.reset()
    np.testing.assert_array_equal(policy.act(seen), first)
    # An untrained network does not move: a warm plan is half the last one, moved on by 8, and half noise.
    cold, warm = Policy(policy_model, steps=2, first=0), Policy(policy_model, steps=2, first=0, warm=1)
    before = Policy(policy_model, steps=2, first=8).act(seen)
    for policy in (cold, warm):
        policy.act(seen)
    np.testing.assert_allclose(warm.act(seen), (before + cold.act(seen)) / 2, atol=1e-6)
    with pytest.raises(ValueError, match="1 robots after a plan of 3: reset the policy, or make one for each number"):
        warm.act(jax.tree.map(lambda leaf: leaf[:1], seen))
    with pytest.raises(ValueError, match="actions 1 to 16 of windows of 16"):
        Policy(policy_model, execute=16)
    with pytest.raises(ValueError, match="warm=1 of steps=1"):
        Policy(policy_model, warm=1)


def test_a_warm_plan_of_diffusion_lies_on_its_path(policy_model):
    """That network answers no noise: a plan from the start is the noise over the path's first weight."""
    model = dataclasses.replace(policy_model, objective=Diffusion(steps=8))
    seen = observed(np.random.default_rng(0).uniform(0, 500, (3, 2, 5)))
    cold, warm = Policy(model, steps=2, first=0), Policy(model, steps=2, first=0, warm=1)
    before = Policy(model, steps=2, first=8).act(seen)
    for policy in (cold, warm):
        policy.act(seen)
    (first, _), (data, noise) = map(paths.variance_preserving, (jnp.float32(0), jnp.float32(0.5)))
    np.testing.assert_allclose(warm.act(seen), before + noise / data * first * cold.act(seen), rtol=1e-4)


def test_a_warm_plan_has_the_new_noise_of_a_sample(policy_model):
    model = dataclasses.replace(policy_model, objective=ConsistencyTraining(steps=8))
    seen = observed(np.random.default_rng(0).uniform(0, 500, (3, 2, 5)))
    policy = Policy(model, steps=3, first=0, execute=1, warm=1)
    plans = []
    for _ in range(2):
        policy.act(seen)
        plans.append(np.asarray(policy._plan))
    key = jax.random.fold_in(jax.random.key(0), 1)
    point = np.concatenate([plans[0][:, 1:], plans[0][:, -1:]], axis=1) / 3 + 2 / 3 * normal(model, key, jnp.arange(3))
    expected = sample_from(model, key, jnp.asarray(point), 3, conditions=seen, done=1)
    np.testing.assert_allclose(plans[1], expected, atol=1e-5)
    # One jump from a point, put back by the noise of the second step, and another: an untrained network does not move.
    later = normal(model, jax.random.fold_in(key, 2**31 + 1), jnp.arange(3))
    np.testing.assert_allclose(expected, 2 / 3 * point + later / 3, atol=1e-5)


def test_a_simulator_that_is_not_installed_is_named(monkeypatch):
    import sys

    from eqx_shortcut.robots.simulation import board

    monkeypatch.setitem(sys.modules, "gym_pusht.envs.pusht", None)
    with pytest.raises(ValueError, match=r"the simulator of Push-T is not installed .*: pip install 'eqx_shortcut"):
        board()


def test_an_observation_of_another_size_is_refused(policy_model):
    with pytest.raises(ValueError, match="10 numbers observed, the network sees 12"):
        policy_model.network(jnp.zeros((16, 2)), jnp.zeros(()), jnp.ones(()), {"seen": jnp.zeros(10)})


def test_a_transformer_over_time_answers_actions_and_sees_order_and_observation():
    network = DiTConfig(hidden=16, depth=1, heads=2, patch=1, step="linear", observed=3).build((6, 2), 0, key=jax.random.key(0))
    # An untrained one answers 0.
    network = jax.tree.map(lambda leaf: leaf + 0.3 * jax.random.normal(jax.random.key(2), leaf.shape), network)
    x, t, seen = jax.random.normal(jax.random.key(1), (6, 2)), jnp.asarray(0.5), {"state": jnp.arange(3.0)}
    one = network(x, t, t, seen)
    assert one.shape == (6, 2)
    assert not np.allclose(network(x[::-1], t, t, seen)[::-1], one)
    assert not np.allclose(network(x, t, t, {"state": -jnp.arange(3.0)}), one)


def test_a_policy_in_one_file_plans_the_same(tmp_path, policy_model, monkeypatch, capsys):
    pytest.importorskip("flatbuffers", reason="the file's format: pip install flatbuffers")
    monkeypatch.setattr("eqx_shortcut.trained.load", lambda *_, **__: policy_model)
    export.main(export.Config(run=tmp_path, steps=2, out=tmp_path / "policy.bin"))
    assert "{'agent': f32[2,2], 'block': f32[2,4]}\n# x: the data's units, (count, 16, 2)" in capsys.readouterr().out
    seen = observed(np.random.default_rng(0).uniform(0, 500, (3, 2, 5)))
    found = jax_export.deserialize(bytearray((tmp_path / "policy.bin").read_bytes())).call(np.uint32(0), seen)
    np.testing.assert_allclose(found, sample(policy_model, jax.random.key(0), 3, 2, conditions=seen), atol=1e-5)
