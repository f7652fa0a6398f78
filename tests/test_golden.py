"""Numbers of the original code, recorded (tests/golden/README.md); `--golden DIR` checks any folder of that layout."""

import json
import pathlib
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqx_shortcut import guidance, objectives, paths, reference, steps, times
from eqx_shortcut.models import NetworkField
from eqx_shortcut.models.dit import PRESETS, preset
from eqx_shortcut.models.layers import position_table, sinusoids
from eqx_shortcut.train import make_step
from golden_cases import (
    ACTIVATIONS,
    KEY_BIAS,
    Replay,
    below,
    beside,
    cases,
    consistency_draws,
    initial_state,
    level_draws,
    level_of,
    load,
    named,
    optimizer,
    progressive_guidance,
    recorded_batch,
    recorded_names,
    rms,
    shortcut_draws,
    shortcut_teacher,
    stored_call,
    stored_network,
    targets,
    text,
    with_options,
)

CASES = {
    "forward": ("model_*.npz", r"((?:f32|bf16)/(?:dt|ignore_dt))/out"),
    "gradient": ("model_*.npz", r"(f32/(?:dt|ignore_dt))/loss_mean_sq"),
    "position": ("utils.npz", r"(pos_embed/.*)"),
    "timestep": ("utils.npz", r"(timestep/(?!t$).*)"),
    "naive": ("targets_naive.npz", r"(.+)/flags"),
    "shortcut": ("targets_shortcut.npz", r"(.+)/flags"),
    "live_reflow": ("targets_livereflow.npz", r"(.+)/flags"),
    "progressive": ("targets_progressive.npz", r"(.+)/flags"),
    "consistency": ("targets_consistency.npz", r"(.+)/flags"),
    "distillation": ("targets_consistency_distillation.npz", r"(.+)/flags"),
    "training": ("train.npz", r"(.+)/flags"),
    "sampling": ("sampling.npz", r"(.+/cfg[^/]+)/N\d+/x1"),
    "pickled": ("checkpoint_*.pkl", None),
    "layout": ("sharding_fsdp_*devices.json", r"(.+)"),
    "model_size": ("model_sizes.json", r"(.+)"),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    folder = pathlib.Path(str(metafunc.config.getoption("--golden")))
    for name in CASES.keys() & set(metafunc.fixturenames):
        metafunc.parametrize(name, cases(folder, *CASES[name]))


@pytest.fixture(autouse=True)
def exact_products():
    with jax.default_matmul_precision("highest"):
        yield


# Networks


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
    activations = recorded_names(found)
    for name, value in recorded.items():
        ours = activations[name][:1] if name == "pos_embed" else activations[name]
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
    assert found.keys() == below("params", load(gradient[0])).keys() >= recorded.keys()
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


# Targets


def assert_targets(call, found, stored, *, atol: float = 2e-5) -> None:
    np.testing.assert_array_equal(found.t, stored["t"])
    np.testing.assert_array_equal(found.cond, stored["labels_out"])
    np.testing.assert_allclose(found.x, stored["x_t"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(found.u, stored["v_t"], atol=atol, rtol=1e-5)
    if "info/dropped_ratio" in stored:
        np.testing.assert_allclose(np.mean(call.dropped == call.null), stored["info/dropped_ratio"], rtol=1e-6)


def assert_magnitudes(stored, **magnitudes) -> None:
    """`b1` and `b2`, of the two calls of a teacher, and of the `bootstrap` target."""
    for name, value in magnitudes.items():
        np.testing.assert_allclose(rms(value), stored[f"info/v_magnitude_{name}"], rtol=1e-5, err_msg=name)


def kept(field, answers: list):
    """The field, its answers kept in a list."""

    def ask(x, t, d, cond):
        answers.append(field(x, t, d, cond))
        return answers[-1]

    return ask


def at_levels(case):
    """The recorded call, and our targets for it, which are the recorded ones at the recorded step sizes."""
    call, fields, stored = stored_call(*case)
    found = targets(call, fields)
    assert_targets(call, found, stored)
    np.testing.assert_array_equal(-np.log2(np.asarray(found.d)), stored["dt_base"])
    return call, fields, stored, found


def test_naive_targets(naive):
    at_levels(naive)


def test_shortcut_targets(shortcut):
    call, fields, stored, found = at_levels(shortcut)
    bootstrapped = np.asarray(found.d) != np.float32(1 / call.steps)
    np.testing.assert_allclose(bootstrapped.mean(), stored["info/bootstrap_ratio"], rtol=1e-6)

    target, options = shortcut_teacher(call, fields)
    teacher = options["guidance"].of(target, first=options["guided_rows"])
    draws, halves = shortcut_draws(call), []
    x, _ = paths.linear(draws.noise, draws.x, draws.t)
    steps.two_steps(kept(teacher, halves), x, draws.t, draws.d, draws.cond, clip=4.0)
    assert_magnitudes(stored, b1=halves[0], b2=halves[1], bootstrap=found.u[: call.first])


def test_live_reflow_targets(live_reflow):
    at_levels(live_reflow)


def test_progressive_targets(progressive):
    call, fields, stored, found = at_levels(progressive)

    draws, halves = level_draws(call), []
    teacher = guidance.guided(fields.teacher, progressive_guidance(call), call.null)
    x, _ = paths.linear(draws.noise, draws.x, draws.t)
    steps.two_steps(kept(teacher, halves), x, draws.t, draws.d, draws.cond, clip=4.0)
    assert_magnitudes(stored, b1=halves[0], b2=halves[1], bootstrap=found.u)


def test_consistency_targets(consistency):
    call, fields, stored = stored_call(*consistency)
    answers = []
    found = targets(call, fields._replace(ema=kept(fields.ema, answers)))
    assert_targets(call, found, stored, atol=1e-4)
    np.testing.assert_array_equal(found.d, 1 - found.t)
    # The reference's first magnitude is that of the gap between the two points.
    gap = jnp.exp2(-jnp.asarray(stored["dt_base"], jnp.float32))
    draws = consistency_draws(call, 1 / gap)
    later, _ = paths.linear(draws.noise, draws.x, draws.t + gap)
    assert_magnitudes(stored, b1=later - found.x, b2=answers[0], bootstrap=found.u)


def test_distillation_targets(distillation):
    call, fields, stored = stored_call(*distillation)
    answers = []
    found = targets(call, fields._replace(ema=kept(fields.ema, answers), teacher=kept(fields.teacher, answers)))
    assert_targets(call, found, stored, atol=1e-4)
    np.testing.assert_array_equal(found.d, 1 - found.t)
    np.testing.assert_array_equal(stored["dt_base"], times.log2_steps(call.steps))
    assert_magnitudes(stored, b1=answers[0], b2=answers[1], bootstrap=found.u)


def assert_schedule(flags, step: int, recorded) -> None:
    """Our objectives train at the recorded level, but for the last step, where the reference leaves the range."""
    level = level_of(flags, step)
    if step == flags["max_steps"]:
        stages = times.log2_steps(flags["model"]["denoise_timesteps"])
        last, outside = {"progressive": (0, -1), "consistency": (stages - 1, stages)}[flags["model"]["train_type"]]
        assert level == last
        level = outside
    np.testing.assert_array_equal(recorded, level)


def test_progressive_schedule(progressive):
    call, _, stored = stored_call(*progressive)
    assert_schedule(call.flags, call.flags["step"], stored["dt_base"])


def test_consistency_schedule(consistency):
    call, _, stored = stored_call(*consistency)
    assert_schedule(call.flags, call.flags["step"], stored["dt_base"])


# Training


def norm(parameters: dict[str, np.ndarray]) -> float:
    return float(np.sqrt(sum(np.sum(np.square(value, dtype=np.float64)) for value in parameters.values())))


def assert_parameters(found, recorded, key_bias: float) -> None:
    for name, value in recorded.items():
        atol = key_bias if KEY_BIAS.fullmatch(name) else 1e-6
        np.testing.assert_allclose(found[name], value, atol=atol, rtol=0, err_msg=name)


def assert_optimizer(opt_state, recorded) -> None:
    """Moments to the tolerance of gradients, of which they are means: 1e-5 of the largest value, twice that for squares."""
    adam, _, schedule = opt_state
    assert int(adam.count) == recorded["0/0/count"] and int(schedule.count) == recorded["0/2/count"]
    for moment, relative, absolute in (("mu", 1e-5, 1e-7), ("nu", 2e-5, 1e-14)):
        found = named(getattr(adam, moment))
        for name, value in below(f"0/0/{moment}", recorded).items():
            if KEY_BIAS.fullmatch(name):
                assert np.abs(found[name]).max() < absolute, name
            else:
                atol = relative * np.abs(value).max() + absolute
                np.testing.assert_allclose(found[name], value, atol=atol, rtol=0, err_msg=f"{moment} of {name}")


def test_training(training):
    path, name = training
    stored = load(path)
    run = below(name, stored)
    flags = text(run, "flags")
    model, total = flags["model"], flags["max_steps"]
    adamw = optimizer(flags)
    tx = adamw.build(total)
    state = initial_state(path, flags, tx)
    step = make_step(Replay(flags), tx, prepare=lambda raw, key: raw, ema_decay=model["target_update_rate"], steps=total)
    for s in range(sum(key.endswith("/perm") for key in run)):
        at = below(f"step{s}", run)
        before = named(state.networks.online)
        number = int(at["train_state_step_before"])
        assert int(state.step) + 1 == number
        if "draw/dt_base" in at:
            assert_schedule(flags, number, at["draw/dt_base"])
        state, metrics = step(state, recorded_batch(stored, run, flags, s))
        after = named(state.networks.online)
        found = {name: float(value) for name, value in metrics.items()} | {
            "update_norm": norm({name: after[name].astype(np.float64) - before[name] for name in after}),
            "param_norm": norm(after),
            "lr": float(np.asarray(adamw.rate(total)(number))),
        }
        recorded = below("info", at)
        for name in found.keys() & recorded.keys():
            rtol = 1e-4 if name == "update_norm" else 1e-5
            np.testing.assert_allclose(found[name], recorded[name], rtol=rtol, err_msg=f"{name} of step {s}")
        assert {"loss", "grad_norm", "update_norm", "param_norm", "lr"} <= found.keys() & recorded.keys()
        key_bias = 2 * model["lr"] * (s + 1)
        assert_parameters(after, below("params", at), key_bias)
        assert_parameters(named(state.networks.ema), below("params_ema", at), key_bias)
        if optimizer_state := below("opt_state", at):
            assert_optimizer(state.opt_state, optimizer_state)


# Sampling

FINEST = 128
"""Where the reference's evaluation of live reflow goes from d = 1 to the step asked for. Its inference knows no such number."""


def sampling_views(finest: int) -> dict[str, objectives.Objective]:
    """Objectives whose views ask the network as the reference's two samplers do; `finest` is beyond every step recorded."""
    return {
        "shortcut": objectives.Shortcut(steps=finest),
        "naive": objectives.FlowMatching(steps=finest),
        "naive_eval": objectives.FlowMatching(steps=finest),
        "livereflow": objectives.LiveReflow(steps=finest, trained_steps=False),
        "livereflow_eval": objectives.LiveReflow(steps=FINEST, trained_steps=True),
        "consistency": objectives.ConsistencyTraining(steps=finest),
        "consistency_eval": objectives.ConsistencyTraining(steps=finest, renoise=False),
        "progressive": objectives.ProgressiveDistillation(steps=finest),
    }


def test_sampling(sampling):
    path, name = sampling
    stored, (method, scale) = load(path), name.split("/cfg")
    runs = {int(key.split("/")[0][1:]): value for key, value in below(name, stored).items()}
    objective = sampling_views(max(FINEST, *runs))[method]
    network = stored_network(path, "params")
    if not method.startswith(("shortcut", "livereflow")):
        network = with_options(network, step="none")
    noise, labels = jnp.asarray(stored["x0"]), jnp.asarray(stored["labels"])

    @eqx.filter_jit
    def sample(network, steps, anew):
        field = guidance.guided(objective.sampling(network), float(scale), network.classes)
        return objective.sample(field, noise, labels, steps=steps, renoise=lambda i: anew[i])

    for n, expected in runs.items():
        # Beyond the n draws there is nothing to use, so that all n share one compilation.
        anew = np.full((max(runs), *noise.shape), np.nan, np.float32)
        if method == "consistency":
            anew[:n] = stored[f"consistency/eps/N{n}"]
        found = sample(network, jnp.int32(n), jnp.asarray(anew))
        np.testing.assert_allclose(found, expected, atol=3e-5 if n <= 8 else 2e-4, rtol=0, err_msg=f"{n} steps")


# Checkpoints, layouts, sizes


def test_checkpoint(pickled):
    expected = load(beside(pickled, f"{pickled.stem.rpartition('_')[0]}_expected.npz"))
    found = reference.read(pickled)
    sets = {
        "params": found.parameters,
        "params_ema": found.average,
        "opt_state/0/0/mu": found.mu,
        "opt_state/0/0/nu": found.nu,
    }
    for prefix, parameters in sets.items():
        recorded = below(prefix, expected)
        assert recorded and parameters is not None and recorded.keys() <= parameters.keys() == found.parameters.keys()
        for name, value in recorded.items():
            assert parameters[name].dtype == value.dtype
            np.testing.assert_array_equal(parameters[name], value, err_msg=f"{prefix}/{name}")
    assert below("params", expected).keys() == found.parameters.keys()
    assert found.count == expected["opt_state/0/0/count"] == expected["opt_state/0/2/count"]
    assert found.step == expected["step"]
    sizes = json.loads(str(expected["config"]))
    config, channels, classes = reference.architecture(found.parameters, heads=sizes["num_heads"])
    inferred = (config.hidden, config.depth, config.heads, config.patch, config.mlp_ratio, channels, classes)
    names = ("hidden_size", "depth", "num_heads", "patch_size", "mlp_ratio", "out_channels", "num_classes")
    assert inferred == tuple(sizes[name] for name in names)


def abstract_parameters(name: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, jax.ShapeDtypeStruct]:
    """Our parameters of a published model, with the channels and classes of these shapes."""
    size = name.split("-")[1]
    zeros = {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()}
    # No shape depends on the number of heads.
    told, channels, classes = reference.architecture(zeros, heads=1)
    config = preset(size) if size in PRESETS else told

    def build(key):
        return reference.to_parameters(config.build((32, 32, channels), classes, key=key))

    return jax.eval_shape(build, jax.random.key(0))


def shapes_of(path: pathlib.Path, model: str) -> dict[str, tuple[int, ...]]:
    return {name: tuple(entry["shape"]) for name, entry in json.loads(path.read_text())[model].items()}


def test_shapes(layout):
    path, model = layout
    shapes = shapes_of(path, model)
    assert {name: leaf.shape for name, leaf in abstract_parameters(model, shapes).items()} == shapes


def test_model_size(model_size):
    path, model = model_size
    layouts = [other for other in sorted(path.parent.glob("sharding_fsdp_*.json")) if model in json.loads(other.read_text())]
    if not layouts:
        pytest.skip(f"no sharding_fsdp_*.json tells the channels and classes of {model}")
    found = abstract_parameters(model, shapes_of(layouts[0], model))
    assert sum(leaf.size for leaf in found.values()) == json.loads(path.read_text())[model]["params"]
