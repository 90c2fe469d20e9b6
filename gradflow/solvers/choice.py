"""Choosing a solver."""

import math

import diffrax
import jax
import jax.numpy as jnp

from .._compile import jitted
from .deflated import DeflatedRKC2
from .dual import DualRodas5P
from .rosenbrock import Rodas5P

# Dimensions up to which a dense Jacobian pays.
_DENSE, _DENSE_LINEAR = 128, 500
# Examples on which a model's outputs are tested for being linear.
_TESTED = 8


def choose(problem) -> diffrax.AbstractAdaptiveSolver:
    """The solver for a problem when the user names none.

    `Rodas5P()`, with its dense Jacobian, up to 128 parameters, and `DeflatedRKC2()`
    above: there the Jacobian is what a step costs, more than the fewer steps of
    `Rodas5P` save.

    For a model that is linear in its parameters a dense Jacobian pays up to 500
    dimensions: these are the parameters, for `Rodas5P()`, or the outputs (examples
    times classes) where they are fewer, for `DualRodas5P()`.
    """
    outputs = problem.n * math.prod(problem.output_shape)
    if problem.k <= _DENSE:
        return Rodas5P()
    if min(problem.k, outputs) > _DENSE_LINEAR or not is_linear(problem):
        return DeflatedRKC2()
    return Rodas5P() if problem.k <= outputs else DualRodas5P()


def is_linear(problem) -> bool:
    """Whether the outputs are linear in the parameters, up to a constant."""
    return problem.degree in (1, None) and bool(_additive(problem))


@jitted
def _additive(problem):
    """Whether outputs change with two random moves by the sum of what each does."""
    theta = problem.theta
    size = 1 + jnp.sqrt(jnp.mean(theta**2))
    a, b = size * jax.random.normal(jax.random.key(0), (2, theta.size), theta.dtype)

    x = problem.x[:_TESTED]
    corners = jnp.stack(
        [problem.outputs(theta + move, x) for move in (0 * a, a, b, a + b)]
    )
    mixed = corners[3] - corners[1] - corners[2] + corners[0]
    rounding = 1e3 * problem.rounding * jnp.max(jnp.abs(corners))
    return jnp.max(jnp.abs(mixed)) <= rounding
