"""Gradient flow along a clock, as a vector field."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._clocks import AbstractClock
from ._problem import Problem


class Flow(eqx.Module):
    """What a vector field is evaluated on: the `args` of every solver.

    With `newton` the derivative of the path length is taken as zero. Nothing depends on
    the path length, so Newton iterations converge all the same; near zero weights that
    derivative grows like the inverse square of the norm and they would not.
    """

    problem: Problem
    clock: AbstractClock
    newton: bool = eqx.field(static=True, default=False)


def vector_field(t, y, flow: Flow):
    r"""$(\theta, (s, u, \zeta))$ along the clock: the parameters and three quadratures.

    $d\theta = vG\,d\sigma$, $ds = v\lVert G\rVert^2 d\sigma$,
    $du = (\lVert G\rVert^{-2} - u)\,ds$ with $u = tL$, and
    $d\zeta = \lVert G_\perp\rVert / (\lVert G\rVert^2\rho)\,ds$, the path length of
    $\theta/\rho$. At a stationary point ($G = 0$) everything stands still.
    """
    del t
    theta, quadratures = y
    log_risk, direction = flow.problem.log_risk_and_direction(theta)
    moving, norm = _safe_norm(direction)
    away, rho = _safe_norm(theta)
    radial = jnp.vdot(theta, direction)
    speed = flow.clock.speed(
        log_risk, norm, jnp.where(away, rho, 0), radial, flow.problem.loss
    )
    speed = jnp.where(moving, speed, 0)
    _, spherical = _safe_norm(direction - (radial / rho**2) * theta)
    ds = speed * norm * norm
    time = (1 / norm) / norm - quadratures[1]
    path = jnp.where(away, speed * spherical / rho, 0)
    if flow.newton:
        path = jax.lax.stop_gradient(path)
    return speed * direction, jnp.stack([ds, jnp.where(moving, time * ds, 0), path])


def _safe_norm(v):
    """Whether `v` is non-zero, and its norm, or 1 if not; differentiable at zero."""
    # A norm of 1e-160 squares to zero: scale by the largest entry first.
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(v)))
    scale = jnp.where(largest > 0, largest, 1)
    square = jnp.sum((v / scale) ** 2)
    nonzero = largest > 0
    return nonzero, jnp.where(
        nonzero, scale * jnp.sqrt(jnp.where(nonzero, square, 1)), 1
    )


def measured_s(problem: Problem, theta) -> Float[Array, ""]:
    r"""$\ln(n/L)$ at `theta`, by one forward pass."""
    return problem.log_risk_time(problem.log_risk(theta))


def term() -> diffrax.ODETerm:
    """The flow as a Diffrax term; `args` is a `Flow`."""
    return diffrax.ODETerm(vector_field)
