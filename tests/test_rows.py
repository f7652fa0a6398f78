import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqx_shortcut import sharding
from eqx_shortcut.rows import (
    check_divides,
    check_groups,
    check_share,
    expand,
    merge_microbatches,
    merge_rows,
    parts,
    split_microbatches,
    split_rows,
    where_rows,
)

COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")


def tree_of(n: int):
    a = jnp.arange(n * 6, dtype=jnp.float32).reshape(n, 2, 3)
    return {"x": a, "label": jnp.arange(n), "nested": [None, (a[:, 0, 0] > 9, a[:, 0].astype(jnp.bfloat16))]}


@pytest.mark.parametrize("shape", [(), (2,), (2, 3), (2, 3, 4), (2, 1, 3, 2)])
def test_expand_scales_each_example_by_its_own(shape):
    x = jnp.arange(3.0 * np.prod(shape, dtype=int)).reshape(3, *shape) + 1
    t = jnp.array([0.0, 2.0, -1.5])
    expected = jnp.stack([float(s) * row for s, row in zip(t, x, strict=True)])
    np.testing.assert_array_equal(expand(t, x) * x, expected)


def test_expand_takes_the_dtype_of_the_examples():
    assert expand(jnp.ones(2), jnp.ones((2, 3), jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize("every", [2, 3, 4, 12])
def test_merge_inverts_split(every):
    tree = tree_of(12)
    merged = merge_rows(*split_rows(tree, every), every)
    assert jax.tree.structure(merged) == jax.tree.structure(tree)
    for found, expected in zip(jax.tree.leaves(merged), jax.tree.leaves(tree), strict=True):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("every", [2, 3, 6])
def test_split_takes_rows_by_stride_and_the_rest_in_order(every):
    first, rest = split_rows(tree_of(12), every)
    label = np.arange(12)
    np.testing.assert_array_equal(first["label"], label[::every])
    np.testing.assert_array_equal(rest["label"], label[label % every > 0])
    np.testing.assert_array_equal(first["x"], tree_of(12)["x"][::every])


def test_microbatches_are_rows_by_stride_and_merge_inverts_them():
    tree = tree_of(12)
    found = split_microbatches(tree, 4)
    np.testing.assert_array_equal(found["label"], np.arange(12).reshape(3, 4).T)
    np.testing.assert_array_equal(found["x"][1], tree["x"][1::4])
    jax.tree.map(np.testing.assert_array_equal, merge_microbatches(found), tree)
    with pytest.raises(
        ValueError, match="batch 12 is not a multiple of microbatches=5: use a batch of 10 or 15, or microbatches=4 or 6"
    ):
        split_microbatches(tree, 5)


@pytest.mark.parametrize(("n", "groups", "expected"), [(24, 3, 24), (48, 4, 8), (40, 8, 8), (16, 1, 8), (12, 3, 3)])
def test_no_part_lies_on_two_devices_where_the_rows_divide_so(n, groups, expected):
    """Over 8 devices; without a mesh there is one."""
    assert parts(n, groups) == groups
    with jax.set_mesh(sharding.make_mesh()):
        assert parts(n, groups) == expected


def test_split_names_batch_rule_and_remedy():
    with pytest.raises(ValueError, match=r"batch 9 is not a multiple of every=8: use a batch of 8 or 16, or every=3 or 9$"):
        split_rows(jnp.zeros((9, 2)), 8)


def test_check_divides_accepts_divisors():
    check_divides(12, 4)


@pytest.mark.parametrize("groups", [-3, 0])
def test_nothing_divides_a_batch_into_none(groups):
    with pytest.raises(ValueError, match=rf"groups={groups} divides no batch: use 1 or more"):
        check_groups(12, groups)


@pytest.mark.parametrize("every", [-1, 0, 1])
def test_a_share_leaves_rows_for_flow_matching(every):
    with pytest.raises(ValueError, match=rf"bootstrap_every={every} leaves no row for flow matching: use 2 or more"):
        check_share(12, every)


def test_a_share_divides_the_batch():
    check_share(12, 2)
    check_share(12, 12)
    with pytest.raises(
        ValueError, match=r"batch 12 is not a multiple of bootstrap_every=5: .* 10 or 15, or bootstrap_every=4 or 6$"
    ):
        check_share(12, 5)


def test_divisors_that_are_offered_are_the_nearest():
    with pytest.raises(ValueError, match=r"batch 10 is not a multiple of every=3: use a batch of 9 or 12, or every=2 or 5$"):
        check_divides(10, 3)


def test_sets_are_of_two_rows_or_more():
    check_groups(12, 6)
    for groups in (1, 9):
        told = f"groups={groups} of a batch of {groups} are sets of one row, .*: use a batch of {2 * groups} or more"
        with pytest.raises(ValueError, match=told):
            check_groups(groups, groups)
        check_groups(2 * groups, groups)


@pytest.mark.parametrize("every", range(2, 9))
@pytest.mark.parametrize("shares", [1, 2, 5])
def test_what_a_refusal_offers_works(every, shares):
    for batch in filter(lambda batch: batch % every, range(60)):
        with pytest.raises(ValueError) as caught:
            check_share(batch, every, shares=shares)
        batches, _, divisors = str(caught.value).partition(": use a batch of ")[2].partition(", or bootstrap_every=")
        offered = [(int(n), every) for n in batches.split(" or ")] + [(batch, int(k)) for k in divisors.split(" or ") if k]
        assert all(n % k == 0 and n // k >= shares and k >= 2 for n, k in offered) and len(offered) <= 4


@pytest.mark.parametrize("shape", [(), (3,), (2, 2)])
def test_where_rows_selects_whole_rows(shape):
    mask = jnp.array([True, False, True])
    yes, no = jnp.ones((3, *shape)), jnp.zeros((3, *shape))
    found = where_rows(mask, {"a": yes, "b": None}, {"a": no, "b": None})
    np.testing.assert_array_equal(found["a"], expand(mask.astype(float), yes) * yes)


def compiled_for_eight_devices(function) -> str:
    mesh = sharding.make_mesh()
    assert mesh.size == 8
    x = jax.device_put(jnp.zeros((64, 4)), sharding.batch_sharding(mesh))
    layout = sharding.batch_sharding(mesh)
    return jax.jit(function, in_shardings=layout, out_shardings=layout).lower(x).compile().as_text() or ""


def split_and_merge(x):
    first, rest = split_rows(x, 4)
    return jnp.sin(first), merge_rows(jnp.cos(first), jnp.tanh(rest), 4)


def test_split_and_merge_move_nothing_between_devices():
    text = compiled_for_eight_devices(split_and_merge)
    assert not [name for name in COLLECTIVES if name in text]


def test_slicing_instead_would_move_rows():
    text = compiled_for_eight_devices(lambda x: jnp.sin(x[:16]))
    assert [name for name in COLLECTIVES if name in text]
