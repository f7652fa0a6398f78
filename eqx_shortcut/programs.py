"""Compiled programs that are kept on disk, and where they must not be."""

import contextlib
from collections.abc import Iterator

import jax
from jax.experimental.compilation_cache import compilation_cache


@contextlib.contextmanager
def compiled_anew(mesh: jax.sharding.Mesh) -> Iterator[None]:
    """Where the mesh has several CPU devices, nothing is read from or written to JAX's cache of compiled programs.

    XLA (of jaxlib 0.10) runs the collectives of a program that it compiled in one order on every device, but not those of
    one that it reads back: devices then wait for one another in different ones, and after 40 seconds the process is ended.
    Other platforms keep their programs.
    """
    kept = jax.config.jax_enable_compilation_cache  # pyright: ignore[reportAttributeAccessIssue]
    if mesh.size == 1 or mesh.devices.flat[0].platform != "cpu" or not kept:
        yield
        return
    _keep(False)
    try:
        yield
    finally:
        _keep(kept)


def _keep(keep: bool) -> None:
    jax.config.update("jax_enable_compilation_cache", keep)
    compilation_cache.reset_cache()  # which asks for the setting once
