"""How programs are compiled, which are kept on disk, and where they must not be."""

import contextlib
import functools
import os
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.core
from jax.experimental.compilation_cache import compilation_cache

from . import storage


def use_compilation_cache() -> str | None:
    """Keeps compiled programs on disk, so that a second run of the same settings starts in seconds.

    Where there is no folder for them that can be written nothing is kept; the answer is then a sentence that says so.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return None
    try:
        folder = storage.cache_home() / "xla"
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # permissions do not tell of a disk that is read-only
            jax.config.update("jax_compilation_cache_dir", str(folder))
    except (OSError, storage.StorageError) as error:
        return f"compiled programs are not kept, so that a second run starts no faster ({error})"
    return None


def jit(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """`eqx.filter_jit(function, **options)`, which a CPU compiles in less time and runs no slower (docs/performance.md).

    It is optimised at LLVM's level 1: weights, drawn or trained, have the bits of the highest. Level 0 makes others, since it
    fuses no product with a sum. A level in XLA_FLAGS stays, and that of a program of which the call is a part.
    """
    at_level: dict[str, Any] = options | {"compiler_options": {LEVEL: 1}}
    plain, quick = eqx.filter_jit(function, **options), eqx.filter_jit(function, **at_level)

    @functools.wraps(function)
    def call(*args, **named):
        if not lowers_level():
            return plain(*args, **named)
        within = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((args, named)))
        return (plain if within else quick)(*args, **named)

    return call


def lowers_level() -> bool:
    """Whether `jit` asks for LLVM's level 1 here."""
    return jax.default_backend() == "cpu" and LEVEL not in os.environ.get("XLA_FLAGS", "")


LEVEL = "xla_backend_optimization_level"


@contextlib.contextmanager
def compiled_anew() -> Iterator[None]:
    """Nothing is read from or written to JAX's cache of compiled programs."""
    kept = jax.config.jax_enable_compilation_cache  # pyright: ignore[reportAttributeAccessIssue]
    _keep(False)
    try:
        yield
    finally:
        _keep(kept)


def compiled_for(mesh: jax.sharding.Mesh) -> contextlib.AbstractContextManager[None]:
    """`compiled_anew` where the mesh has several CPU devices; other programs are kept.

    XLA (of jaxlib 0.10) runs the collectives of a program that it compiled in one order on every device, but not those of
    one that it reads back: devices then wait for one another in different ones, and after 40 seconds the process is ended.
    """
    several_cpus = mesh.size > 1 and mesh.devices.flat[0].platform == "cpu"
    return compiled_anew() if several_cpus else contextlib.nullcontext()


def _keep(keep: bool) -> None:
    jax.config.update("jax_enable_compilation_cache", keep)
    compilation_cache.reset_cache()  # which asks for the setting once
