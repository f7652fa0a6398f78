"""The run-time checker that every annotation of this package goes through."""

import functools
from collections.abc import Callable
from typing import Any


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its annotations checked, from its first call on.

    Beartype writes and compiles a checker for each function. Done for the whole package when it is imported, that takes as
    long as importing JAX, mostly for functions that are never called.
    """

    @functools.cache
    def checked() -> Callable[..., Any]:
        return _beartype()(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return checked()(*args, **kwargs)

    return call


@functools.cache
def _beartype() -> Callable[..., Any]:
    from beartype import BeartypeConf, beartype

    # An int serves where a float is asked for (PEP 484), so that `guidance=2` is no error.
    return beartype(conf=BeartypeConf(is_pep484_tower=True))
