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
    """Raises ValueError unless the arrays have these names and shapes."""
    missing, extra = sorted(expected.keys() - named.keys()), sorted(named.keys() - expected.keys())
    if missing or extra:
        raise ValueError(
            f"not the parameters of this architecture: {len(missing)} missing{_shown(missing)}, {len(extra)} left "
            f"over{_shown(extra)}; check depth and names"
        )
    wrong = {name: shape for name, shape in expected.items() if tuple(named[name].shape) != shape}
    if wrong:
        first, shape = next(iter(wrong.items()))
        others = f", and {len(wrong) - 1} more differ{_shown(list(wrong)[1:])}" if len(wrong) > 1 else ""
        raise ValueError(f"parameter {first} has shape {tuple(named[first].shape)}, the architecture asks for {shape}{others}")


def _shown(names: Iterable[str]) -> str:
    names = list(names)
    more = ", ..." if len(names) > SHOWN else ""
    return f" ({', '.join(names[:SHOWN])}{more})" if names else ""
