"""Seeds of any size, each its own."""

import jax
import numpy as np
import pytest

from eqx_shortcut import rng


def data(seed: int) -> tuple[int, ...]:
    return tuple(np.asarray(jax.random.key_data(rng.key(seed))).tolist())


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1])
@pytest.mark.parametrize("wide", [False, True])
def test_a_seed_of_32_bits_is_that_of_jax(seed, wide):
    with jax.enable_x64(wide):
        assert data(seed) == tuple(np.asarray(jax.random.key_data(jax.random.key(seed))).tolist())


def test_seeds_that_share_their_low_bits_differ_at_any_size():
    """Also where words between are 0, and in the order of the words."""
    seeds = [1, 2**32 + 1, 2**33 + 1, 2**63 + 1, 2**64 + 1, 2**64, 2**96, 2**32, 2**200 + 1, 2**32 * 5 + 7, 2**32 * 7 + 5]
    assert len({data(seed) for seed in seeds}) == len(seeds)
    images = {float(jax.random.normal(rng.key(seed))) for seed in seeds}
    assert len(images) == len(seeds)


def test_a_negative_seed_is_refused():
    with pytest.raises(ValueError, match="seed -3: use an integer from 0"):
        rng.key(-3)
