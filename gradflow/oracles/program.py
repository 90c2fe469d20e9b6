r"""The margin problem as a nonlinear program, whole or one layer at a time.

$\min\tfrac12\|u\|^2$ subject to $c(u) \ge 1$, with $c$ piecewise smooth: its switches
$z(u)$ vanish on the kinks.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._compile import jitted
from .._losses import CrossEntropy
from .._problem import Problem
from .switches import hidden_kinks, switches


class MarginProgram(eqx.Module):
    r"""Constraints as functions of `u`, the parameters at `index` of `theta`.

    **Attributes:** `problem`; `theta`, the whole parameters, fixed outside `index`;
    `index`, positions of `u`; `degree` of homogeneity in `u`, or `None`; `moving`, the
    numbers of the switches that depend on `u` (`None`: all).
    """

    problem: Problem
    theta: Float[Array, " k"]
    index: Int[Array, " u"]
    degree: float | None = eqx.field(static=True)
    moving: Int[np.ndarray, " switches"] | None = None

    @staticmethod
    def whole(problem: Problem) -> "MarginProgram":
        """Problem (1) of Vardi et al.: all parameters."""
        index = jnp.arange(problem.k)
        return MarginProgram(problem, problem.theta, index, problem.degree)

    @staticmethod
    def layer(problem: Problem, theta, number: int) -> "MarginProgram":
        """Problem (3) of Vardi et al.: one layer, the others as in `theta`."""
        index = problem.split_layers(jnp.arange(problem.k))[number]
        degree = problem.layer_degrees[number]
        program = MarginProgram(problem, theta, index, degree)
        # A switch whose gradient vanishes at all of some random points never switches.
        here = np.asarray(theta[index])
        draws = np.random.default_rng(0).standard_normal((8, len(here)))
        normals = np.array([program.switches(u)[1] for u in (here, *draws)])
        moving = np.flatnonzero(np.any(normals != 0, axis=(0, 2)))
        return MarginProgram(problem, theta, index, degree, moving)

    def fill(self, u: Float[Array, " u"]) -> Float[Array, " k"]:
        """The whole parameters with `u` in its place."""
        return self.theta.at[self.index].set(u)

    def constraints(self, u: Float[Array, " u"]) -> Float[Array, " constraints"]:
        """Margins, one per example and (for several classes) wrong class."""
        problem = self.problem
        out = problem.outputs(self.fill(u))
        if not isinstance(problem.loss, CrossEntropy):
            return jax.vmap(problem.loss.margin)(out, problem.y)
        true = jnp.take_along_axis(out, problem.y[:, None], axis=1)
        wrong = jax.nn.one_hot(problem.y, out.shape[1], dtype=bool)
        gaps = (true - out).ravel()
        # True classes come last, where they can be cut off with a static shape.
        order = jnp.argsort(wrong.ravel(), stable=True)
        return gaps[order[: out.size - len(out)]]

    def hidden_kinks(self) -> list[str]:
        """Operations of the model whose kinks the analysis cannot see."""
        return hidden_kinks(self.constraints, self.theta[self.index])

    def values(self, u: np.ndarray) -> np.ndarray:
        """$c(u)$."""
        return np.asarray(_evaluate(self, jnp.asarray(u))[0])

    def constraints_and_jacobian(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """$c(u)$ and its gradients, shape `(constraints, u)`."""
        c, jacobian, _, _ = _evaluate(self, jnp.asarray(u))
        return np.asarray(c), np.asarray(jacobian)

    def jacobian(self, u: np.ndarray) -> np.ndarray:
        """Gradients of the constraints, shape `(constraints, u)`."""
        return self.constraints_and_jacobian(u)[1]

    def switches(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """$z(u)$ and its gradients."""
        _, _, z, jacobian = _evaluate(self, jnp.asarray(u))
        return np.asarray(z), np.asarray(jacobian)

    def hessian(self, u, multipliers, switch_multipliers) -> np.ndarray:
        r"""Of $\tfrac12\|u\|^2 - \langle\lambda, c\rangle - \langle\mu, z\rangle$."""
        args = (jnp.asarray(a) for a in (u, multipliers, switch_multipliers))
        return np.eye(len(u)) - np.asarray(_hessian(self, *args))


@jitted
def _evaluate(program, u):
    """Constraints, switches and the gradients of both, compiled together."""

    def both(u):
        values = program.constraints(u), _switches(program, u)
        return values, values

    (jacobian, normals), (c, z) = jax.jacrev(both, has_aux=True)(u)
    return c, jacobian, z, normals


def _switches(program, u):
    z = switches(program.constraints, u)
    return z if program.moving is None else z[program.moving]


@jitted
def _hessian(program, u, multipliers, switch_multipliers):
    def weighted(u):
        z = _switches(program, u)
        c = program.constraints(u)
        return jnp.vdot(multipliers, c) + jnp.vdot(switch_multipliers, z)

    return jax.hessian(weighted)(u)
