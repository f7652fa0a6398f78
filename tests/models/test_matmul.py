import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqx_shortcut.models.matmul import matmul


def pair(key, x_batch=(), kernel_batch=()):
    k_x, k_kernel = jax.random.split(key)
    return jax.random.normal(k_x, (*x_batch, 3, 4)), jax.random.normal(k_kernel, (*kernel_batch, 4, 5))


MAPS = {
    "none": (lambda f: f, (), ()),
    "examples": (lambda f: jax.vmap(f, (0, None)), (6,), ()),
    "kernels": (lambda f: jax.vmap(f, (None, 0)), (), (6,)),
    "both": (lambda f: jax.vmap(f), (6,), (6,)),
    "examples of examples": (lambda f: jax.vmap(jax.vmap(f, (0, None)), (0, None)), (2, 6), ()),
    "examples by kernels": (lambda f: jax.vmap(jax.vmap(f, (0, None)), (None, 0)), (6,), (2,)),
    "pairs of examples": (lambda f: jax.vmap(jax.vmap(f, (0, None))), (2, 6), (2,)),
}


@pytest.mark.parametrize("name", MAPS)
def test_product_and_derivatives_are_matmuls(key, name):
    mapped, x_batch, kernel_batch = MAPS[name]
    arguments = pair(key, x_batch, kernel_batch)
    tangents = pair(jax.random.key(1), x_batch, kernel_batch)

    def everything(product):
        out, tangent = jax.jvp(mapped(product), arguments, tangents)
        loss = lambda *a: jnp.sum(jnp.sin(mapped(product)(*a)))  # noqa: E731
        return out, tangent, jax.grad(loss, (0, 1))(*arguments), jax.jvp(jax.grad(loss, (0, 1)), arguments, tangents)

    found, expected = (jax.jit(everything, static_argnums=0)(product) for product in (matmul, jnp.matmul))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-5)


def test_hessian(key):
    x, kernel = pair(key)
    found, expected = (jax.hessian(lambda k, f=f: jnp.sum(jnp.sin(f(x, k))))(kernel) for f in (matmul, jnp.matmul))
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_any_axis_may_be_mapped(key, axis):
    x, kernel = pair(key, (6,))
    found = jax.vmap(matmul, (axis, None))(jnp.moveaxis(x, 0, axis), kernel)
    np.testing.assert_allclose(found, jnp.matmul(x, kernel), atol=1e-6)


def products(function, *arguments) -> list[tuple[int, ...]]:
    """Shapes of the results of the products that `function` compiles to, before optimisation."""
    text = jax.jit(function).lower(*arguments).as_text()
    lines = [line for line in text.splitlines() if "dot_general" in line]
    return [tuple(int(n) for n in line.rsplit("tensor<", 1)[1].split("x")[:-1]) for line in lines]


def test_mapped_over_examples_it_stays_one_product_of_matrices(key):
    x, kernel = pair(key, (6,))
    assert products(jax.vmap(matmul, (0, None)), x, kernel) == [(18, 5)]
    loss = lambda x, kernel: jnp.sum(jnp.sin(jax.vmap(matmul, (0, None))(x, kernel)))  # noqa: E731
    assert sorted(products(jax.grad(loss, (0, 1)), x, kernel)) == [(4, 5), (18, 4), (18, 5)]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_dtype_is_kept(key, dtype):
    x, kernel = (a.astype(dtype) for a in pair(key))
    assert matmul(x, kernel).dtype == dtype
