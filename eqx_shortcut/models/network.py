"""Networks as the trainer sees them, and the checks of one before anything is trained."""

import inspect
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from ..errors import first_line
from ..guidance import Scales, draw_guided
from ..types import Batch, Cond, shown

ADDRESSABLE = 2**60
"""Numbers in an array for whose size in bytes compilers have no word."""


@runtime_checkable
class NetworkConfig(Protocol):
    """A frozen dataclass that builds a network of one example: any module called `(x, t, d, condition, *, key=None)`.

    The network answers a velocity of the shape of `x`; `t` and `d` are scalars; a `key` comes in training alone, for dropout.
    The config may have `check(objective)`, which raises ValueError for one that asks for more than its network can: an answer
    at `d = 0` (`objective.continuous`), guidance told beside the condition (`objective.told`, by `Guided`), a second head in
    the network's property `velocity` (`objective.second_head`).
    """

    def build(self, shape: tuple[int, ...], classes: int, *, key: PRNGKeyArray) -> Any:
        """A network for examples of `shape` and labels below `classes` (0: there are no labels), initialised from `key`."""
        ...


def check_network(config: NetworkConfig, objective: Any, example: Batch, classes: int) -> None:
    """Raises ValueError unless what `config` builds can be trained by the objective on rows like `example` (see data.example).

    The network is called without computing anything, as in training and as in sampling.
    """
    check, name = getattr(config, "check", None), type(config).__name__
    if check is not None:
        check(objective)
    _check_arguments(config.build, f"{name}.build", "(shape, classes, *, key)", example.x.shape, classes, key=None)
    build = lambda key: config.build(example.x.shape, classes, key=key)  # noqa: E731
    network = eqx.filter_eval_shape(build, jax.random.key(0))
    if not callable(network):
        raise ValueError(f"{name}.build gives a {type(network).__name__}, not a module that is called (x, t, d, condition)")
    largest = max((leaf.size for leaf in jax.tree.leaves(network) if isinstance(leaf, jax.ShapeDtypeStruct)), default=0)
    if largest >= ADDRESSABLE:
        raise ValueError(f"{name} builds an array of {largest:.2g} numbers, more than any machine addresses: make it smaller")
    scalar = jax.ShapeDtypeStruct((), example.x.dtype)
    inputs = (example.x, scalar, scalar, _told(example.cond, objective.told))
    for key in (None, jax.random.key(0)):
        _check_call(network, inputs, key)
    if objective.second_head:
        if not hasattr(type(network), "velocity"):
            raise ValueError(f"{type(objective).__name__} trains a second head, and {name} has no property `velocity` for it")
        _check_call(eqx.filter_eval_shape(lambda network: network.velocity, network), inputs, None)


def _told(condition: Cond, scales: Scales | None) -> Cond:
    """Shapes of a condition with the guidance that is told beside it, if any is."""
    if scales is None:
        return condition

    def told(condition):
        guided = draw_guided(jax.random.key(0), jax.tree.map(lambda leaf: leaf[None], condition), scales, jnp.zeros(1))
        return jax.tree.map(lambda leaf: leaf[0], guided)

    return eqx.filter_eval_shape(told, condition)


def _check_call(network: Any, inputs: tuple[Any, ...], key: PRNGKeyArray | None) -> None:
    name, x = type(network).__name__, inputs[0]
    _check_arguments(network, name, "(x, t, d, condition, *, key=None)", *inputs, key=key)
    try:
        out = eqx.filter_eval_shape(lambda network, inputs, key: network(*inputs, key=key), network, inputs, key)
    except Exception as error:  # whatever the module raises of shapes or conditions that it does not take
        asked = f"x {shown(x)}, t, d, condition {shown(inputs[3])}"
        raise ValueError(f"{name} cannot be called on {asked}: {first_line(error)}") from error
    if not isinstance(out, jax.ShapeDtypeStruct) or out.shape != x.shape or not jnp.issubdtype(out.dtype, jnp.floating):
        raise ValueError(
            f"{name} answers {shown(out)} for x {shown(x)}, and a velocity has the shape of x: let it "
            "answer one array of that shape"
        )


def _check_arguments(function: Callable[..., Any], name: str, form: str, *args: Any, **kwargs: Any) -> None:
    try:
        inspect.signature(function).bind(*args, **kwargs)
    except TypeError as error:
        raise ValueError(
            f"{name} is called {form} and takes {inspect.signature(function)} ({error}): let it take those"
        ) from error
