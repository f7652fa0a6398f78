"""A module from named arrays, by the function that names the arrays of such a module."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

Named = Mapping[str, np.ndarray | Array]
Module = TypeVar("Module", bound=eqx.Module)
SHOWN = 3
"""Names of each kind in a sentence."""


def filled(like: Module, name: Callable[[Any], dict[str, Array]], named: Named) -> Module:
    """The module `m` of the structure of `like` with `name(m) == named`; arrays that `name` leaves out are 0.

    `name` only permutes the entries of arrays, cuts them apart, joins them, or turns their sign. Raises ValueError listing
    what is missing, left over, or of another shape.
    """
    arrays, static = eqx.partition(like, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))

    def rename(arrays):
        return name(eqx.combine(arrays, static))

    expected = jax.eval_shape(rename, arrays)
    check_names(named, {key: leaf.shape for key, leaf in expected.items()})
    values = {key: jnp.asarray(named[key], leaf.dtype) for key, leaf in expected.items()}
    # Such a map is orthogonal: its transpose is its inverse, and the two cannot disagree.
    (arrays,) = jax.jit(jax.linear_transpose(rename, arrays))(values)
    return eqx.combine(arrays, static)


def check_names(named: Named, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raises ValueError unless the arrays have these names and shapes, and are of real numbers."""
    missing, extra = sorted(expected.keys() - named.keys()), sorted(named.keys() - expected.keys())
    faults = [f"{len(missing)} missing{_shown(missing)}, {len(extra)} left over{_shown(extra)}"] * bool(missing or extra)
    wrong = [name for name in expected if name in named and tuple(named[name].shape) != expected[name]]
    if wrong:
        more = f", and {len(wrong) - 1} more differ{_shown(wrong[1:])}" if len(wrong) > 1 else ""
        shape = tuple(named[wrong[0]].shape)
        faults.append(f"parameter {wrong[0]} has shape {shape}, the architecture asks for {expected[wrong[0]]}{more}")
    odd = [name for name in expected if name in named and not jnp.issubdtype(named[name].dtype, jnp.floating)]
    if odd:
        faults.append(f"parameter {odd[0]} is of {named[odd[0]].dtype}, the architecture asks for real numbers")
    if faults:
        raise ValueError(f"not the parameters of this architecture: {'; '.join(faults)}")


def _shown(names: Iterable[str]) -> str:
    names = list(names)
    more = ", ..." if len(names) > SHOWN else ""
    return f" ({', '.join(names[:SHOWN])}{more})" if names else ""
