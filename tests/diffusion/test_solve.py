"""Krylov solvers against dense linear algebra."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wind_jax.diffusion.solve import SOLVERS, cg, gmres


def systems(symmetric):
    """Two members' systems of 6 unknowns, over a pytree of leaves (2, 2, 2) and (2, 2)."""
    rng = np.random.default_rng(1)
    a = rng.standard_normal((2, 6, 6))
    a = a @ a.transpose(0, 2, 1) + np.eye(6) if symmetric else a + 4 * np.eye(6)
    b = rng.standard_normal((2, 6))

    def tree(v):
        return {"field": v[:, :4].reshape(2, 2, 2), "point": v[:, 4:]}

    def flat(tree):
        return jnp.concatenate([tree["field"].reshape(2, 4), tree["point"]], 1)

    def matvec(v):
        return tree(jnp.einsum("b i j, b j -> b i", a, flat(v)))

    def solve(solver, iterations):
        return jax.jit(lambda b: flat(solver(matvec, tree(b), iterations)))(b)

    return a, b, solve


@pytest.mark.parametrize(("name", "symmetric"), [("cg", True), ("gmres", True), ("gmres", False)])
def test_solves(name, symmetric, x64):
    """Six unknowns take six iterations; those beyond do no harm."""
    a, b, solve = systems(symmetric)
    x = solve(SOLVERS[name], 8)
    np.testing.assert_allclose(x, np.linalg.solve(a, b[..., None])[..., 0], atol=1e-9)


def test_gmres_minimises_the_residual(x64):
    all_a, all_b, solve = systems(symmetric=False)
    all_x = solve(gmres, 3)
    for a, b, x in zip(all_a, all_b, all_x):
        krylov = np.stack([b, a @ b, a @ a @ b], 1)
        best = krylov @ np.linalg.lstsq(a @ krylov, b)[0]
        np.testing.assert_allclose(x, best, atol=1e-9)


def test_cg_minimises_the_energy_norm(x64):
    all_a, all_b, solve = systems(symmetric=True)
    all_x = solve(cg, 3)
    for a, b, x in zip(all_a, all_b, all_x):
        krylov = np.stack([b, a @ b, a @ a @ b], 1)
        best = krylov @ np.linalg.solve(krylov.T @ a @ krylov, krylov.T @ b)
        np.testing.assert_allclose(x, best, atol=1e-9)


def test_cg_stops_at_non_positive_curvature():
    """A = diag(1, -1): from b = (2, 1) the first step has curvature 3 and the second -12 / 9 x 5 < 0."""
    matvec = lambda v: v * jnp.asarray([[1.0, -1.0], [1.0, 2.0]])
    b = jnp.asarray([[2.0, 1.0], [2.0, 1.0]])
    x = jax.jit(lambda b: cg(matvec, b, 8))(b)
    np.testing.assert_allclose(x[0], np.array([2.0, 1.0]) * 5 / 3, rtol=1e-6)
    np.testing.assert_allclose(x[1], [2.0, 0.5], rtol=1e-5)
    negative = jax.jit(lambda b: cg(lambda v: -v, b, 3))(b)
    np.testing.assert_array_equal(negative, jnp.zeros_like(b))
    factor = jnp.asarray([[jnp.nan, 1.0], [1.0, 1.0]])
    broken = jax.jit(lambda b: cg(lambda v: v * factor, b, 3))(b)
    np.testing.assert_array_equal(broken, jnp.asarray([[0.0, 0.0], [2.0, 1.0]]))


@pytest.mark.parametrize("name", SOLVERS)
def test_zero_right_hand_side_and_convergence_are_safe(name):
    b = jnp.asarray([[0.0, 0.0], [3.0, 0.0]])
    x = jax.jit(lambda b: SOLVERS[name](lambda v: 2 * v, b, 4))(b)
    np.testing.assert_allclose(x, b / 2, rtol=1e-6)
