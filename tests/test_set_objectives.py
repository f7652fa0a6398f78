"""Losses on sets and on moments as objectives: what they hand to their loss, their features, and a memory that continues."""

import contextlib
import pathlib
from types import SimpleNamespace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from eqx_shortcut import Batch, losses, sharding
from eqx_shortcut.checkpoint import Checkpoints
from eqx_shortcut.commands import evaluate
from eqx_shortcut.evaluate import Pixels
from eqx_shortcut.evaluate.networks import classifier_features
from eqx_shortcut.evaluate.results import caution
from eqx_shortcut.models import NetworkField
from eqx_shortcut.objectives import Drifting, Frechet, MeanFlow, Networks, Reward, SinkhornFlow
from eqx_shortcut.pretrained.small_classifier import SmallClassifier, save_classifier
from eqx_shortcut.train import init_state, make_step

N, PROGRESS = 8, jnp.float32(0.5)


class Toy(eqx.Module):
    """A network of one example; with a key it adds noise, as dropout would."""

    weight: jax.Array

    def __call__(self, x, t, d, cond, *, key=None):
        noise = 0.0 if key is None else jax.random.normal(key, x.shape)
        return self.weight * x + t - d + cond.astype(x.dtype) / 10 + noise


def networks() -> Networks:
    return Networks(Toy(jnp.float32(0.5)), Toy(jnp.float32(-0.7)), null=9)


def batch() -> Batch:
    x = np.random.default_rng(0).standard_normal((N, 3))
    return Batch(jnp.asarray(x, jnp.float32), jnp.arange(N) // 4)


CASES = {
    SinkhornFlow(groups=2, epsilon=0.2, iterations=3, exponent=2.0, guidance=2.0): ("sinkhorn_flow", {"iterations": 3}),
    Drifting(groups=2, temperatures=(0.1, 0.3), guidance=2.0): ("drifting", {"temperatures": (0.1, 0.3)}),
}


@pytest.mark.parametrize("objective", CASES, ids=lambda objective: type(objective).__name__)
def test_an_objective_is_its_loss_with_dropout_on(key, objective):
    name, options = CASES[objective]
    options = {"epsilon": 0.2, "exponent": 2.0, **options} if name == "sinkhorn_flow" else options
    k_draws, k_mask = jax.random.split(key)
    field = NetworkField(networks().online, k_mask)
    expected, _ = getattr(losses, name)(field, batch(), k_draws, groups=2, guidance=2.0, **options)
    np.testing.assert_allclose(objective(networks(), batch(), key, PROGRESS)[0], expected, rtol=1e-6)
    assert objective.sets == 2 and not objective.guides(1) and objective.memory((3,)) is None


def test_the_frechet_objective_is_its_loss_of_the_moments_it_remembers(key):
    objective, k_draws = Frechet(decay=0.5, eps=0.2), jax.random.split(key)[0]
    memory = [losses.Streams(losses.Stream.of(3).updated(batch().x + 1, 1.0), losses.Stream.of(3).updated(batch().x, 1.0))]
    all = eqx.tree_at(lambda n: n.memory, networks(), memory, is_leaf=lambda leaf: leaf is None)
    field = NetworkField(all.online, jax.random.split(key)[1])
    expected, kept = losses.frechet(field, batch(), k_draws, memory=memory, decay=0.5, eps=0.2)
    for (loss, metrics), rest in (
        (objective(all, batch(), key, PROGRESS), kept),
        objective.remembered(all, batch(), key, PROGRESS),
    ):
        np.testing.assert_allclose([loss, metrics["frechet"]], [expected[0], expected[1]["frechet"]], rtol=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), rest, kept)


@pytest.mark.slow
@pytest.mark.parametrize("objective", CASES, ids=lambda objective: type(objective).__name__)
def test_sets_are_not_cut_by_devices(key, objective):
    """A set of four rows lies on four of eight devices, and its loss and gradient are those on one."""

    @jax.jit
    @jax.value_and_grad
    def loss(weight, batch):
        return objective(eqx.tree_at(lambda n: n.online.weight, networks(), weight), batch, key, PROGRESS)[0]

    def on(devices):
        with jax.set_mesh(mesh := sharding.make_mesh(devices=jax.devices()[:devices])):
            return loss(jnp.float32(0.5), jax.device_put(batch(), sharding.batch_sharding(mesh)))

    np.testing.assert_allclose(on(8), on(1), rtol=1e-4)


def total(x, cond):
    """A reward."""
    return jnp.sum(x, axis=1) + cond.astype(x.dtype)


def test_the_reward_objective_is_its_loss_on_samples_of_the_average(key):
    objective = Reward(score=f"{__name__}:total", groups=2, steps=2, beta=0.3)
    k_draws, k_mask = jax.random.split(key)
    field, old = NetworkField(networks().online, k_mask), NetworkField(networks().ema)
    expected, _ = losses.reward(field, batch(), k_draws, old=old, score=total, groups=2, steps=2, beta=0.3)
    np.testing.assert_allclose(objective(networks(), batch(), key, PROGRESS)[0], expected, rtol=1e-5)
    assert objective.sets == 2 and not objective.guides(1)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    path = tmp_path_factory.mktemp("features") / "small.safetensors"
    save_classifier(path, SmallClassifier(3, key=jax.random.key(0)), {})
    return path


def test_features_are_those_that_judge_and_say_so(classifier):
    both = Frechet(features=("pixels", str(classifier)))
    x = jax.random.uniform(jax.random.key(1), (2, 16, 16, 1), minval=-1, maxval=1)
    rows, vectors = both.vectors(x)
    judge = classifier_features(classifier, batch=2)
    np.testing.assert_array_equal(rows, x.reshape(2, -1))
    np.testing.assert_allclose(vectors, judge(np.asarray(x)).vectors, atol=1e-5)
    assert caution([judge, Pixels()], both.trained_in())["caution"].startswith(
        "the samples were trained in the features of classifier Frechet distance and pixel Frechet distance, which"
    )
    np.testing.assert_allclose(both.vectors(jnp.broadcast_to(x, (2, 16, 16, 3)))[1], vectors, rtol=1e-5)
    uneven = SinkhornFlow(features=("pixels/5",)).vectors(x)[0]  # what is left at the edges is not seen
    np.testing.assert_allclose(uneven, x[:, :15, :15, 0].reshape(2, 3, 5, 3, 5).mean((2, 4)).reshape(2, 9), rtol=1e-4)
    coarse = SinkhornFlow(features=("pixels/4",))
    np.testing.assert_allclose(coarse.vectors(x)[0][0, 1], jnp.mean(x[0, :4, 4:8]), rtol=1e-5)
    alone = SinkhornFlow()
    windows = Frechet(features=("windows/10", "pixels"))
    (*cut, whole) = jax.tree.leaves(windows.vectors(x))
    np.testing.assert_array_equal(whole, rows)
    expected = [x[:, i : i + 10, j : j + 10].reshape(2, -1) for i in (0, 3, 6) for j in (0, 3, 6)]
    np.testing.assert_array_equal(np.stack(cut), np.stack(expected))
    assert [space.data.mean.size for space in windows.memory((16, 16, 1))] == [100] * 9 + [256]
    assert [len(jax.tree.leaves(SinkhornFlow(features=(f"windows/{n}",)).vectors(x))) for n in (16, 8)] == [1, 9]
    assert windows.trained_in() == ("pixels",)
    assert coarse.trained_in() == alone.trained_in() == ("pixels",)
    assert caution([Pixels()], alone.trained_in()) and not caution([judge], alone.trained_in())
    assert MeanFlow().trained_in() == ()
    assert [space.data.mean.size for space in both.memory((16, 16, 1))] == [256, 128]


def test_a_judge_that_trained_is_marked():
    """In the protocol of a row, and so above its table."""
    given, real = evaluate.Config(run=pathlib.Path("run")), SimpleNamespace(count=3, hash=20 * "0", protocol={})
    for objective, said in ((SinkhornFlow(), 1), (Frechet(features=("pixels/2",)), 1), (MeanFlow(), 0)):
        model = SimpleNamespace(trained_in=objective.trained_in(), labelled=True)
        protocol = evaluate.protocol_of(given, model, Pixels(), real)  # pyright: ignore[reportArgumentType]
        assert ("caution" in protocol) == said
        assert not said or "pixel Frechet distance, which therefore says nothing of them" in protocol["caution"]


def test_a_loss_of_moments_takes_any_batch():
    Frechet().check(3)


def test_features_of_images_are_not_asked_of_other_rows(classifier):
    with pytest.raises(ValueError, match=r"are of images of 1 or 3 channels, and rows are of shape \(3,\): name pixels"):
        Frechet(features=(str(classifier),)).memory((3,))


REFUSED = [
    (Drifting(groups=3), r"batch 8 is not a multiple of groups=3"),
    (Drifting(groups=8), r"groups=8 of a batch of 8 are sets of one row, which tell nothing: use a batch of 16 or more"),
    (Frechet(features=()), r"features=\(\) compares nothing: name pixels"),
    (
        Frechet(features=("inception",)),
        r"features=inception: name pixels, pixels/2, windows/10, or a file FILE.safetensors of classifier.py",
    ),
    (Reward(groups=8, score=f"{__name__}:total"), r"groups=8 of a batch of 8 are sets of one row"),
    (Reward(score="nowhere:total"), r"score=nowhere:total cannot be had .*: name a reward, MODULE:FUNCTION"),
    (SinkhornFlow(features=("none.safetensors",)), r"no file none.safetensors: train a classifier with classifier.py"),
]


@pytest.mark.parametrize(("objective", "message"), REFUSED)
def test_what_cannot_be_trained_on_is_refused(objective, message):
    with pytest.raises(ValueError, match=message):
        objective.check(N)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance": 0.5}, "guidance=0.5: use 1 or more"),
        ({"temperatures": ()}, r"temperatures=\(\) are the reaches of no kernel"),
    ],
)
def test_settings_of_no_kernel_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Drifting(**options)


@pytest.mark.parametrize("name", ["pixels/5", "windows/5"])
@pytest.mark.parametrize("shape", [(4, 4, 1), (3,)])
def test_squares_larger_than_images_are_refused(name, shape):
    with pytest.raises(ValueError, match=rf"features={name} of rows of shape .* have no square of 5 x 5: name pixels"):
        Frechet(features=(name,)).memory(shape)


def test_the_memory_goes_on_from_a_checkpoint_to_the_bit_and_is_kept_by_skipped_steps(tmp_path):
    objective, tx = Frechet(decay=0.5), optax.sgd(0.1)
    step = make_step(objective, tx, prepare=lambda raw, key: raw, ema_decay=0.9, steps=10)

    def begun():
        return init_state(lambda key: Toy(jnp.float32(0.5)), tx, jax.random.key(0), memory=objective.memory((3,)))

    whole, _ = step(begun(), batch())
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        checkpoints.save(whole, {}, wait=True)
        found = checkpoints.restore(begun())
    assert found is not None and (tmp_path / "1" / "memory").is_dir()
    for state in (whole, found[0]):
        assert float(state.networks.memory[0].data.count) == 1
    states = [step(state, batch())[0] for state in (whole, found[0])]
    jax.tree.map(np.testing.assert_array_equal, states[0].networks, states[1].networks)
    assert float(states[0].networks.memory[0].samples.count) == 1.5
    kept = jax.tree.map(np.array, states[0].networks.memory)
    after, _ = step(states[0], Batch(batch().x * jnp.nan, batch().cond))
    assert int(after.skipped) == 1
    jax.tree.map(np.testing.assert_array_equal, after.networks.memory, kept)
