"""Corrections of low rank: the same function at first, one dense layer at the end, and nothing else moved in between."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from eqx_shortcut.experiment import Experiment
from eqx_shortcut.experiment.checks import check
from eqx_shortcut.models.dit import DiTConfig
from eqx_shortcut.models.layers import Dense
from eqx_shortcut.models.low_rank import LowRank, corrected, kept_in, merged, plain
from eqx_shortcut.optimizer import AdamW
from scripts import script

X = jnp.asarray(np.random.default_rng(0).standard_normal((5, 6)), jnp.float32)


@pytest.fixture
def layers(key) -> dict:
    """Two stacked layers of several output axes, and an array that is no layer."""
    build = eqx.filter_vmap(lambda key: Dense(6, (2, 3), key=key))
    return {"qkv": build(jax.random.split(key, 2)), "scale": jnp.ones(3)}


@pytest.fixture
def moved(layers, key) -> dict:
    """Corrections that are not zero."""
    fresh = corrected(layers, 2, key=key)
    return eqx.tree_at(lambda t: t["qkv"].right, fresh, jax.random.normal(key, (2, 2, 2, 3)))


def answer(dense, i: int = 1):
    return jax.tree.map(lambda a: a[i], dense)(X, jnp.float32)


def test_fresh_corrections_change_nothing(layers, key):
    fresh = corrected(layers, 2, key=key)
    np.testing.assert_array_equal(answer(merged(fresh)["qkv"]), answer(layers["qkv"]))
    assert plain(fresh)["qkv"].kernel is layers["qkv"].kernel and fresh["scale"] is layers["scale"]
    assert fresh["qkv"].left.any() and not fresh["qkv"].right.any()


def test_corrections_add_their_product(moved):
    low = moved["qkv"]
    expected = answer(low.kept) + np.einsum("ni,ir,rab->nab", X, low.left[1], low.right[1])
    np.testing.assert_allclose(answer(merged(moved)["qkv"]), expected, atol=1e-5)


def test_corrections_keep_the_layers_they_are_given(moved, layers):
    other = jax.tree.map(lambda a: a + 1, layers)
    found = kept_in(moved, other)
    np.testing.assert_array_equal(found["qkv"].kept.kernel, other["qkv"].kernel)
    np.testing.assert_array_equal(found["qkv"].left, moved["qkv"].left)
    np.testing.assert_array_equal(found["scale"], other["scale"])


def test_no_correction_repeats_the_numbers_of_a_kernel(key):
    """Each key is used once: a normal number is no function of a uniform one, which it is where both are of the same bits."""
    blocks = DiTConfig(hidden=16, depth=3, heads=2, patch=1, low_rank=4).build((2, 2, 1), 2, key=key).blocks
    for low in (blocks.modulation, blocks.qkv, blocks.out, blocks.up, blocks.down):
        assert isinstance(low, LowRank)
        for kernel in low.kept.kernel.reshape(3, -1):
            n = min(kernel.size, low.left.size)
            assert abs(np.corrcoef(low.left.ravel()[:n], kernel[:n])[0, 1]) < 0.5


def test_training_moves_corrections_alone(moved):
    """Weight decay too leaves the layers that are kept."""
    tx = AdamW(lr=0.1, weight_decay=0.5, frozen="/kept/").build(3)

    @eqx.filter_jit
    def step(tree, state):
        gradient = eqx.filter_grad(lambda tree: jnp.sum(answer(merged(tree)["qkv"]) ** 2))(tree)
        updates, state = tx.update(gradient, state, tree)
        return eqx.apply_updates(tree, updates), state, gradient

    tree, state = moved, tx.init(moved)
    for _ in range(2):
        with jax.numpy_dtype_promotion("standard"):
            tree, state, gradient = step(tree, state)
        assert not any(leaf.any() for leaf in jax.tree.leaves(gradient["qkv"].kept))
    for before, after in zip(jax.tree.leaves(moved["qkv"].kept), jax.tree.leaves(tree["qkv"].kept), strict=True):
        np.testing.assert_array_equal(before, after)
    assert isinstance(tree["qkv"], LowRank)
    assert (tree["qkv"].left != moved["qkv"].left).all() and (tree["qkv"].right != moved["qkv"].right).all()
    moments = jax.tree.leaves(eqx.filter(state, eqx.is_inexact_array))
    sizes = sum(leaf.size for leaf in (moved["qkv"].left, moved["qkv"].right, moved["scale"]))
    assert sum(leaf.size for leaf in moments) == 2 * sizes, "kept layers have no moments"


def test_nothing_frozen_is_adamw():
    tx = AdamW().build(1)
    assert jax.tree.structure(tx.init({"a": X})) == jax.tree.structure(
        optax.adamw(lambda _: 1e-4, weight_decay=0.1).init({"a": X})
    )


@pytest.mark.parametrize("pattern", ["nowhere/", ""])
def test_a_pattern_of_no_or_all_parameters_is_refused(layers, pattern):
    with pytest.raises(ValueError, match="is in the paths of all parameters, or of none"):
        AdamW(frozen=pattern).build(1).init(eqx.filter(layers, eqx.is_array))


def test_what_is_no_pattern_is_refused():
    with pytest.raises(ValueError, match=r"frozen='\(' is no regular expression"):
        AdamW(frozen="(")


def test_corrections_of_layers_that_are_not_kept_are_refused():
    digits = Experiment("digits", {"default": ("", script("digits").DEFAULT)})
    for others in ([], ["--optimizer.frozen", "patches/"]):
        with pytest.raises(ValueError, match=r"keep them by --optimizer.frozen /kept/"):
            check(digits.parse(["--network.low-rank", "4", *others]))
    check(digits.parse(["--network.low-rank", "4", "--optimizer.frozen", "/kept/"]))
