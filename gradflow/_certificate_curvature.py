"""Checks of second derivatives at the end of a trajectory."""

import jax
import jax.numpy as jnp
import numpy as np

from ._check import Check, after_separation, at_most, clock_rounding, eps_of, near
from ._compile import jitted
from ._losses import Exponential, Logistic
from .diagnostics.potentials import potentials


def j_growth(traj, final) -> Check | None:
    r"""$d\ln J/d\ln\rho$ along the flow and its bound, with $\sin^2$ as saved.

    Both are those of `potentials`, times $\rho^2/(JL\beta)$.
    """
    problem = final.problem
    lemma = isinstance(problem.loss, Exponential | Logistic)
    names = {"misalignment", "j_potential", "beta", "rho"}
    if not (lemma and names <= set(traj)) or not (problem.degree or 0) >= 1:
        return None
    if not after_separation(traj)[-1]:
        return None
    found = potentials(problem, final.snap.theta)
    misalignment, beta = traj["misalignment"][-1], traj["beta"][-1]
    scale = traj["rho"][-1] ** 2 / (traj["j_potential"][-1] * problem.degree * beta)
    sine_squared = max(float(found.sine_squared), np.finfo(float).tiny)
    share = misalignment * (2 - misalignment) / sine_squared
    return at_most(
        "growth of J",
        scale * float(found.j_derivative),
        scale * float(found.j_bound) * share,
        "Ji and Telgarsky, Lemma D.3",
        tolerance=100 * eps_of(traj) * (1 + problem.degree * abs(traj.s[-1])),
    )


def hessian_along_theta(traj, final) -> Check | None:
    r"""$\nabla^2\ln L\,\theta$ by a Hessian-vector product, and without one.

    Outputs $f$ of degree $L$ have $\nabla^2f\,\theta = (L-1)\nabla f$, so with
    $F(f) = \ln L$ and $D$ the Jacobian of $f$ the product is
    $D^\top\bigl((L-1)\nabla F + \nabla^2F\,Lf\bigr)$: a Hessian only in the outputs.
    The difference is relative to $\lVert G\rVert$; margins of order s are rounded.
    """
    if not final.problem.degree or final.stationary:
        return None
    found, expected = _along_theta(final.problem, final.snap.theta)
    value = jnp.linalg.norm(found - expected) / jnp.linalg.norm(final.snap.direction)
    source = "Ji and Telgarsky, Lemma D.1, by Euler's theorem"
    rounding = clock_rounding(traj, traj.s[-1])
    tolerance = 100 * (eps_of(traj) + final.problem.degree * rounding)
    return near("Hessian along theta", value, 0.0, tolerance, source)


@jitted
def _along_theta(problem, theta):
    def slope_of(outputs):
        return jax.grad(problem.loss.log_risk)(outputs, problem.y)

    outputs, pull = jax.vjp(problem.outputs, theta)
    slope, change = jax.jvp(slope_of, (outputs,), (problem.degree * outputs,))
    (expected,) = pull((problem.degree - 1) * slope + change)
    _, found = jax.jvp(jax.grad(problem.log_risk), (theta,), (theta,))
    return found, expected
