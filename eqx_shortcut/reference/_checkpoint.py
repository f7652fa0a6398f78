"""A checkpoint of the reference, and the training state that continues it."""

import dataclasses
import pathlib
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PRNGKeyArray

from ..errors import first_line
from ..models.dit import DiTConfig
from ..objectives import Networks
from ..pretrained.unpickle import NUMPY, Global, Leaf, Rules, UnpickleError, call_numpy, leaves, load
from ..train import TrainState
from ._parameters import ReferenceCheckpointError, from_parameters

OPTAX = frozenset(
    {"optax._src.base.EmptyState", "optax._src.transform.ScaleByAdamState", "optax._src.transform.ScaleByScheduleState"}
)
"""Classes of the optimizer's state, namedtuples."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint of the reference; all four sets of arrays have the same names (see Parameters)."""

    parameters: dict[str, np.ndarray]
    average: dict[str, np.ndarray]
    """Moving average of the parameters."""
    mu: dict[str, np.ndarray] | None
    """Mean of gradients; None, as `nu` and `count`, if the optimizer's state was not saved."""
    nu: dict[str, np.ndarray] | None
    """Mean of squared gradients."""
    count: int | None
    """Updates that the optimizer made."""
    step: int
    """The reference's step, which is 1 before the first update."""


def read(path: str | pathlib.Path) -> Checkpoint:
    """The checkpoint in the reference's pickled file `path`, or in the folder that its saver makes of it; runs nothing of it.

    Raises ReferenceCheckpointError if there is none, or naming what is cut off, not allowed, missing or contradictory.
    """
    path = _file(pathlib.Path(path))
    try:
        with path.open("rb") as file:
            return _checkpoint(load(file, Rules(NUMPY | OPTAX, _call)))
    except (ReferenceCheckpointError, UnpickleError) as error:
        raise ReferenceCheckpointError(f"{path} cannot be read: {error}") from None
    except Exception as error:  # whatever else bytes at random bring about
        raise ReferenceCheckpointError(
            f"{path} cannot be read as a checkpoint ({first_line(error, 200)}): copy it again"
        ) from error


def train_state(
    checkpoint: Checkpoint,
    config: DiTConfig,
    shape: tuple[int, int, int],
    classes: int,
    tx: optax.GradientTransformation,
    *,
    key: PRNGKeyArray,
) -> TrainState:
    """The state from which training goes on as the reference's would: both sets of weights, AdamW's moments, the step.

    `tx` is AdamW under a schedule, as `AdamW().build(steps)`; its state is fresh if the checkpoint has none. The reference
    counts steps from 1, hence `step - 1`. Its key is not saved: draws come from `key`. Raises ReferenceCheckpointError if
    the parameters are not those of `config` or `tx` has another state.
    """
    online, average = (
        from_parameters(parameters, config, shape, classes) for parameters in (checkpoint.parameters, checkpoint.average)
    )
    opt_state = tx.init(eqx.filter(online, eqx.is_inexact_array))
    match opt_state:
        case (optax.ScaleByAdamState() as adam, optax.EmptyState() as decay, optax.ScaleByScheduleState() as schedule):
            pass
        case _:
            raise ReferenceCheckpointError(
                "the optimizer's state has other parts than the reference's (Adam, weight decay, schedule): use AdamW() "
                "without gradient clipping"
            )
    if checkpoint.mu is not None and checkpoint.nu is not None and checkpoint.count is not None:
        mu, nu = (
            eqx.filter(from_parameters(parameters, config, shape, classes), eqx.is_inexact_array)
            for parameters in (checkpoint.mu, checkpoint.nu)
        )
        count = np.int32(checkpoint.count)
        adam = adam._replace(count=jnp.asarray(count), mu=mu, nu=nu)
        opt_state = (adam, decay, schedule._replace(count=jnp.asarray(count)))
    # Each a buffer of its own, since training consumes its state.
    step, skipped, streak = (jnp.asarray(n, jnp.int32) for n in (max(checkpoint.step - 1, 0), 0, 0))
    return TrainState(step, key, Networks(online, average, null=classes), opt_state, skipped, streak)


def _file(path: pathlib.Path) -> pathlib.Path:
    if path.is_dir():
        # The reference makes a folder of the name it is given, and moves its temporary file there.
        inner = path / f"{path.absolute().name}.tmp"
        if not inner.is_file():
            raise ReferenceCheckpointError(f"{path} is a folder without {inner.name}: name the checkpoint's file itself")
        path = inner
    if not path.is_file():
        raise ReferenceCheckpointError(f"no checkpoint {path}: check the path")
    return path


@dataclasses.dataclass(frozen=True)
class _Node:
    """One of the reference's namedtuples by its class's name, with its fields in order."""

    kind: str
    fields: tuple[Any, ...]


def _call(function: Any, arguments: Any) -> Any:
    match function, arguments:
        case Global(name), tuple() if name in OPTAX:
            return _Node(function.last, arguments)
    return call_numpy(function, arguments)


def _checkpoint(content: Any) -> Checkpoint:
    match content:
        case {"train_state": {"params": params, "params_ema": params_ema, "step": step, **rest}}:
            pass
        case {"train_state": dict(found)}:
            missing = ", ".join(name for name in ("params", "params_ema", "step") if name not in found)
            raise ReferenceCheckpointError(f"its train_state lacks {missing}: it is no checkpoint of training")
        case _:
            raise ReferenceCheckpointError("it holds no dictionary with a train_state: name a checkpoint of training")
    parameters, average = _flat(params, "params"), _flat(params_ema, "params_ema")
    _agree(parameters, average, "params_ema")
    mu = nu = count = None
    match rest.get("opt_state"):
        case None:
            pass
        case ((_Node("ScaleByAdamState", (first, mu, nu)), _Node("EmptyState"), _Node("ScaleByScheduleState", (second,))),):
            mu, nu, count = _flat(mu, "mu"), _flat(nu, "nu"), _number(first, "count of the optimizer")
            _agree(parameters, mu, "mu")
            _agree(parameters, nu, "nu")
            if count != (other := _number(second, "count of the schedule")):
                raise ReferenceCheckpointError(f"its optimizer counts {count} updates, its schedule {other}: both must agree")
        case _:
            raise ReferenceCheckpointError("its opt_state is not that of AdamW under a schedule: save None to leave it out")
    return Checkpoint(parameters, average, mu, nu, count, _number(step, "step"))


def _number(value: Any, name: str) -> int:
    match value:
        case Leaf(value=np.ndarray(shape=()) as array) if array.dtype.kind in "iu":
            value = int(array)
    if type(value) is not int or not 0 <= value < 2**31:
        raise ReferenceCheckpointError(f"its {name} is no whole number from 0 to 2**31 - 1: it is damaged")
    return value


def _flat(tree: Any, what: str) -> dict[str, np.ndarray]:
    arrays = {}
    for path, value in leaves(tree, f"its {what}"):
        match value:
            case Leaf(value=np.ndarray() as array) if array.dtype.kind == "f":
                arrays[path] = array
            case _:
                raise ReferenceCheckpointError(f"its {what} holds no array of real numbers at {path}: it is damaged")
    return arrays


def _agree(parameters: dict[str, np.ndarray], others: dict[str, np.ndarray], what: str) -> None:
    for name in [*parameters, *others]:
        if name not in others or name not in parameters:
            lacking, having = (what, "params") if name not in others else ("params", what)
            raise ReferenceCheckpointError(f"its {lacking} lacks {name}, which its {having} has: both must have the same names")
        if others[name].shape != parameters[name].shape:
            raise ReferenceCheckpointError(
                f"its {what} has {name} of shape {others[name].shape}, its params of {parameters[name].shape}: they must agree"
            )
