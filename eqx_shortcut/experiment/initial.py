"""The state before the first step, and what it takes from other runs: the teacher it distils, the weights it starts from."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .. import rng, storage
from ..data import Rows, null_of
from ..models import MLP, DiT, low_rank
from ..objectives import Objective
from ..train import TrainState, init_state
from ..trained import Trained, load
from .config import Config

# What two networks may differ in and still hold the same parameters for the same function.
FREE = ("dropout", "precision", "remat", "unroll", "low_rank")


def check_start(config: Config) -> None:
    """Raises ValueError if a distillation lacks a teacher, or another objective has one."""
    name = type(config.objective).__name__
    if config.objective.stages and config.teacher is None:
        raise ValueError(
            f"{name} distils a trained network and none is named: train one, for example with objective:flow-matching, and "
            "name its run folder with --teacher"
        )
    if config.teacher is not None and not config.objective.stages:
        distil = " distil from it with --objective.distil," * hasattr(config.objective, "distil")
        raise ValueError(
            f"{name} has no teacher:{distil} leave out --teacher {config.teacher}, or start from it with --init-from"
        )
    if config.weak_teacher is None:
        return
    if not config.objective.autoguides:
        raise ValueError(f"{name} does not guide a teacher by a weak network: leave out --weak-teacher {config.weak_teacher}")
    if config.teacher is None or not guides_teacher(config.objective):
        raise ValueError(
            f"--weak-teacher {config.weak_teacher} guides a teacher by a scale: name both, with --teacher and "
            "--objective.guidance or --objective.max-scale, or leave it out"
        )


def fresh(config: Config, rows: Rows, shardings: Callable[[TrainState], TrainState] = lambda state: state) -> TrainState:
    """The state of a network for these rows that has learnt nothing."""
    return init_state(
        lambda key: config.network.build(rows.shape, rows.classes, key=key),
        config.optimizer.build(config.steps),
        rng.key(config.seed),
        null=null_of(rows),
        teacher=config.objective.stages > 0,
        weak=config.weak_teacher is not None,
        extra=config.objective.extra,
        memory=config.objective.memory(rows.shape),
        averages=config.averages.sigma_rel,
        shardings=shardings,
    )


def state(config: Config, fresh: TrainState) -> TrainState:
    """The state before the first step: a fresh one, with the weights that `config` takes from other runs.

    Raises ValueError if such a run was never trained, is of another architecture, or knows no velocity to teach.
    """
    network, networks = fresh.networks.online, fresh.networks

    def taken(run: storage.Path, what: str, check: Callable[[Config, Trained, storage.Path], None]) -> Any:
        other = trained(run)
        check(config, other, run)
        weights = adopted(network, other, run)
        print(f"{what}: {run} after step {other.step}")
        return weights

    if config.teacher is not None:
        weights = taken(config.teacher, "teacher and first weights", check_teacher)
        networks = dataclasses.replace(networks, online=weights, ema=copied(weights), teacher=copied(weights))
    if config.weak_teacher is not None:
        networks = dataclasses.replace(networks, weak=taken(config.weak_teacher, "weak teacher", check_teacher))
    if config.init_from is not None:
        weights = taken(config.init_from, "first weights", check_first)
        networks = dataclasses.replace(networks, online=weights, ema=copied(weights))
    return fresh if networks is fresh.networks else dataclasses.replace(fresh, networks=networks)


def trained(run: storage.Path) -> Trained:
    """The average of the weights of a run that was trained."""
    other = load(run)
    if other.step == 0:
        raise ValueError(f"{run} was never trained: its only checkpoint is of step 0; train it first")
    return other


def guides_teacher(objective: Objective) -> bool:
    """Whether an objective guides its teacher."""
    return objective.told is not None or getattr(objective, "guidance", 1) != 1


def check_noise(config: Config, other: Trained, run: storage.Path) -> None:
    """Raises ValueError unless both begin at the same noise."""
    if other.noise_scale != config.noise_scale:
        raise ValueError(
            f"{run} was trained with noise of standard deviation {other.noise_scale:g}, here it is {config.noise_scale:g}: use "
            f"--noise-scale {other.noise_scale:g}"
        )


def check_first(config: Config, other: Trained, run: storage.Path) -> None:
    """Raises ValueError unless the first weights begin at the same noise and answer what is trained: a velocity, or noise."""
    check_noise(config, other, run)
    theirs, ours = ("noise" if method.predicts_noise else "a velocity" for method in (other.objective, config.objective))
    if theirs != ours:
        raise ValueError(
            f"{run} was trained by {type(other.objective).__name__} to answer {theirs}, and {type(config.objective).__name__} "
            f"trains {ours}: name a run of a method that does"
        )


def check_guided(config: Config, teacher: Trained, run: storage.Path) -> None:
    """Raises ValueError for guidance by answers without labels that the teacher did not learn."""
    if not guides_teacher(config.objective) or config.weak_teacher is not None:
        return
    if config.unconditional or not teacher.labelled or teacher.nothing is None:
        what = "here labels are hidden" if config.unconditional else f"{run} was trained without labels"
    elif getattr(teacher.objective, "label_dropout", 1) == 0:
        what = f"{run} never learnt to do without (label_dropout=0)"
    else:
        return
    raise ValueError(
        f"guidance asks a teacher with its labels and without, and {what}: leave the scale at 1, or guide it by --weak-teacher"
    )


def check_teacher(config: Config, teacher: Trained, run: storage.Path) -> None:
    """Raises ValueError unless the teacher knows the velocity at the step size at which it will be asked, and its guidance.

    A network of continuous step sizes is asked at any; one of a single step size answers it at d = 0 too (see `adopted`).
    """
    check_noise(config, teacher, run)
    check_guided(config, teacher, run)
    known, asked = teacher.objective.velocity_step, config.objective.teacher_step
    if known is None:
        raise ValueError(
            f"{run} was trained by {type(teacher.objective).__name__} and knows no velocity to teach: name a run of "
            "flow matching, shortcut or live reflow with --teacher"
        )
    if asked is None or known == asked or teacher.objective.continuous:
        return
    if asked:
        raise ValueError(
            f"{run} was trained with steps={round(1 / known)} and would be asked at d = 1/{round(1 / asked)}: "
            f"use --objective.steps {round(1 / known)}"
        )
    if teacher.objective.only_step is None:
        raise ValueError(
            f"{run} was trained by {type(teacher.objective).__name__} down to d = {known:g}, and would be asked at "
            "d = 0: name a run of flow matching, or of a method at continuous step sizes, with --teacher"
        )


def adopted(network: Any, other: Trained, run: storage.Path) -> Any:
    """The weights of `other` in a network of the settings of `network`.

    Where `other` knows one step size only, its step branch becomes a constant (by the network's `held_at`), so that the
    function is the same at first at every step size that the new objective asks for.
    """
    check_same(network, other, run)
    source, only = low_rank.merged(other.network), other.objective.only_step
    if only is not None and not hasattr(source, "held_at"):
        raise ValueError(
            f"{run} was trained at one step size, {only:g}, and {type(source).__name__} has no method held_at(d) that answers "
            "as there at every step size: write one, or name a run of several step sizes"
        )
    # A checkpoint is read onto one device. The state may lie on several, and what is computed for them has to lie there, too.
    plain = low_rank.plain(network)
    source = laid_out(source, plain)
    held = source if only is None else laid_out(source.held_at(only), plain)
    return low_rank.kept_in(network, jax.tree.unflatten(jax.tree.structure(plain), jax.tree.leaves(held)))


def check_same(network: Any, other: Trained, run: storage.Path) -> None:
    """Raises ValueError unless the arrays of `other` are those of `network`, for the same function if their settings tell."""
    source = other.network
    if not isinstance(network, DiT | MLP) or type(source) is not type(network):
        theirs, ours = (jax.tree.map(jnp.shape, jax.tree.leaves(tree)) for tree in (source, network))
        if type(source) is not type(network) or theirs != ours:
            raise ValueError(f"{run} has another network ({type(source).__name__}): use one of the same kind and sizes")
        return
    if (source.shape, source.classes) != (network.shape, network.classes):
        raise ValueError(
            f"{run} was trained on examples of {source.shape} with {source.classes} classes, here they are of {network.shape} "
            f"with {network.classes}: name a run on the same data"
        )
    free = (*FREE, "step", "split") if other.objective.only_step is not None else FREE
    theirs, ours = (dataclasses.asdict(config) for config in (source.config, network.config))
    different = [f"{name} is {theirs[name]!r} there, {ours[name]!r} here" for name in ours if theirs[name] != ours[name]]
    different = [text for text in different if text.split()[0] not in free]
    if different:
        raise ValueError(f"{run} has another network ({'; '.join(different)}): use the same --network options")


def laid_out(network: Any, like: Any) -> Any:
    """A network whose arrays lie on the devices of those of another."""
    arrays, structure = jax.tree.flatten(network)
    leaves = [jax.device_put(array, other.sharding) for array, other in zip(arrays, jax.tree.leaves(like), strict=True)]
    return jax.tree.unflatten(structure, leaves)


def copied(network: Any) -> Any:
    """Equal weights in buffers of their own, as a step that consumes its state needs."""
    return jax.tree.map(jnp.copy, network)
