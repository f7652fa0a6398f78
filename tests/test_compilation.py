"""Which compiled programs are kept on disk."""

import pathlib
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from eqx_shortcut import compilation, sharding


@pytest.fixture
def kept(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """The folder of a cache of its own, in which every program is kept."""
    told = {"jax_compilation_cache_dir": str(tmp_path), "jax_persistent_cache_min_compile_time_secs": 0.0}
    before = {name: getattr(jax.config, name) for name in told}
    for settings in (told, before):
        for name, value in settings.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        if settings is told:
            yield tmp_path


def test_programs_of_several_cpu_devices_are_compiled_anew_and_others_kept(kept):
    """Read back, those of a mesh with several axes hang: each device waits in another collective."""
    written = []
    for number, devices in enumerate((1, 8, 1)):
        mesh = sharding.make_mesh(devices=jax.devices()[:devices])
        x = sharding.replicate(jnp.zeros(3), mesh)
        before = len(list(kept.iterdir()))
        with compilation.compiled_for(mesh):
            jax.jit(lambda x, number=number: x + number)(x)
        written.append(len(list(kept.iterdir())) > before)
    assert written == [True, False, True]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The compiler's options of each program made by `compilation.jit`, whatever level the tests are compiled at."""
    monkeypatch.setenv("XLA_FLAGS", "")
    seen, jit = [], eqx.filter_jit

    def watched(function, **options):
        def noting(*args):
            seen.append(options.get("compiler_options", {}))
            return function(*args)

        return jit(noting, **options)

    monkeypatch.setattr(eqx, "filter_jit", watched)
    return seen


def drawn(key):
    return jax.random.normal(key, (1001,)), jax.random.uniform(key, (33, 9), minval=-0.3, maxval=0.3)


def test_a_cpu_compiles_at_the_lowest_level_to_the_bits_of_the_highest(seen, key):
    found = compilation.jit(drawn)(key)
    assert seen == [{compilation.LEVEL: 1}]
    highest: dict[str, Any] = {compilation.LEVEL: 3}
    optimised = jax.jit(drawn).lower(key).compile(highest)(key)
    for one, other in zip(found, optimised, strict=True):
        assert jnp.array_equal(one, other)


def test_within_another_program_its_level_holds(seen, key):
    function = compilation.jit(drawn)
    expected = function(key)
    assert jax.tree.map(jnp.shape, jax.eval_shape(function, key)) == ((1001,), (33, 9))
    for one, other in zip(jax.jit(function)(key), expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert seen == [{compilation.LEVEL: 1}, {}]


@pytest.mark.parametrize(("backend", "flags"), [("gpu", ""), ("cpu", "--xla_backend_optimization_level=3")])
def test_another_backend_and_a_level_in_the_flags_are_left_alone(seen, key, monkeypatch, backend, flags):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setenv("XLA_FLAGS", flags)
    compilation.jit(drawn)(key)
    assert seen == [{}]


def test_what_is_donated_is_consumed(seen):
    x = jnp.arange(3.0)
    assert compilation.jit(lambda x: x + 1, donate="all")(x)[0] == 1 and x.is_deleted()
