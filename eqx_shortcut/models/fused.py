"""cuDNN's attention with the forward-mode derivative its kernel lacks: values and gradients of the kernel, tangents by XLA."""

import functools

import jax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

from .attention import attend

Tokens = Float[Array, "tokens heads dim"]


@jax.custom_jvp
def fused_attend(q: Tokens, k: Tokens, v: Tokens) -> Tokens:
    """`softmax(q . k) v` for each head by cuDNN's kernel, in bfloat16 on an NVIDIA GPU, without attention weights in memory.

    Its gradient is the kernel's own. A tangent, and the derivative of a tangent, are those of `attend`.
    """
    # The kernel's variant that keeps what a gradient needs: XLA merges it with the same one of the backward pass.
    return jax.vjp(kernel, q, k, v)[0]


def kernel(q: Tokens, k: Tokens, v: Tokens) -> Tokens:
    """The kernel as JAX has it, without a forward-mode derivative."""
    return jax.nn.dot_product_attention(q, k, v, scale=1.0, implementation="cudnn")


@fused_attend.defjvp
def _(primals, tangents):
    return fused_attend(*primals), _tangent_p.bind(*primals, *tangents, maps=0)


def _tangent(q, k, v, *tangents):
    def attention(*qkv):
        return attend(*(a.transpose(1, 0, 2) for a in qkv)).transpose(1, 0, 2)

    return jax.jvp(attention, (q, k, v), tangents)[1]


def _pull(q, k, v, cotangent):
    return jax.vjp(kernel, q, k, v)[1](cotangent)


def _mapped(function, maps):
    """`function` mapped over as many leading axes."""
    return functools.reduce(lambda f, _: jax.vmap(f), range(maps), function)


def _impl(*qkv_and_tangents, maps):
    return _mapped(_tangent, maps)(*qkv_and_tangents)


def _jvp(primals, tangents, *, maps):
    tangents = tuple(map(ad.instantiate_zeros, tangents))
    return jax.jvp(functools.partial(_impl, maps=maps), primals, tangents)


def _transpose(cotangent, q, k, v, *tangents, maps):
    pulled = _mapped(_pull, maps)(q, k, v, cotangent)
    return [None] * 3 + [p if ad.is_undefined_primal(t) else None for p, t in zip(pulled, tangents, strict=True)]


def _batch(arguments, axes, *, maps):
    pairs = list(zip(arguments, axes, strict=True))
    size = next(a.shape[axis] for a, axis in pairs if axis is not None)
    return _tangent_p.bind(*(batching.bdim_at_front(a, axis, size) for a, axis in pairs), maps=maps + 1), 0


# The tangent as a function of those of q, k and v, with a transpose of its own: JAX's `linear_call`, which cannot be mapped.
_tangent_p = Primitive("fused_attention_tangent")
_tangent_p.def_impl(_impl)
_tangent_p.def_abstract_eval(lambda q, *_, **__: ShapedArray(q.shape, q.dtype))
mlir.register_lowering(_tangent_p, mlir.lower_fun(_impl, multiple_results=False))
batching.primitive_batchers[_tangent_p] = _batch
ad.primitive_jvps[_tangent_p] = _jvp
ad.primitive_transposes[_tangent_p] = _transpose
