"""Recorded values of the original code, read back: files, networks, and its target functions rebuilt from recorded draws."""

import dataclasses
import functools
import json
import pathlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import PRNGKeyArray

from eqx_shortcut import losses, reference, rows, times
from eqx_shortcut.guidance import Guidance, guided
from eqx_shortcut.models import DiTConfig, NetworkField
from eqx_shortcut.objectives import Networks, Objective
from eqx_shortcut.optimizer import AdamW
from eqx_shortcut.train import TrainState
from eqx_shortcut.types import Batch, Draws, Field, Metrics, Regression

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
DRAWS = ("label_dropout_mask", "x_0", "t_flow_int", "x_0_bootstrap", "t_bootstrap_int", "t_reflow_int", "t_int", "dt_base")


# Files


@functools.cache
def load(path: pathlib.Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def below(prefix: str, stored: dict[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(f"{prefix}/"): value for name, value in stored.items() if name.startswith(f"{prefix}/")}


def text(stored: dict[str, np.ndarray], name: str) -> dict[str, Any]:
    """The JSON kept under `name`."""
    return json.loads(str(stored[name]))


def beside(path: pathlib.Path, name: str) -> pathlib.Path:
    """The file `name` next to `path`, without which the test is skipped."""
    other = path.with_name(name)
    if not other.exists():
        pytest.skip(f"{other} is absent: {path.name} is checked against it")
    return other


def cases(folder: pathlib.Path, pattern: str, name: str | None) -> list:
    """`(file, first group)` for each distinct match of `name` among the entries of the files of `pattern`, or one skip.

    Entries are the arrays of an `.npz` or the keys of a JSON file. Without `name` the files themselves are the cases.
    """
    found = {}
    for path in sorted(folder.glob(pattern)):
        if name is None:
            found[path.stem] = path
            continue
        for key in _entries(path):
            if match := re.fullmatch(name, key):
                found[f"{path.stem}-{match[1].replace('/', '-')}"] = (path, match[1])
    if not found:
        reason = f"{folder} has no {pattern}" + (f" with {name}" if name else "")
        return [pytest.param(None, id="absent", marks=pytest.mark.skip(reason=reason))]
    return [pytest.param(case, id=key) for key, case in found.items()]


def _entries(path: pathlib.Path) -> list[str]:
    if path.suffix == ".json":
        return list(json.loads(path.read_text()))
    with np.load(path, allow_pickle=False) as stored:
        return stored.files


# Networks


@functools.cache
def stored_network(path: pathlib.Path, prefix: str):
    """The network of `config` that holds the parameters stored under `prefix`."""
    stored = load(path)
    config = text(stored, "config")
    side = config["image_size"] if "image_size" in config else config["size"]
    dit = DiTConfig(
        hidden=config["hidden_size"],
        depth=config["depth"],
        heads=config["num_heads"],
        patch=config["patch_size"],
        mlp_ratio=config["mlp_ratio"],
        precision="float32",
    )
    return reference.from_parameters(below(prefix, stored), dit, (side, side, config["out_channels"]), config["num_classes"])


def with_options(network, **options):
    """The same parameters under another precision or embedding of the step."""
    config = dataclasses.replace(network.config, **options)
    other = eqx.filter_eval_shape(lambda key: config.build(network.shape, network.classes, key=key), jax.random.key(0))
    return jax.tree.unflatten(jax.tree.structure(other), jax.tree.leaves(network))


def networks(path: pathlib.Path, flags: dict[str, Any]) -> Networks:
    """The parameter sets of a file as the three networks of a call with these flags."""
    step = "none" if flags["ignore_dt"] else "log2"
    sets = ["params", "params_ema", *teacher_set(flags)]
    found = [with_options(stored_network(path, name), step=step) for name in sets]
    return Networks(*found, null=found[0].classes)


def teacher_set(flags: dict[str, Any]) -> list[str]:
    """The parameter set that teaches in calls with these flags, if one does."""
    model = flags["model"]
    match model["train_type"]:
        case "progressive":
            return ["teacher_params_ema" if model["bootstrap_ema"] else "teacher_params"]
        case "consistency-distillation":
            return ["teacher_params_ema"]
    return []


# Targets


class Fields(NamedTuple):
    """What a target function may ask."""

    online: Field
    ema: Field
    teacher: Field


def fields(networks: Networks, field: Callable[[Any], Field] = NetworkField) -> Fields:
    return Fields(field(networks.online), field(networks.ema), field(networks.teacher))


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a target function of the reference; its arrays may be traced."""

    flags: dict[str, Any]
    images: jax.Array
    labels: jax.Array
    draws: dict[str, jax.Array]

    @property
    def model(self) -> dict[str, Any]:
        return self.flags["model"]

    @property
    def size(self) -> int:
        return self.flags["batch_size"]

    @property
    def steps(self) -> int:
        return self.model["denoise_timesteps"]

    @property
    def null(self) -> jax.Array:
        return jnp.asarray(self.model["num_classes"], jnp.int32)

    @property
    def first(self) -> int:
        """Bootstrap or reflow rows, which stand first."""
        both = self.model["train_type"] in ("shortcut", "livereflow")
        return self.size // self.model["bootstrap_every"] if both else 0

    @property
    def dropped(self) -> jax.Array:
        """Labels of flow rows."""
        return rows.where_rows(self.draws["label_dropout_mask"], jnp.broadcast_to(self.null, self.labels.shape), self.labels)

    def times(self, name: str, sections, *, forced: bool) -> jax.Array:
        """Recorded integers over `sections`, unless the call forces a time on these rows."""
        t = self.draws[name].astype(jnp.float32) / jnp.asarray(sections, jnp.float32)
        force = self.flags.get("force_t", -1)
        return jnp.full_like(t, force) if forced and force != -1 else t

    def flow(self, noise: jax.Array, images: jax.Array) -> Draws:
        """Draws of the flow rows, which have the first images again."""
        t = self.times("t_flow_int", self.steps, forced=True)
        d = jnp.full_like(t, 1 / self.steps)
        return jax.tree.map(lambda a: a[: self.size - self.first], Draws(images, noise, t, d, self.dropped))


def naive(call: Call, fields: Fields) -> Regression:
    if "latent" in call.flags["dataset_name"]:
        noise, images = jnp.split(call.images, 2, axis=-1)
        return losses.flow_target(call.flow(noise, images))
    return losses.flow_target(call.flow(call.draws["x_0"], call.images))


def shortcut_draws(call: Call) -> Draws:
    n, force = call.first, call.flags.get("force_dt", -1)
    levels = times.dyadic_levels(n, call.steps, bias=bool(call.model["bootstrap_dt_bias"]))
    levels = jnp.asarray(levels if force == -1 else np.full(n, force), jnp.float32)
    t = call.times("t_bootstrap_int", jnp.exp2(levels), forced=True)
    return Draws(call.images[:n], call.draws["x_0_bootstrap"], t, jnp.exp2(-levels), call.labels[:n])


def shortcut_teacher(call: Call, fields: Fields) -> tuple[Field, dict[str, Any]]:
    """The network asked for the half steps, and how it is guided."""
    scale = float(call.model["cfg_scale"]) if call.model["bootstrap_cfg"] else 1.0
    first = times.finest_rows(call.first, call.steps, bias=bool(call.model["bootstrap_dt_bias"]))
    target = fields.ema if call.model["bootstrap_ema"] else fields.online
    return target, {"guidance": Guidance(call.null, scale=scale), "guided_rows": first}


def shortcut(call: Call, fields: Fields) -> Regression:
    target, options = shortcut_teacher(call, fields)
    bootstrap = losses.bootstrap_target(target, shortcut_draws(call), **options)
    return _stacked(bootstrap, losses.flow_target(call.flow(call.draws["x_0"], call.images)))


def live_reflow(call: Call, fields: Fields) -> Regression:
    n, noise = call.first, call.draws["x_0"]
    t = call.times("t_reflow_int", call.steps, forced=False)
    draws = Draws(call.images[:n], noise[:n], t, jnp.ones_like(t), call.labels[:n])
    guidance = Guidance(call.null, scale=float(call.model["cfg_scale"]))
    reflow = losses.live_reflow_target(fields.online, draws, steps=call.steps, guidance=guidance)
    return _stacked(reflow, losses.flow_target(call.flow(noise, call.images)))


def level_draws(call: Call) -> Draws:
    """Draws of progressive distillation at the recorded level, which at the reference's last step is -1."""
    level = jnp.broadcast_to(call.draws["dt_base"], (call.size,)).astype(jnp.float32)
    t = call.times("t_int", jnp.exp2(level), forced=False)
    return Draws(call.images, call.draws["x_0"], t, jnp.exp2(-level), call.labels)


def progressive_guidance(call: Call) -> float | jax.Array:
    """The scale in the first stage, 1 in later ones."""
    if not call.model["bootstrap_cfg"]:
        return 1.0
    first = jnp.max(call.draws["dt_base"]).astype(jnp.int32) == times.log2_steps(call.steps) - 1
    return jnp.where(first, jnp.float32(call.model["cfg_scale"]), jnp.float32(1))


def progressive(call: Call, fields: Fields) -> Regression:
    return losses.progressive_target(guided(fields.teacher, progressive_guidance(call), call.null), level_draws(call))


def consistency_draws(call: Call, sections) -> Draws:
    t = call.times("t_int", sections, forced=False)
    return Draws(call.images, call.draws["x_0"], t, 1 - t, call.labels)


def consistency(call: Call, fields: Fields) -> Regression:
    level = call.draws["dt_base"].astype(jnp.float32)
    draws = consistency_draws(call, jnp.exp2(level))
    return losses.consistency_training_target(fields.ema, draws, gap=jnp.exp2(-level))


def consistency_distillation(call: Call, fields: Fields) -> Regression:
    draws = consistency_draws(call, call.steps)
    return losses.consistency_distillation_target(fields.ema, fields.teacher, draws, gap=1 / call.steps)


BUILDERS: dict[str, Callable[[Call, Fields], Regression]] = {
    "naive": naive,
    "shortcut": shortcut,
    "livereflow": live_reflow,
    "progressive": progressive,
    "consistency": consistency,
    "consistency-distillation": consistency_distillation,
}


def targets(call: Call, fields: Fields) -> Regression:
    """The regression of the call, its rows in the reference's order, by the builders that the losses use."""
    return BUILDERS[call.model["train_type"]](call, fields)


def level_of(flags: dict[str, Any], step: int) -> int:
    """The level at which our objective trains where the reference's `step`, counted from 1, is asked for."""
    stages = times.log2_steps(flags["model"]["denoise_timesteps"])
    stage = int(times.stage(jnp.float32(step) / flags["max_steps"], stages))
    return stages - 1 - stage if flags["model"]["train_type"] == "progressive" else stage


def _stacked(first: Regression, rest: Regression) -> Regression:
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, rest)


@eqx.filter_jit
def evaluate(network, x, t, d, cond):
    return NetworkField(network)(x, t, d, cond)


def stored_call(path: pathlib.Path, name: str) -> tuple[Call, Fields, dict[str, np.ndarray]]:
    """A recorded call of `targets_*.npz`, compiled fields of its networks, and what is recorded of its results."""
    stored = below(name, load(path))
    flags = text(stored, "flags")
    common = beside(path, "targets_common.npz")
    images = stored.get("images_override", load(common)["images"][: flags["batch_size"]])
    draws = {key: jnp.asarray(stored[key]) for key in DRAWS if key in stored}
    call = Call(flags, jnp.asarray(images), jnp.asarray(stored["labels_in"]), draws)
    return call, fields(networks(common, flags), lambda network: functools.partial(evaluate, network)), stored


# Training


class Replay(Objective):
    """The reference's loss on draws that travel in the batch, `cond = {"label": labels, "draw": draws}`."""

    def __init__(self, flags: dict[str, Any]):
        self.flags = flags

    def __call__(self, networks: Networks, batch: Batch, key: PRNGKeyArray, progress: jax.Array) -> tuple[jax.Array, Metrics]:
        call = Call(self.flags, batch.x, batch.cond["label"], batch.cond["draw"])
        found = targets(call, fields(networks))
        error = losses.regress(NetworkField(networks.online), found)
        asked = found.x, found.t, found.d, found.cond
        activations = recorded_names(jax.vmap(networks.online.activations)(*asked))
        metrics = {"loss": jnp.mean(error), "v_magnitude_prime": rms(NetworkField(networks.online)(*asked))}
        metrics |= {f"activations/{name}": rms(value) for name, value in activations.items()}
        if call.first:
            metrics |= {"loss_bootstrap": jnp.mean(error[: call.first]), "loss_flow": jnp.mean(error[call.first :])}
        return metrics["loss"], metrics

    def sampling(self, network: Any) -> Field:
        return NetworkField(network)


def recorded_names(activations: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """A batch's activations under the reference's names."""
    blocks = {f"dit_block_{i}": activations["blocks"][:, i] for i in range(activations["blocks"].shape[1])}
    return {name: activations[ours] for name, ours in ACTIVATIONS.items()} | blocks


def rms(x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.mean(jnp.square(x)))


def optimizer(flags: dict[str, Any]) -> AdamW:
    model = flags["model"]
    return AdamW(
        lr=model["lr"],
        schedule="cosine" if model["use_cosine"] else "constant",
        warmup=model["warmup"],
        beta1=model["beta1"],
        beta2=model["beta2"],
        weight_decay=model["weight_decay"],
    )


def initial_state(path: pathlib.Path, flags: dict[str, Any], tx: optax.GradientTransformation) -> TrainState:
    """The state before the first of the recorded steps."""
    # Copies of distinct buffers, for steps consume the state they are given.
    start = jax.tree.map(lambda a: jnp.array(a, copy=True), networks(path, flags))
    opt_state = tx.init(eqx.filter(start.online, eqx.is_inexact_array))
    step, skipped, streak = (jnp.array(0, jnp.int32) for _ in range(3))
    return TrainState(step, jax.random.key(0), start, opt_state, skipped, streak)


def recorded_batch(stored: dict[str, np.ndarray], run: dict[str, np.ndarray], flags: dict[str, Any], s: int) -> Batch:
    """Batch and draws of step `s` of a run."""
    order = run[f"step{s}/perm"]
    images, labels = (jnp.asarray(stored[f"batch{s}/{name}"][order]) for name in ("images", "labels"))
    if flags["model"]["cfg_scale"] == 0:
        labels = jnp.full_like(labels, flags["model"]["num_classes"])
    draws = {name: jnp.asarray(value) for name, value in below(f"step{s}/draw", run).items()}
    return Batch(images, {"label": labels, "draw": draws})


def named(network: Any) -> dict[str, np.ndarray]:
    """Copies of the parameters under the reference's names."""
    return {name: np.array(value) for name, value in reference.to_parameters(network).items()}
