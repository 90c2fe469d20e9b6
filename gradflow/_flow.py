"""Gradient flow along a clock, as a vector field."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._clocks import AbstractClock
from ._problem import Problem

# Log-risk time, time, path length and corrections of the first.
QUADRATURES = 4


class Flow(eqx.Module):
    """What a vector field is evaluated on: the `args` of every solver."""

    problem: Problem
    clock: AbstractClock

    def theta(self, t, v: Float[Array, " k"]) -> Float[Array, " k"]:
        """The parameters where the solver has `v` (linear in `v`)."""
        growth = self.clock.growth(t)
        return v if growth is None else growth * v


def vector_field(t, y, flow: Flow):
    r"""$(\theta/M, (s, u, \zeta, c))$ along the clock: parameters and quadratures.

    $d\theta = vG\,d\sigma$ and $ds = v\lVert G\rVert^2 d\sigma$; $M$ is the clock's
    `growth`. Of $u = tL$, with $du = L\,dt - u\,ds$, solvers see $L\,dt = v\,d\sigma$
    alone, and the step loop makes $u$ of it: the equation's rate is $-1$, which
    Chebyshev stages damp by 0.33 to 0.95 a step, however long that is. The path length
    $\zeta$ of $\theta/\rho$ and the sum $c$ of corrections of $s$ stand still here: the
    step loop adds to them. At a stationary point ($G = 0$) $\theta$ and all quadratures
    do.
    """
    theta = flow.theta(t, y[0])
    log_risk, direction = flow.problem.log_risk_and_direction(theta)
    moving, norm = _safe_norm(direction)
    away, rho = _safe_norm(theta)
    radial = jnp.vdot(theta, direction)
    speed = flow.clock.speed(
        log_risk, norm, jnp.where(away, rho, 0), radial, flow.problem.loss
    )
    speed = jnp.where(moving, speed, 0)
    ds = speed * norm * norm
    zero = jnp.zeros_like(ds)
    integrated = jnp.stack([ds, speed, zero, zero])
    return _without_growth(t, y[0], speed * direction, flow.clock), integrated


def _without_growth(t, v, slope, clock):
    """The slope of `v` where that of the parameters is `slope`."""
    if clock.growth(t) is None:
        return slope
    t = jnp.asarray(t, v.dtype)
    growth, rate = jax.jvp(clock.growth, (t,), (jnp.ones_like(t),))
    return (slope - rate * v) / growth


def _safe_norm(v):
    """Whether `v` is non-zero, and its norm, or 1 if not; differentiable at zero."""
    norm = _norm(v)
    nonzero = norm > 0
    return nonzero, jnp.where(nonzero, norm, 1)


# Up to so many entries a pass for the largest takes less than a choice.
_FEW = 1000


@jax.custom_jvp
def _norm(v):
    # A norm of 1e-160 squares to zero: where squares lose digits, scale by the largest
    # entry first, which takes several times as long.
    if v.size <= _FEW:
        return _scaled_norm(v)
    square = jnp.vdot(v, v)
    info = jnp.finfo(v.dtype)
    exact = (square > info.tiny / info.eps**2) & (square < jnp.inf)
    return jax.lax.cond(exact, lambda: jnp.sqrt(square), lambda: _scaled_norm(v))


@_norm.defjvp
def _norm_jvp(primals, tangents):
    (v,), (dv,) = primals, tangents
    norm = _norm(v)
    return norm, jnp.vdot(v / jnp.where(norm > 0, norm, 1), dv)


def _scaled_norm(v):
    largest = jnp.max(jnp.abs(v))
    scale = jnp.where(largest > 0, largest, 1)
    v = v / scale
    return scale * jnp.sqrt(jnp.vdot(v, v))


def measured_s(problem: Problem, theta) -> Float[Array, ""]:
    r"""$\ln(n/L)$ at `theta`, by one forward pass."""
    return problem.log_risk_time(problem.log_risk(theta))


def term() -> diffrax.ODETerm:
    """The flow as a Diffrax term; `args` is a `Flow`."""
    return diffrax.ODETerm(vector_field)
