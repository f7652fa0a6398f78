"""Which compiled programs are kept on disk."""

import pathlib
from collections.abc import Iterator

import equinox as eqx
import jax
import jax.numpy as jnp
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


def test_a_program_that_runs_once_has_the_bits_of_an_optimised_one(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    function = eqx.filter_jit(
        lambda key: (jax.random.normal(key, (1001,)), jax.random.uniform(key, (33, 9), minval=-0.3, maxval=0.3))
    )
    key = jax.random.key(0)
    optimised = function.lower(key).compile({compilation.LEVEL: 3})(key)
    for found, expected in zip(compilation.run_once(function, key), optimised, strict=True):
        assert jnp.array_equal(found, expected)
    assert [leaf.shape for leaf in eqx.filter_eval_shape(lambda key: compilation.run_once(function, key), key)] == [
        (1001,),
        (33, 9),
    ]
