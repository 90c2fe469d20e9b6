"""Choosing a solver."""

import math

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp

from .deflated import DeflatedRKC2
from .dual import DualRodas5P
from .rosenbrock import Rodas5P

SMALL, LARGEST_DENSE = 128, 1500
# Examples on which a model's outputs are tested for being linear.
_TESTED = 8


def choose(
    problem, to: float | int, rtol: float | int
) -> diffrax.AbstractAdaptiveSolver:
    """The solver for a problem, from here to log-risk time `to`, when the user names
    none.

    `Rodas5P()`, with its dense Jacobian, up to 128 dimensions, and `DeflatedRKC2()`
    above 1500. In between the Jacobian is what a step costs, and `DeflatedRKC2()` is
    the cheaper while `to` is at most 1e4 and `rtol` at least 1e-6: further on its
    stages are too many, which grow like the root of a step, and at a tighter tolerance
    its steps. Dimensions are the parameters, or, for a model that is linear in them,
    the outputs (examples times classes) where these are fewer: then `DualRodas5P()`.
    """
    far = to > 1e4 or rtol < 1e-6
    limit = LARGEST_DENSE if far else SMALL
    if problem.k <= limit:
        return Rodas5P()
    return DualRodas5P() if _linear_and_smaller(problem, limit) else DeflatedRKC2()


def _linear_and_smaller(problem, limit: int) -> bool:
    outputs = problem.n * math.prod(problem.output_shape)
    if outputs > min(limit, problem.k - 1) or problem.degree not in (1, None):
        return False
    return bool(_linear(problem))


@eqx.filter_jit
def _linear(problem):
    """Whether outputs change with two random moves by the sum of what each does."""
    theta = problem.theta
    size = 1 + jnp.sqrt(jnp.mean(theta**2))
    a, b = size * jax.random.normal(jax.random.key(0), (2, theta.size), theta.dtype)

    def outputs(theta):
        model = problem.model(theta)
        return jax.vmap(model, axis_name="batch")(problem.x[:_TESTED])

    corners = jnp.stack([outputs(theta + move) for move in (0 * a, a, b, a + b)])
    mixed = corners[3] - corners[1] - corners[2] + corners[0]
    rounding = 1e3 * problem.rounding * jnp.max(jnp.abs(corners))
    return jnp.max(jnp.abs(mixed)) <= rounding
