"""What a JAX function costs, from its jaxpr alone: operations of its matrix products, bytes of its backward pass."""

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


def backward_bytes(fn: Callable, *args: Any) -> tuple[int, list[int]]:
    """Bytes that the backward pass of `fn(*args)` to its first argument reads.

    Args:
      fn: any traceable function.
      *args: its arguments; `jax.ShapeDtypeStruct` will do.

    Returns:
      kept: all that the forward pass leaves for it; not arguments, which are there anyway.
      blocks: for every scan, and for what is under `jax.checkpoint` in it, what one step has for itself meanwhile: its
        arguments, and what it makes of them.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> twice = lambda body: lambda x: jax.lax.scan(body, x, None, length=2)[0]
      >>> body = lambda x, _: (jnp.sin(jnp.sin(x)), None)
      >>> backward_bytes(twice(body), jnp.ones(10))  # two cosines a step
      (160, [80])
      >>> backward_bytes(twice(jax.checkpoint(body)), jnp.ones(10))  # the argument of each step
      (80, [40, 80])
    """
    blocks = _blocks(jax.make_jaxpr(fn)(*args).jaxpr)
    return _residuals(fn, *args), [_residuals_of(block) for block in blocks]


def by_sample(size: Callable[[int], tuple[int, list[int]]]) -> tuple[tuple[int, int], list[tuple[int, int]]]:
    """Takes apart what `backward_bytes` counts: what grows with the samples, and what is of parameters and does not.

    Args:
      size: number of samples -> what `backward_bytes` gives of them.

    Returns:
      kept: bytes of each sample, bytes whatever their number.
      blocks: the same of every block.

    Example:
      >>> by_sample(lambda samples: (7 + 3 * samples, [5 * samples]))
      ((3, 7), [(5, 0)])
    """
    (kept, blocks), (kept_by_two, blocks_by_two) = size(1), size(2)
    apart = lambda one, two: (two - one, 2 * one - two)
    return apart(kept, kept_by_two), [apart(*pair) for pair in zip(blocks, blocks_by_two, strict=True)]


def _residuals(fn: Callable, *args: Any, arguments: bool = False) -> int:
    pullback = lambda first, *rest: jax.vjp(lambda first: fn(first, *rest), first)[1]
    jaxpr = jax.make_jaxpr(pullback)(*args).jaxpr
    left = {v for v in jaxpr.outvars if isinstance(v, core.Var)}
    return sum(v.aval.size * v.aval.dtype.itemsize for v in (left if arguments else left - set(jaxpr.invars)))


def _residuals_of(jaxpr: core.Jaxpr) -> int:
    block = core.jaxpr_as_fun(core.ClosedJaxpr(jaxpr, ()))
    return _residuals(lambda inputs: block(*inputs), [v.aval for v in jaxpr.invars], arguments=True)


def _blocks(jaxpr: core.Jaxpr) -> Iterator[core.Jaxpr]:
    for equation in jaxpr.eqns:
        for inner in _subjaxprs(equation.params.values()):
            if equation.primitive.name in ("scan", "remat2"):
                yield inner
            yield from _blocks(inner)


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
    if name.startswith("dot_product_attention_"):  # cuDNN's, of (b, n, heads, d); its gradient costs twice as much
        query, key = (v.aval.shape for v in equation.invars[:2])
        return (8 if "_bwd" in name else 4) * math.prod(query) * key[1]
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
