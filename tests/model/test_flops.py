"""Counted products against closed forms."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from wind_jax.model.flops import matmul_flops

NHWC = ("NHWC", "HWIO", "NHWC")
a, b = jnp.ones((3, 4)), jnp.ones((4, 5))
square = jnp.ones((3, 3))
image = jnp.ones((2, 8, 8, 6))


def conv(features_in=6, **options):
    arguments = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": NHWC} | options
    return matmul_flops(
        lambda x, k: lax.conv_general_dilated(x, k, **arguments), image, jnp.ones((3, 3, features_in, 4))
    )


def test_products():
    assert matmul_flops(jnp.matmul, a, b) == 2 * 3 * 4 * 5
    assert matmul_flops(lambda x, y: jnp.einsum("bij,bjk->bik", x, y), jnp.ones((7, 3, 4)), jnp.ones((7, 4, 5))) == (
        7 * 2 * 3 * 4 * 5
    )
    assert matmul_flops(lambda x: jnp.sin(x) + x, a) == 0


def test_convolutions():
    per_tap = 2 * 2 * 4 * 6  # multiply-add, batch, outputs, inputs
    assert conv() == per_tap * 64 * 9
    assert conv(window_strides=(2, 2)) == per_tap * 16 * 9
    assert conv(padding="VALID") == per_tap * 36 * 9
    assert conv(features_in=3, feature_group_count=2) == per_tap * 64 * 9 // 2
    assert conv(rhs_dilation=(2, 2)) == per_tap * 64 * 9
    assert conv(lhs_dilation=(2, 2), padding=((1, 2), (1, 2))) == per_tap * 64 * 9  # every tap meets each input once


@pytest.mark.parametrize("groups", [1, 2])
def test_gradients_of_a_convolution_cost_as_much_as_the_convolution(groups):
    kernel = jnp.ones((3, 3, 6 // groups, 4))
    apply = lambda k: lax.conv_general_dilated(
        image, k, (1, 1), "SAME", dimension_numbers=NHWC, feature_group_count=groups
    )
    assert matmul_flops(jax.grad(lambda k: apply(k).sum()), kernel) == 2 * matmul_flops(apply, kernel)


def test_backward_pass_costs_two_forward_ones():
    loss = lambda x, y: jnp.sum(jnp.square(x @ y))
    assert matmul_flops(jax.grad(loss, (0, 1)), a, b) == 3 * matmul_flops(loss, a, b)


def test_control_flow():
    step = lambda x: x @ x
    one = 2 * 3**3
    scan = lambda x: lax.scan(lambda c, _: (step(c), None), x, length=7)[0]
    assert matmul_flops(scan, square) == 7 * one
    assert matmul_flops(lambda x: lax.scan(lambda c, _: (scan(c), None), x, length=2)[0], square) == 14 * one
    assert matmul_flops(jax.jit(jax.checkpoint(step)), square) == one
    assert matmul_flops(jax.vmap(step), jnp.ones((5, 3, 3))) == 5 * one
    assert matmul_flops(lambda x: lax.cond(x[0, 0] > 0, lambda v: step(step(v)), step, x), square) == 2 * one
    assert matmul_flops(lambda x: lax.while_loop(lambda v: v[0, 0] > 0, step, x), square) == one


def test_recomputation_is_counted():
    block = lambda x: jnp.sin(x @ x) @ x
    plain = matmul_flops(jax.grad(lambda x: block(x).sum()), square)
    assert matmul_flops(jax.grad(lambda x: jax.checkpoint(block)(x).sum()), square) > plain


def test_custom_derivatives():
    @jax.custom_vjp
    def f(x):
        return x @ x

    f.defvjp(lambda x: (x @ x, x), lambda x, g: (g @ x @ x,))
    assert matmul_flops(f, square) == 2 * 3**3
    assert matmul_flops(jax.grad(lambda x: f(x).sum()), square) == 3 * 2 * 3**3
