"""Floating-point operations: of a traced program, of a training step, and what chips can do in a second."""

import math
import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr  # pyright: ignore[reportPrivateImportUsage]  # one class from JAX 0.11 on
from jax.interpreters.partial_eval import dce_jaxpr

from .objectives import Networks, Objective
from .types import Batch

PEAKS = (
    # NVIDIA's tables give the sparse rate, twice the dense one: 360 PFLOP/s for the 72 GPUs of GB200 NVL72 and of GB300 NVL72,
    # 36 for the 8 of HGX B200 and of HGX B300.
    (r"GB[23]00", 2500e12),
    (r"B[23]00", 2250e12),
    (r"H100 PCIe", 756e12),
    (r"H[12]00 NVL", 835e12),  # data sheets of the H100 NVL and the H200: 1,671 sparse
    (r"H100|H200|GH200", 989e12),
    (r"A100", 312e12),
    (r"L40S", 362e12),
    (r"L40$", 181e12),  # data sheet of the L40: 181.05 dense, 362.1 sparse
    (r"L4$", 121e12),
    (r"A10$", 125e12),
    # docs.cloud.google.com/tpu/docs/tpu7x: 2307 a chip, which is two devices to JAX, its TensorCores.
    (r"TPU ?v?7", 1153.5e12),
    (r"TPU v6", 918e12),
    (r"TPU v5 ?(lite|e)", 197e12),
    (r"TPU v5", 459e12),
    (r"TPU v4", 275e12),
)
"""Dense bfloat16 operations a second by pattern of `device_kind` (data sheets of NVIDIA and Google); the first match wins."""


def peak(device: Any) -> float | None:
    """Dense bfloat16 operations a second of a device by the table `PEAKS`; None where it is not listed, as no CPU is."""
    return next((value for pattern, value in PEAKS if re.search(pattern, device.device_kind)), None)


def of_step(objective: Objective, networks: Networks, batch: int, shape: tuple[int, ...]) -> int:
    """Model operations of a training step on `batch` examples, conditions as `networks.null`: of the loss and its gradient.

    About three forward passes of each example, and what targets need. Nothing is counted for what the backward pass computes
    again (but in a network that forbids tangents), nor for the optimizer.
    """
    trained, rest = eqx.partition(networks.trained, eqx.is_inexact_array)

    def loss(trained):
        null = jax.tree.map(jnp.asarray, networks.null)
        examples = Batch(jnp.zeros((batch, *shape)), jax.tree.map(lambda n: jnp.zeros((batch, *n.shape), n.dtype), null))
        given = networks.with_trained(eqx.combine(trained, rest))
        return objective(given, examples, jax.random.key(0), jnp.zeros(()))[0]

    # The gradient is the transpose of the tangent, product by product, but recomputes; what no gradient reaches is left out.
    program = jax.make_jaxpr(lambda trained: jax.jvp(loss, (trained,), (trained,)))(trained)
    if "custom_lin" in _names(program):  # what `jax.custom_vjp` has in place of a tangent
        program = jax.make_jaxpr(jax.value_and_grad(loss))(trained)
    return flops(dce_jaxpr(program.jaxpr, [True] * len(program.jaxpr.outvars))[0])


def flops(jaxpr: ClosedJaxpr | Jaxpr) -> int:
    """Multiplications and additions in matrix products and convolutions, each pass of a scan counted.

    XLA's own analysis counts the body of a loop once, and the blocks of a network are such a body.
    """
    return sum(_flops(equation) for equation in (jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr).eqns)


def _flops(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return 2 * equation.outvars[0].aval.size * math.prod(equation.invars[0].aval.shape[i] for i in contracted)
    if name == "rows_matmul":  # see eqx_shortcut.models.matmul
        _, *inputs = equation.invars[0].aval.shape
        return 2 * equation.outvars[0].aval.size * math.prod(inputs)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval
        return 2 * equation.outvars[0].aval.size * kernel.size // kernel.shape[params["dimension_numbers"].rhs_spec[0]]
    inner = [flops(program) for value in params.values() for program in _programs(value)]
    if name == "cond":
        return max(inner)
    return params.get("length", 1) * sum(inner) if name == "scan" else sum(inner)


def _names(jaxpr: ClosedJaxpr | Jaxpr) -> set[str]:
    """Primitives of a program, those within its loops and calls too."""
    equations = (jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr).eqns
    inner = [program for equation in equations for value in equation.params.values() for program in _programs(value)]
    return {equation.primitive.name for equation in equations}.union(*map(_names, inner))


def _programs(value: Any) -> list[ClosedJaxpr | Jaxpr]:
    if isinstance(value, ClosedJaxpr | Jaxpr):
        return [value]
    return [program for item in value for program in _programs(item)] if isinstance(value, tuple | list) else []
