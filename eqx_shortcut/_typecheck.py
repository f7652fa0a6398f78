"""The run-time checker that every annotation of this package goes through, but those of the command line's own modules."""

import functools
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

EDGE = ("__main__", "cli", "commands", "interrupts", "ranges", "optimizer", "objectives", "data.sources")
EDGE += ("experiment.config", "experiment.main")
"""Settings and the command line, which are not checked: settings check themselves (see ranges), an objective's loss is checked
where it is defined, and `--help` need not wait for the checker."""


def install(package: str) -> None:
    """Checks, at trace time, every annotation below a package; JAXTYPING_DISABLE=1 turns that off."""
    sys.meta_path.insert(0, Finder(package))


class Finder(importlib.abc.MetaPathFinder):
    """Jaxtyping's import hook for a package, which is imported with the first module that it checks."""

    def __init__(self, package: str):
        self._package = package

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The module with its annotations checked, if it is one of the package's."""
        package, _, name = fullname.partition(".")
        if package != self._package or not name or name in EDGE or name.partition(".")[0] in EDGE:
            return None
        return self._hook.find_spec(fullname, path, target)

    @functools.cached_property
    def _hook(self) -> Any:
        # First: what is imported from inside a module that the hook loads is compiled anew, and JAX is much.
        import equinox  # noqa: F401
        from jaxtyping import install_import_hook

        installed = install_import_hook(self._package, f"{__name__}.check")
        installed.uninstall()  # it is asked here
        return installed.hook


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
