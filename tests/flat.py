"""The losses with their options said one by one, as objectives have them: `flat.mean_flow(field, batch, key, power=0.0)`."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

from eqx_shortcut import losses, weights
from eqx_shortcut.guidance import Guidance

INTERVALS = ("pairs", "bootstrap_every", "velocity_times", "posterior_every")


def __getattr__(name: str) -> Callable[..., Any]:
    return functools.partial(call, getattr(losses, name))


def call(loss: Callable[..., Any], field, batch, key, **said):
    """`loss` with the values that the options `said` make; what is not one of these is handed on."""
    taken = inspect.signature(loss).parameters
    if "intervals" in taken and (own := {name: said.pop(name) for name in INTERVALS if name in said}):
        said["intervals"] = dataclasses.replace(taken["intervals"].default, **own)
    guidance = guidance_of(said)
    if guidance is not None and "distillation" in loss.__name__:
        said["teacher"] = guidance.of(said["teacher"])
    elif guidance is not None:
        said["guidance"] = guidance
    default = taken["weigh"].default if "weigh" in taken else ()
    if {"power", "eps", "log_variance", "weight", "per_alpha"} & said.keys():
        said["weigh"] = weigh_of(said, default)
    return loss(field, batch, key, **said)


def guidance_of(said: dict[str, Any]) -> Guidance | None:
    """Takes what concerns guidance out of the options; a number is its scale."""
    own = {name: said.pop(name) for name in ("null", "dropout") if name in said}
    guidance, everywhere = said.pop("guidance", None), said.pop("guide_all", False)
    if guidance is None and not own:
        return None
    guidance = guidance if isinstance(guidance, Guidance) else Guidance(scale=1.0 if guidance is None else guidance)
    return guidance._replace(**own, all_steps=everywhere)


def weigh_of(said: dict[str, Any], default: tuple[Any, ...]) -> tuple[Any, ...]:
    """Takes what weighs out of the options: an adaptive weight, what the loss has beside it, a learned and a plain one."""
    adaptive, *others = default or (weights.Adaptive(power=0.0),)
    own = {name: said.pop(name) for name in ("power", "eps") if name in said}
    weigh = [dataclasses.replace(adaptive, units=said.pop("per_alpha", True), **own), *others]
    if (log_variance := said.pop("log_variance", None)) is not None:
        learned = lambda loss, rows: weights.learned(loss, log_variance(rows.t, rows.d))  # noqa: E731
        weigh.append(log_variance if isinstance(log_variance, weights.LogVariance) else learned)
    if (weight := said.pop("weight", None)) is not None:
        weigh.append(lambda loss, rows: loss * weight(rows.t, rows.d))
    return tuple(weigh)
