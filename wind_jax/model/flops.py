"""Floating-point operations of the matrix products in a JAX function, counted on its jaxpr."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core


def matmul_flops(fn: Callable, *args: Any) -> int:
    """Count the FLOPs of all matrix products and convolutions that `fn(*args)` runs.

    A multiply-add is two operations. Elementwise work is not counted. The body of a scan counts once a step; of
    a `cond` the dearest branch counts; the body of a `while_loop` counts once, since its number of steps is not
    known before it runs. In convolutions, zeros around the input count; holes of a dilated input or kernel do not.

    Args:
      fn: any traceable function.
      *args: its arguments; `jax.ShapeDtypeStruct` will do.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> matmul_flops(jnp.matmul, jnp.ones((2, 3)), jnp.ones((3, 5)))
      60
    """
    return _count(jax.make_jaxpr(fn)(*args).jaxpr)


def _count(jaxpr: core.Jaxpr) -> int:
    return sum(_equation(equation) for equation in jaxpr.eqns)


def _equation(equation: core.JaxprEqn) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)
    if name == "conv_general_dilated":
        # A kernel holds the input features of one group alone, so groups need no division.
        kernel = equation.invars[1].aval.shape
        per_output = math.prod(kernel) // kernel[params["dimension_numbers"].rhs_spec[0]]
        holes = math.prod(params["lhs_dilation"])
        return 2 * math.prod(equation.outvars[0].aval.shape) * per_output // holes
    inner = [_count(sub) for sub in _subjaxprs(params.values())]
    if name == "cond":
        return max(inner)
    return sum(inner) * (params["length"] if name == "scan" else 1)


def _subjaxprs(values: Any) -> Iterator[core.Jaxpr]:
    for value in values:
        if isinstance(value, core.ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, core.Jaxpr):
            yield value
        elif isinstance(value, tuple | list):
            yield from _subjaxprs(value)
