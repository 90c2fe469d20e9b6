"""The empirical tangent kernel of a problem's margins."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._problem import Problem


def tangent_kernel(
    problem: Problem, model: Any, *, batch_size: int = 256
) -> Float[Array, "n n"]:
    r"""Gram matrix $K = P P^\top$, $K_{ij} = \langle\nabla p_i, \nabla p_j\rangle$.

    $p_i$ is the hard margin of example $i$, so for labels -1 and +1 this is
    $y_i y_j \langle\nabla\Phi(x_i), \nabla\Phi(x_j)\rangle$. At most two blocks of
    `batch_size` rows of the $n \times k$ Jacobian $P$ exist at a time; each is computed
    once per block column.

    **Arguments:** `problem`; `model`, a module built like the problem's; `batch_size`,
    rows of the Jacobian held at once.

    **Returns:** shape `(n, n)`, symmetric, dtype of the parameters.

    **Raises:** `ValueError` if `batch_size < 1`.

    **Source:** Lyu and Li, Corollary 4.5; Jacot et al. 2018.
    """
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be positive; got {batch_size}.")
    theta = problem.theta_of(model)
    starts = range(0, problem.n, batch_size)
    kernel = [[jnp.zeros(())] * len(starts) for _ in starts]
    for a, start in enumerate(starts):
        rows = _jacobian(problem, theta, start, batch_size)
        for b in range(a, len(starts)):
            others = (
                rows if a == b else _jacobian(problem, theta, starts[b], batch_size)
            )
            kernel[a][b] = rows @ others.T
            kernel[b][a] = kernel[a][b].T
    return jnp.block(kernel)


def _jacobian(problem, theta, start, size):
    stop = min(start + size, problem.n)
    return _rows(problem, theta, problem.x[start:stop], problem.y[start:stop])


@eqx.filter_jit
def _rows(problem, theta, x, y):
    def margin(theta, x, y):
        return problem.loss.margin(problem.model(theta)(x), y)

    return jax.vmap(jax.grad(margin), in_axes=(None, 0, 0))(theta, x, y)
