"""Published transformers: their authors' answers, their conventions at the closed form, and the same weights in and out."""

import dataclasses
import functools
import math
import pathlib

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import published
from eqx_shortcut.models import DiTConfig, NetworkField
from eqx_shortcut.models.noise import LEVELS as COUNT
from eqx_shortcut.models.noise import TIMES, velocity_by_noise
from eqx_shortcut.pretrained.transformers import (
    CONVENTIONS,
    exported,
    from_diffusers,
    from_flax,
    from_tensors,
    to_diffusers,
    to_tensors,
    with_positions,
)
from published import CHANNELS, CLASSES, HEADS, LABELS, LEVELS, PATCH, SIZE, D, T, images, weights

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
SHAPES = published.shapes("transformer_shapes.json")
CLOSE = {"rtol": 0, "atol": 2e-4}


@functools.cache
def recorded() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "transformers.npz") as file:
        return dict(file)


def tensors(kind: str) -> dict[str, np.ndarray]:
    """SiT and DiT have the same names; MeanFlow's are of Flax."""
    if kind == "meanflow":
        return from_flax(weights(SHAPES["meanflow"]))
    return weights(SHAPES["esc" if kind == "esc" else "small"])


@functools.cache
def network(kind: str):
    return from_tensors(tensors(kind), kind, key=jax.random.key(0), size=SIZE, heads=HEADS)  # pyright: ignore


@eqx.filter_jit
def answers(network, x, t, d):
    return NetworkField(network)(x, t, d, jnp.asarray(LABELS))


def test_sit_answers_as_its_code_does():
    """Its time and velocity are ours; it sees no step size."""
    expected = recorded()["sit"]
    assert expected.std() > 0.5
    for d in (np.ones_like(D), D):
        np.testing.assert_allclose(
            answers(network("sit"), jnp.asarray(images()), jnp.asarray(T), jnp.asarray(d)), expected, **CLOSE
        )


@pytest.mark.parametrize("kind", ["meanflow", "esc"])
def test_mean_flow_and_esc_answer_as_their_code_does(kind):
    """Recorded at their times `1 - t` and gaps `d`; their velocity points to the noise."""
    expected = -recorded()[kind]
    assert expected.std() > 0.5
    found = answers(network(kind), jnp.asarray(images()), jnp.asarray(T), jnp.asarray(D))
    np.testing.assert_allclose(found, expected, **CLOSE)


def path(level: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights of data and noise at a level, from the products that define them."""
    kept = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[level]
    return np.sqrt(kept), np.sqrt(1 - kept)


def test_dit_answers_the_velocity_of_its_codes_noise():
    """At points that are on both paths, by the definition of its path in float64."""
    a, s = (w[:, None, None, None] for w in path(LEVELS))
    x, t = images() / (a + s), (a / (a + s))[:, 0, 0, 0].astype(np.float32)
    noise = recorded()["dit"][..., :CHANNELS]
    expected = (images() - s * noise) / a - noise
    found = answers(network("dit"), jnp.asarray(x, jnp.float32), jnp.asarray(t), jnp.asarray(D))
    # The noise is divided by the data's weight, 0.0064 at the last level, and float32 knows a level to 1e-4 of 1,000.
    np.testing.assert_allclose(found * a, expected * a, rtol=0, atol=2e-3)
    raw = from_tensors(tensors("dit"), "sit", key=jax.random.key(0), heads=HEADS, size=SIZE)
    np.testing.assert_allclose(
        answers(raw, jnp.asarray(images()), jnp.asarray(LEVELS, jnp.float32), jnp.asarray(D)), noise, **CLOSE
    )


def closed_form(x, t, m=0.4, sd=0.7):
    """The velocity of data N(m, sd^2) and noise N(0, 1) on the linear path."""
    return m + (t * sd**2 - (1 - t)) / ((1 - t) ** 2 + t**2 * sd**2) * (x - t * m)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("level", [0, 17.25, 400, 998.5, 999])
def test_the_exact_noise_is_the_exact_velocity(level, m=0.4, sd=0.7):
    kept = np.interp(level, np.arange(COUNT), np.log(TIMES / (1 - TIMES)))
    t, x = 1 / (1 + np.exp(-kept)), np.linspace(-2, 2, 5)
    a, s = t / math.hypot(t, 1 - t), (1 - t) / math.hypot(t, 1 - t)

    def exact(x, asked):
        np.testing.assert_allclose(asked, level, atol=1e-6)
        return s * (x - a * m) / (a**2 * sd**2 + s**2)

    np.testing.assert_allclose(
        velocity_by_noise(exact, jnp.asarray(x), jnp.asarray(t)), closed_form(x, t), rtol=1e-9, atol=1e-9
    )


def test_levels_are_those_of_the_path():
    a, s = path(np.arange(1000))
    np.testing.assert_allclose(TIMES, a / (a + s), rtol=1e-9)


def test_before_the_last_level_the_velocity_is_finite_and_smooth():
    velocity = lambda t: velocity_by_noise(lambda x, level: jnp.full(3, 0.9), jnp.ones(3), t)  # noqa: E731
    for t in (0.0, 1.0):
        value, slope = jax.jvp(velocity, (jnp.float32(t),), (jnp.float32(1),))
        assert jnp.isfinite(value).all() and not slope.any()


def flow(x, t, r, m=0.4, sd=0.7):
    """Where the linear path's flow takes `x` from `t` to `r`, 0 noise and 1 data, for data N(m, sd^2)."""
    spread = lambda t: math.hypot(1 - t, t * sd)  # noqa: E731
    return r * m + spread(r) / spread(t) * (x - t * m)


THEIRS = {
    # x_t = t data + (1 - t) noise, and the velocity alone.
    "sit": lambda x, t, gap: closed_form(x, t),
    # z_t = (1 - t) data + t noise, u = (z_t - z_r) / (t - r) with r = t - gap, at which less noise is left.
    "meanflow": lambda z, t, gap: (z - flow(z, 1 - t, 1 - (t - gap))) / gap,
}
THEIRS["esc"] = THEIRS["meanflow"]


@pytest.mark.parametrize("kind", THEIRS)
def test_conventions_at_the_closed_form(kind):
    """What theirs answers, defined in their terms, becomes the average velocity in ours, of `d = 0` where none is seen."""
    known, x, t = CONVENTIONS[kind], np.linspace(-2, 2, 5), 0.3
    d = 1e-7 if known.step == "none" else 0.5
    there = THEIRS[kind](x, 1 - t if known.time == "reversed" else t, d)
    np.testing.assert_allclose(known.sign * there, (flow(x, t, t + d) - x) / d, atol=1e-6)


@pytest.mark.parametrize("kind", CONVENTIONS)
def test_weights_go_in_and_out_to_the_bit(kind):
    found, expected = to_tensors(network(kind), kind), tensors(kind)
    expected = {name: value for name, value in expected.items() if name in found and len(found[name]) == len(value)}
    assert len(expected) >= len(found) - 2, "all but the variances"
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    again = from_tensors(with_positions(network(kind), kind), kind, key=jax.random.key(0), size=SIZE, heads=HEADS)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(network(kind)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_variances_are_the_second_half_of_each_pixel():
    found = to_tensors(network("sit"), "sit")["final_layer.linear.bias"]
    given = tensors("sit")["final_layer.linear.bias"].reshape(PATCH**2, 2, CHANNELS)
    np.testing.assert_array_equal(found.reshape(PATCH**2, CHANNELS), given[:, 0])


def test_diffusers_names_go_out_and_in_to_the_bit():
    given = {name: np.asarray(value) for name, value in to_tensors(network("dit"), "dit").items()}
    found = from_diffusers(to_diffusers(given))
    assert found.keys() == given.keys()
    for name, value in given.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_embeddings_that_differ_between_blocks_are_refused():
    there = to_diffusers(to_tensors(network("dit"), "dit"))
    name = "transformer_blocks.1.norm1.emb.timestep_embedder.linear_1.bias"
    with pytest.raises(ValueError, match="differs from its copy in another block"):
        from_diffusers({**there, name: there[name] + 1})


@pytest.mark.parametrize("step", ["none", "log2"])
def test_a_flow_model_of_ours_is_a_sit(step):
    """Its step branch is a constant and its logits have another scale, both of which go into weights."""
    config = DiTConfig(hidden=24, depth=2, heads=2, mlp_ratio=1, step=step, precision="float32")
    build = lambda key: config.build((SIZE, SIZE, CHANNELS), CLASSES, key=key)  # noqa: E731
    ours = eqx.filter_eval_shape(build, jax.random.key(3))
    rng = np.random.default_rng(2)
    ours = jax.tree.map(lambda a: jnp.asarray(0.2 * rng.standard_normal(a.shape), jnp.float32), ours)
    out, kind = exported(ours, 1 / 8)
    assert kind == "sit"
    theirs = from_tensors(with_positions(out, kind), kind, key=jax.random.key(0), heads=HEADS)
    given = jnp.asarray(images()), jnp.asarray(T), jnp.full(4, 1 / 8)
    np.testing.assert_allclose(answers(theirs, *given), answers(ours, *given), atol=1e-5)


@pytest.mark.parametrize("options", [{"qk_norm": True}, {"mlp": "swiglu"}, {"positions": "rotary"}, {"embed_scale": 100.0}])
def test_a_network_of_another_kind_is_no_sit(options):
    ours = eqx.filter_eval_shape(
        lambda key: DiTConfig(hidden=16, depth=1, heads=2, **options).build((4, 4, 1), 2, key=key), jax.random.key(0)
    )
    (name,) = options
    with pytest.raises(ValueError, match=f"{name}=.* is none of SiT's or DiT's"):
        exported(ours, 1 / 8)


def without(name: str) -> dict[str, np.ndarray]:
    return {key: value for key, value in tensors("sit").items() if key != name}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (without("blocks.1.attn.proj.bias"), r"1 missing \(blocks.1.attn.proj.bias\), 0 left over"),
        ({**tensors("sit"), "extra": np.zeros(2)}, r"0 missing, 1 left over \(extra\)"),
        (
            {**tensors("sit"), "t_embedder.mlp.0.bias": np.zeros(7)},
            r"t_embedder.mlp.0.bias has shape \(7,\), .* asks for \(24,\)",
        ),
        ({**tensors("sit"), "pos_embed": np.ones((1, 16, 24))}, "is not the sine-cosine table"),
        ({"conv_in.weight": np.zeros((4, 4))}, "lack x_embedder.proj.weight: they are of no network of SiT"),
        (tensors("meanflow"), r"4 left over \(h_embedder"),
    ],
    ids=["missing", "left over", "shape", "positions", "another", "meanflow"],
)
def test_other_tensors_are_refused_by_name(given, said):
    with pytest.raises(ValueError, match=said):
        from_tensors(given, "sit", key=jax.random.key(0), size=SIZE, heads=HEADS)


def test_what_shapes_do_not_tell_has_to_be_given():
    with pytest.raises(ValueError, match="give it with --heads"):
        from_tensors(tensors("sit"), "sit", key=jax.random.key(0), size=SIZE)
    with pytest.raises(ValueError, match="give it with --size"):
        from_tensors(tensors("sit"), "sit", key=jax.random.key(0), heads=HEADS)
    with pytest.raises(ValueError, match="--size 4, and pos_embed is of images of 8 x 8"):
        from_tensors(with_positions(network("sit"), "sit"), "sit", key=jax.random.key(0), heads=HEADS, size=4)


def test_a_step_branch_that_adds_nothing_can_learn():
    step = network("sit").step
    assert not step.out.kernel.any() and not step.out.bias.any() and step.hidden.kernel.any()
    assert dataclasses.asdict(network("sit").config)["logits"] == "root"
    assert published.SETTINGS["hidden_size"] == network("sit").config.hidden
