"""Muon: orthogonal updates of the matrices of blocks, each by itself, and AdamW on all else."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from eqx_shortcut import sharding
from eqx_shortcut.experiment import Experiment
from eqx_shortcut.models import DiTConfig
from eqx_shortcut.optimizer import AdamW, Muon, orthogonal
from scripts import script

collectives = script("collectives")
DEFAULT = script("digits").DEFAULT

# Paths and axes of the diffusion transformer, with 3 blocks of width 8 and 2 heads.
KERNELS = {"qkv": (3, 8, 3, 2, 4), "out": (3, 8, 8), "up": (3, 8, 32), "down": (3, 32, 8)}
OTHERS = {"blocks": {"modulation": {"kernel": (3, 8, 6, 8)}, "qkv": {"bias": (3, 3, 2, 4)}}, "final": {"kernel": (8, 4)}}


def drawn(seed: int) -> dict:
    """Parameters, or their gradients."""
    rng = np.random.default_rng(seed)
    made = lambda tree: jax.tree.map(lambda s: jnp.float32(rng.standard_normal(s)), tree, is_leaf=lambda s: type(s) is tuple)  # noqa: E731
    kernels, others = made(KERNELS), made(OTHERS)
    blocks = {name: {"kernel": kernel} for name, kernel in kernels.items()}
    blocks["qkv"] |= others["blocks"]["qkv"]
    return {"blocks": blocks | {"modulation": others["blocks"]["modulation"]}, "final": others["final"]}


@pytest.fixture(scope="module")
def params():
    return drawn(0)


def updated(optimizer, params, *several) -> dict:
    """The update of the last of these gradients."""
    with jax.numpy_dtype_promotion("standard"):
        return _updated(optimizer, params, several)  # pyright: ignore[reportReturnType]


@eqx.filter_jit
def _updated(optimizer, params, several):
    tx, updates = optimizer.build(10), None
    state = tx.init(params)
    for gradient in several:
        updates, state = tx.update(gradient, state, params)
    return updates


def matrices(tree) -> dict[str, np.ndarray]:
    """Every matrix of the blocks by itself, `(count, inputs, outputs)`: queries, keys and values of each block apart."""
    kernels = {name: np.asarray(tree["blocks"][name]["kernel"]) for name in KERNELS}
    qkv = kernels.pop("qkv").transpose(0, 2, 1, 3, 4).reshape(9, 8, 8)
    return {"qkv": qkv, **kernels}


def rest(tree) -> list[np.ndarray]:
    blocks = tree["blocks"]
    return [np.asarray(a) for a in (blocks["modulation"]["kernel"], blocks["qkv"]["bias"], tree["final"]["kernel"])]


def with_singular_values(values: np.ndarray, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """A matrix of these singular values, and the same with all of them 1."""
    u, _, v = np.linalg.svd(np.random.default_rng(rows).standard_normal((rows, columns)), full_matrices=False)
    return (u * values) @ v, u @ v


@pytest.mark.parametrize("shape", [(16, 16), (16, 48), (48, 16)])
def test_singular_values_become_nearly_1_and_singular_vectors_stay(shape):
    values = np.geomspace(1e-2, 1, 16)
    x, wanted = with_singular_values(1e3 * values, *shape)
    found = np.asarray(orthogonal(jnp.asarray(x, jnp.float32)[None])[0], np.float64)
    turned = np.linalg.svd(found, compute_uv=False)
    assert 0.65 < turned.min() and turned.max() < 1.25
    # Of the same singular vectors: a product with the transpose of U V^T is symmetric and positive.
    product = found @ wanted.T
    np.testing.assert_allclose(product, product.T, atol=1e-4)
    assert np.trace(product) == pytest.approx(turned.sum(), rel=1e-4)


def test_each_matrix_is_made_orthogonal_by_itself_at_the_size_of_adamws_updates(params):
    gradient, louder = drawn(1), drawn(1)
    # The values of one block, louder, turn no other matrix.
    louder["blocks"]["qkv"]["kernel"] = louder["blocks"]["qkv"]["kernel"].at[1, :, 2].multiply(1e3)
    quiet, loud = (matrices(updated(Muon(lr=1.0, weight_decay=0.0), params, g)) for g in (gradient, louder))
    for name, found in quiet.items():
        values = np.linalg.svd(found, compute_uv=False) / (0.2 * np.sqrt(max(found.shape[1:])))
        assert values.max() < 1.25 and np.median(values) > 0.65
        assert 0.1 < np.sqrt(np.mean(found**2)) < 0.25
        np.testing.assert_allclose(loud[name], found, rtol=1e-3, atol=1e-4)


def test_the_rest_is_adamws_to_the_bit_and_decays_alike(params):
    several = [drawn(seed) for seed in (1, 2, 3)]
    options = {"lr": 0.1, "schedule": "cosine", "warmup": 2, "weight_decay": 0.5, "beta1": 0.8}
    with jax.disable_jit():  # compiled, what is rounded between two operations is the compiler's choice
        found, wanted = [updated(optimizer(**options), params, *several) for optimizer in (Muon, AdamW)]
    for a, b in zip(rest(found), rest(wanted), strict=True):
        np.testing.assert_array_equal(a, b)
    # Matrices decay by the same share, beside what is of Muon's size.
    rate = float(np.asarray(Muon(**options).rate(10)(2)))
    for name, a in matrices(found).items():
        moved = (a + 0.5 * rate * matrices(params)[name]) / rate
        assert np.linalg.svd(moved, compute_uv=False).max() < 1.25 * 0.2 * np.sqrt(max(a.shape[1:]))


def test_the_matrices_of_the_transformer_are_found_and_nothing_else():
    config = DiTConfig(hidden=8, depth=2, heads=2, patch=2)
    network = eqx.filter_eval_shape(lambda key: config.build((4, 4, 1), 5, key=key), jax.random.key(0))
    arrays = eqx.filter(network, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
    state = jax.eval_shape(Muon().build(10).init, arrays)
    found = jax.tree_util.tree_leaves_with_path(state.inner_states["matrices"].inner_state[0].trace)
    names = {jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in found}
    assert names == {f"blocks/{name}/kernel" for name in KERNELS}


def test_one_update_without_momentum_is_optaxs(params):
    gradient = drawn(1)
    dimensions = {"qkv": MuonDimensionNumbers(1, (3, 4)), **dict.fromkeys(("out", "up", "down"), MuonDimensionNumbers(1, 2))}
    kernels = {name: gradient["blocks"][name]["kernel"] for name in KERNELS}
    reference = scale_by_muon(beta=0.0, nesterov=False, weight_dimension_numbers=dimensions)
    with jax.numpy_dtype_promotion("standard"):
        wanted, _ = jax.jit(lambda kernels: reference.update(kernels, reference.init(kernels)))(kernels)
    found = updated(Muon(lr=1.0, weight_decay=0.0, momentum=0.0), params, gradient)
    for name, shape in KERNELS.items():
        size = 0.2 * np.sqrt(max(shape[1], np.prod(shape[3:] if name == "qkv" else shape[2:])))
        np.testing.assert_allclose(found["blocks"][name]["kernel"], -size * wanted[name], rtol=1e-3, atol=1e-4)


def test_the_momentum_is_nesterovs(params):
    one, two = (drawn(seed) for seed in (1, 2))
    found = updated(Muon(lr=1.0, weight_decay=0.0, momentum=0.9), params, one, two)
    mixed = jax.tree.map(lambda a, b: 1.9 * b + 0.81 * a, one, two)
    wanted = updated(Muon(lr=1.0, weight_decay=0.0, momentum=0.0), params, mixed)
    for name, a in matrices(found).items():
        np.testing.assert_allclose(a, matrices(wanted)[name], rtol=1e-3, atol=1e-4)


def test_zeros_stay_zeros():
    assert not np.any(orthogonal(jnp.zeros((2, 3, 4))))


def test_a_network_without_blocks_is_refused():
    with pytest.raises(ValueError, match="this network has none: use AdamW"):
        Muon().build(10).init({"layers": {"up": {"kernel": jnp.zeros((8, 8))}}})


def test_devices_that_share_weights_make_whole_matrices_orthogonal_and_send_momenta_alone(params):
    """Also where they do not divide the 3 blocks; the update is that of one device."""
    mesh, tx = sharding.make_mesh(fsdp=8), Muon(lr=1.0, weight_decay=0.0).build(10)
    gradient = drawn(1)

    def update(gradient, params):
        found, _ = tx.update(gradient, tx.init(params), params)
        return sharding.lay_out(found, mesh)

    with jax.set_mesh(mesh), jax.numpy_dtype_promotion("standard"):
        compiled = jax.jit(update).lower(sharding.lay_out(gradient, mesh), sharding.lay_out(params, mesh)).compile()
        found = compiled(sharding.lay_out(gradient, mesh), sharding.lay_out(params, mesh))
    for a, b in zip(
        jax.tree.leaves(found), jax.tree.leaves(updated(Muon(lr=1.0, weight_decay=0.0), params, gradient)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    sent = sum(one.times * one.size for one in collectives.read(compiled.as_text() or ""))
    assert 0 < sent < 2 * sum(a.nbytes for a in matrices(params).values())


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("--optimizer.lr 1e-3", (AdamW, 1e-3)),
        ("objective:flow-matching --optimizer.lr 4e-3", (AdamW, 4e-3)),
        ("optimizer:muon", (Muon, DEFAULT.optimizer.lr)),
        ("objective:flow-matching optimizer:muon --optimizer.lr 1e-2 --optimizer.momentum 0.9", (Muon, 1e-2)),
    ],
)
def test_muon_is_a_word_of_the_command_line_and_takes_the_presets_settings(line, expected):
    found = Experiment("digits", {"default": ("", DEFAULT)}).parse(line.split()).optimizer
    assert (type(found), found.lr) == expected
    assert (found.schedule, found.warmup, found.clip) == ("cosine", 100, 1.0)
