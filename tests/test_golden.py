"""Numbers of the original code, recorded (tests/golden/README.md); `--golden DIR` checks any folder of that layout."""

import dataclasses
import functools
import json
import pathlib
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqx_shortcut import guidance, losses, reference, rows, steps, times
from eqx_shortcut.models import DiTConfig, NetworkField
from eqx_shortcut.models.layers import position_table, sinusoids
from eqx_shortcut.types import Draws

ACTIVATIONS = {
    "patch_embed": "patches",
    "pos_embed": "position",
    "time_embed": "time",
    "dt_embed": "step",
    "label_embed": "label",
    "conditioning": "conditioning",
    "final_layer": "final",
}
KEY_BIAS = re.compile(r"DiTBlock_\d+/Dense_1/bias")


@pytest.fixture(autouse=True)
def exact_products():
    with jax.default_matmul_precision("highest"):
        yield


@functools.cache
def load(path: pathlib.Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def below(prefix: str, stored: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix(f"{prefix}/"): value for name, value in stored.items() if name.startswith(f"{prefix}/")}


def names_of(folder: pathlib.Path, pattern: str, name: str) -> list:
    """`(file, first group)` for each distinct match of `name` among the arrays of the files of `pattern`, or one skip."""
    found = {}
    for path in sorted(folder.glob(pattern)):
        with np.load(path, allow_pickle=False) as stored:
            for key in stored.files:
                if match := re.fullmatch(name, key):
                    found[f"{path.stem}-{match[1].replace('/', '-')}"] = (path, match[1])
    if not found:
        return [pytest.param(None, id="absent", marks=pytest.mark.skip(reason=f"{folder} has no {pattern} with {name}"))]
    return [pytest.param(case, id=key) for key, case in found.items()]


CASES = {
    "forward": ("model_*.npz", r"((?:f32|bf16)/(?:dt|ignore_dt))/out"),
    "gradient": ("model_*.npz", r"(f32/(?:dt|ignore_dt))/loss_mean_sq"),
    "position": ("utils.npz", r"(pos_embed/.*)"),
    "timestep": ("utils.npz", r"(timestep/(?!t$).*)"),
    "naive": ("targets_naive.npz", r"(.+)/flags"),
    "shortcut": ("targets_shortcut.npz", r"(.+)/flags"),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    folder = pathlib.Path(str(metafunc.config.getoption("--golden")))
    for name in CASES.keys() & set(metafunc.fixturenames):
        metafunc.parametrize(name, names_of(folder, *CASES[name]))


# Networks


@functools.cache
def stored_network(path: pathlib.Path, prefix: str):
    """The network of `config` that holds the parameters stored under `prefix`."""
    stored = load(path)
    config = json.loads(str(stored["config"]))
    dit = DiTConfig(
        hidden=config["hidden_size"],
        depth=config["depth"],
        heads=config["num_heads"],
        patch=config["patch_size"],
        mlp_ratio=config["mlp_ratio"],
    )
    shape = stored["x" if "x" in stored else "images"].shape[1:]
    return reference.from_parameters(below(prefix, stored), dit, shape, config["num_classes"])


def with_options(network, **options):
    """The same parameters under another precision or embedding of the step."""
    config = dataclasses.replace(network.config, **options)
    other = eqx.filter_eval_shape(lambda key: config.build(network.shape, network.classes, key=key), jax.random.key(0))
    return jax.tree.unflatten(jax.tree.structure(other), jax.tree.leaves(network))


def model_case(case):
    """Stored arrays of the case, its network, and the inputs `x, t, d, label`."""
    path, run = case
    stored = load(path)
    dtype, mode = run.split("/")
    network = with_options(
        stored_network(path, "params"),
        precision={"f32": "float32", "bf16": "bfloat16"}[dtype],
        step={"dt": "log2", "ignore_dt": "none"}[mode],
    )
    x, t, dt, label = (jnp.asarray(stored[name]) for name in ("x", "t", "dt", "y"))
    return below(run, stored), network, (x, t, jnp.exp2(-dt), label)


def assert_near(value, expected, dtype: str) -> None:
    value, expected = np.asarray(value, np.float32), np.asarray(expected)
    assert value.shape == expected.shape
    if dtype == "f32":
        np.testing.assert_allclose(value, expected, atol=3e-5, rtol=1e-5)
    else:
        np.testing.assert_allclose(value, expected, atol=0.15, rtol=0)
        assert np.sqrt(np.mean((value - expected) ** 2)) < 0.03


@eqx.filter_jit
def run(network, inputs):
    field, activations = NetworkField(network), eqx.filter_vmap(network.activations)
    return field(*inputs), activations(*inputs), jax.vmap(network.log_variance)(inputs[1])


def test_forward(forward):
    expected, network, inputs = model_case(forward)
    dtype = forward[1].split("/")[0]
    out, found, logvars = run(network, inputs)
    assert str(out.dtype) == str(expected["out_dtype"])
    assert_near(out, expected["out"], dtype)
    np.testing.assert_allclose(logvars[:, None], expected["logvars"], atol=3e-5, rtol=1e-5)
    recorded, dtypes = below("act", expected), below("act_dtype", expected)
    assert len(recorded) == len(ACTIVATIONS) + network.config.depth
    for name, value in recorded.items():
        block = re.fullmatch(r"dit_block_(\d+)", name)
        ours = found["blocks"][:, int(block[1])] if block else found[ACTIVATIONS[name]]
        ours = ours[:1] if name == "pos_embed" else ours
        assert str(ours.dtype) == str(dtypes[name]), name
        assert_near(ours, value, dtype)


def test_gradients(gradient):
    expected, network, inputs = model_case(gradient)

    @eqx.filter_jit
    @eqx.filter_value_and_grad
    def loss(network):
        return jnp.mean(jnp.square(NetworkField(network)(*inputs)))

    value, grad = loss(network)
    np.testing.assert_allclose(value, expected["loss_mean_sq"], rtol=1e-5)
    found, recorded = reference.to_parameters(grad), below("grad", expected)
    assert found.keys() == recorded.keys()
    for name, value in recorded.items():
        if KEY_BIAS.fullmatch(name):
            assert np.abs(found[name]).max() < 1e-7, name
        else:
            atol = 1e-5 * np.abs(value).max() + 1e-7
            np.testing.assert_allclose(found[name], value, atol=atol, rtol=0, err_msg=name)
    assert not np.any(found["Embed_0/embedding"])


def test_position_table(position):
    path, name = position
    recorded = load(path)[name]
    match = re.match(r"pos_embed/h(\d+)_n(\d+)(?:/rows_([\d_]+))?", name)
    assert match
    side = round(int(match[2]) ** 0.5)
    table = position_table(int(match[1]), side, side)
    if match[3]:
        table = table[[int(row) for row in match[3].split("_")]]
    np.testing.assert_allclose(table, recorded.reshape(table.shape), atol=1e-6)


def test_timestep_embedding(timestep):
    path, name = timestep
    recorded, t = load(path)[name], jnp.asarray(load(path)["timestep/t"])
    waves = jax.vmap(lambda value: sinusoids(value, recorded.shape[-1]))(t)
    if name.endswith("bf16"):
        waves = waves.astype(jnp.bfloat16).astype(jnp.float32)
        np.testing.assert_allclose(waves, recorded, rtol=2**-7, atol=1e-6)
    else:
        np.testing.assert_allclose(waves, recorded, atol=1e-6)


# Targets. A case is rebuilt from its recorded draws by the builders that the losses use.


class Case:
    """One recorded call of the reference's target function: its flags, arrays, images and networks."""

    def __init__(self, case):
        self.path, name = case
        self.stored = below(name, load(self.path))
        self.flags = json.loads(str(self.stored["flags"]))
        self.model = self.flags["model"]
        common = self.path.parent / "targets_common.npz"
        if not common.exists():
            pytest.skip(f"{common} is absent: it holds the images and parameters of {self.path.name}")
        self.common = load(common)
        self.size, self.steps = self.flags["batch_size"], self.model["denoise_timesteps"]
        self.null = jnp.asarray(self.model["num_classes"], jnp.int32)
        self.labels = jnp.asarray(self.stored["labels_in"])

    def __getitem__(self, name: str) -> jax.Array:
        return jnp.asarray(self.stored[name])

    def images(self) -> jax.Array:
        return jnp.asarray(self.common["images"][: self.size])

    def field(self, parameters: str):
        """The network that holds one of the parameter sets, compiled once a batch size."""
        network = stored_network(self.path.parent / "targets_common.npz", parameters)
        step = "none" if self.flags["ignore_dt"] else "log2"
        network = with_options(network, precision="float32", step=step)
        return functools.partial(evaluate, network)

    def times(self, name: str, sections) -> jax.Array:
        """Recorded integers over `sections`, unless the case forces a time."""
        t = self[name].astype(jnp.float32) / jnp.asarray(sections, jnp.float32)
        return t if self.flags["force_t"] == -1 else jnp.full_like(t, self.flags["force_t"])

    def flow(self, noise, images, n: int) -> Draws:
        """Draws of the first `n` flow rows."""
        dropped = rows.where_rows(self["label_dropout_mask"], jnp.broadcast_to(self.null, self.labels.shape), self.labels)
        t = self.times("t_flow_int", self.steps)
        d = jnp.full_like(t, 1 / self.steps)
        return jax.tree.map(lambda a: a[:n], Draws(images, noise, t, d, dropped))


@eqx.filter_jit
def evaluate(network, x, t, d, cond):
    return NetworkField(network)(x, t, d, cond)


def rms(x) -> float:
    return float(jnp.sqrt(jnp.mean(jnp.square(x))))


def assert_targets(case: Case, found, levels) -> None:
    """The regression equals the recorded one row by row; `levels` are log2 of its numbers of steps."""
    np.testing.assert_array_equal(found.t, case["t"])
    np.testing.assert_array_equal(levels, case["dt_base"])
    np.testing.assert_array_equal(found.cond, case["labels_out"])
    np.testing.assert_allclose(found.x, case["x_t"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(found.u, case["v_t"], atol=2e-5, rtol=1e-5)
    np.testing.assert_allclose(jnp.mean(case["label_dropout_mask"].astype(float)), case["info/dropped_ratio"], rtol=1e-6)


def test_naive_targets(naive):
    case = Case(naive)
    if "latent" in case.flags["dataset_name"]:
        noise, images = jnp.split(case["images_override"], 2, axis=-1)
    else:
        noise, images = case["x_0"], case.images()
    found = losses.flow_target(case.flow(noise, images, case.size))
    np.testing.assert_array_equal(found.d, np.float32(1 / case.steps))
    assert_targets(case, found, np.full(case.size, int(np.log2(case.steps))))


def test_shortcut_targets(shortcut):
    case = Case(shortcut)
    n, bias = case.size // case.model["bootstrap_every"], bool(case.model["bootstrap_dt_bias"])
    levels = times.dyadic_levels(n, case.steps, bias=bias)
    if case.flags["force_dt"] != -1:
        levels = np.full(n, case.flags["force_dt"])
    t = case.times("t_bootstrap_int", 2.0**levels)
    d = jnp.exp2(-jnp.asarray(levels, jnp.float32))
    draws = Draws(case.images()[:n], case["x_0_bootstrap"], t, d, case.labels[:n])
    target = case.field("params_ema" if case.model["bootstrap_ema"] else "params")
    scale = float(case.model["cfg_scale"]) if case.model["bootstrap_cfg"] else 1.0
    first = times.finest_rows(n, case.steps, bias=bias)

    bootstrap = losses.bootstrap_target(target, draws, guidance=scale, null=case.null, guided_rows=first)
    flow = losses.flow_target(case.flow(case["x_0"], case.images(), case.size - n))
    found = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), bootstrap, flow)
    finest = times.log2_steps(case.steps)
    assert_targets(case, found, np.concatenate([levels, np.full(case.size - n, finest)]))

    halves = []

    def recorded(x, t, d, cond):
        halves.append(guidance.guided(target, scale, case.null, first=first)(x, t, d, cond))
        return halves[-1]

    steps.two_steps(recorded, bootstrap.x, draws.t, draws.d, draws.cond, clip=4.0)
    for name, u in {"b1": halves[0], "b2": halves[1], "bootstrap": bootstrap.u}.items():
        np.testing.assert_allclose(rms(u), case[f"info/v_magnitude_{name}"], rtol=1e-5)
