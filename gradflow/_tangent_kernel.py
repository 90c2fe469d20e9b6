"""The empirical tangent kernel of a problem's margins."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._compile import jitted
from ._problem import Problem
from .diagnostics.common import refuse_coupled

_FEW = 8  # Examples whose outputs alone are held against those among all.


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

    **Raises:** `ValueError` if `batch_size < 1`, or for a model that couples examples.

    **Source:** Lyu and Li, Corollary 4.5; Jacot et al. 2018.
    """
    theta = problem.theta_of(model)
    refuse_coupled(problem, theta, np.arange(min(_FEW, problem.n)))

    def rows(part: slice) -> Float[Array, "rows k"]:
        return _rows(problem, theta, problem.x[part], problem.y[part])

    return gram(rows, problem.n, batch_size)


def gram(rows: Callable[[slice], Any], count: int, batch_size: int):
    r"""$PP^\top$ of a matrix $P$ of `count` rows; `rows` gives a slice of them.

    At most two blocks of `batch_size` rows are held at a time.

    **Raises:** `ValueError` if `batch_size < 1`.
    """
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be positive; got {batch_size}.")
    parts = [slice(i, min(i + batch_size, count)) for i in range(0, count, batch_size)]
    kernel: list[list[Any]] = [[None] * len(parts) for _ in parts]
    for a, part in enumerate(parts):
        first = rows(part)
        for b in range(a, len(parts)):
            second = first if a == b else rows(parts[b])
            kernel[a][b] = jnp.matmul(first, second.T, precision="highest")
            kernel[b][a] = kernel[a][b].T
    return jnp.block(kernel)


@jitted
def _rows(problem, theta, x, y):
    def margin(theta, x, y):
        return problem.loss.margin(problem.outputs(theta, x[None])[0], y)

    return jax.vmap(jax.grad(margin), in_axes=(None, 0, 0))(theta, x, y)
