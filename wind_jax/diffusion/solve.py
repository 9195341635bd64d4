"""Krylov solvers for a batch of systems A x = b, one for each member, on pytrees with leaves `(b, ...)`.

Inner products run over the whole pytree of one member. The number of iterations is fixed; starting from zero,
each solver returns the best approximation within the Krylov space.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from wind_jax.diffusion.denoiser import expand_like

MatVec = Callable[[PyTree], PyTree]


def _dot(u: PyTree, v: PyTree) -> Float[Array, "b"]:
    products = jax.tree.map(lambda u, v: (u * v).reshape(u.shape[0], -1).sum(1), u, v)
    return jax.tree.reduce(jnp.add, products)


def _add_scaled(u: PyTree, scale: Float[Array, "b"], v: PyTree) -> PyTree:
    return jax.tree.map(lambda u, v: u + expand_like(scale, v) * v, u, v)


def _select(flag: Array, u: PyTree, v: PyTree) -> PyTree:
    return jax.tree.map(lambda u, v: jnp.where(expand_like(flag, u) > 0, u, v), u, v)


def cg(matvec: MatVec, b: PyTree, iterations: int) -> PyTree:
    """Conjugate gradients for symmetric positive definite A (Hestenes and Stiefel, 1952).

    A member stops where it is when it meets p^T A p <= 0, or not a number, or has converged: the Jacobian of
    a learned denoiser is neither symmetric nor positive.

    Args:
        matvec: A, linear, each member for itself.
        b: Leaves `(b, ...)`.
        iterations: Products with A.

    Returns:
        x like `b`.

    Raises:
        ValueError: Fewer than one iteration.
    """
    _check(iterations)

    def iterate(state, _):
        x, r, p, rr = state
        ap = matvec(p)
        curvature = _dot(p, ap)
        go_on = (curvature > 0) & jnp.isfinite(curvature)
        step = rr / jnp.where(go_on, curvature, 1)
        x = _select(go_on, _add_scaled(x, step, p), x)
        r = _select(go_on, _add_scaled(r, -step, ap), r)
        new_rr = _dot(r, r)
        # A direction of zero has no curvature, so a member that has stopped stays stopped.
        p = _add_scaled(r, new_rr / jnp.where(rr > 0, rr, 1), p)
        p = _select(go_on, p, jax.tree.map(jnp.zeros_like, p))
        return (x, r, p, new_rr), None

    start = (jax.tree.map(jnp.zeros_like, b), b, b, _dot(b, b))
    return jax.lax.scan(iterate, start, None, length=iterations)[0][0]


def gmres(matvec: MatVec, b: PyTree, iterations: int) -> PyTree:
    """GMRES without restarts, for any A (Saad and Schultz, 1986): the smallest residual in the Krylov space.

    Args:
        matvec: A, linear, each member for itself.
        b: Leaves `(b, ...)`.
        iterations: Products with A, and vectors of the size of `b` that are kept.

    Returns:
        x like `b`.

    Raises:
        ValueError: Fewer than one iteration.
    """
    _check(iterations)
    dtype = jnp.result_type(*jax.tree.leaves(b))

    def unit(u):
        norm = jnp.sqrt(_dot(u, u))
        return jax.tree.map(lambda u: u / expand_like(jnp.where(norm > 0, norm, 1), u), u), norm

    def project(basis, u):
        return jax.vmap(_dot, (0, None))(basis, u)  # (iterations + 1, b)

    def combine(weights, basis):
        return jax.tree.map(lambda q: jnp.einsum("k b, k b ... -> b ...", weights, q), basis)

    def iterate(basis, k):
        u = matvec(jax.tree.map(lambda q: q[k], basis))
        size = jnp.sqrt(_dot(u, u))
        column = jnp.zeros((iterations + 1, size.shape[0]), dtype)
        for _ in range(2):  # the second pass of Gram-Schmidt removes what rounding left
            overlap = project(basis, u)
            u = jax.tree.map(jnp.subtract, u, combine(overlap, basis))
            column = column + overlap
        q, norm = unit(u)
        # What rounding left of a vector within the space is no new direction.
        new = norm > 10 * jnp.finfo(dtype).eps * size
        q = _select(new, q, jax.tree.map(jnp.zeros_like, q))
        basis = jax.tree.map(lambda basis, q: basis.at[k + 1].set(q), basis, q)
        return basis, column.at[k + 1].add(jnp.where(new, norm, 0))

    first, size = unit(b)
    basis = jax.tree.map(lambda q: jnp.zeros((iterations + 1, *q.shape), q.dtype).at[0].set(q), first)
    basis, columns = jax.lax.scan(iterate, basis, jnp.arange(iterations))
    hessenberg = columns.transpose(2, 1, 0)  # (b, iterations + 1, iterations)
    target = jnp.zeros(hessenberg.shape[:2], dtype).at[:, 0].set(size)
    weights = jax.vmap(lambda h, r: jnp.linalg.lstsq(h, r)[0])(hessenberg, target)
    return combine(weights.T, jax.tree.map(lambda q: q[:-1], basis))


SOLVERS = {"cg": cg, "gmres": gmres}


def _check(iterations: int) -> None:
    if iterations < 1:
        raise ValueError(f"A solver needs at least one iteration, got {iterations}.")
