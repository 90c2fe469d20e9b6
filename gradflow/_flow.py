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

    $d\theta = vG\,d\sigma$, $ds = v\lVert G\rVert^2 d\sigma$ and
    $du = (\lVert G\rVert^{-2} - u)\,ds$ with $u = tL$; $M$ is the clock's `growth`.
    The path length $\zeta$ of $\theta/\rho$ and the sum $c$ of corrections of $s$ stand
    still here: the step loop adds to them. At a stationary point ($G = 0$) $\theta$ and
    all quadratures do.
    """
    theta, quadratures = flow.theta(t, y[0]), y[1]
    log_risk, direction = flow.problem.log_risk_and_direction(theta)
    moving, norm = _safe_norm(direction)
    away, rho = _safe_norm(theta)
    radial = jnp.vdot(theta, direction)
    speed = flow.clock.speed(
        log_risk, norm, jnp.where(away, rho, 0), radial, flow.problem.loss
    )
    speed = jnp.where(moving, speed, 0)
    ds = speed * norm * norm
    time = (1 / norm) / norm - quadratures[1]
    zero = jnp.zeros_like(ds)
    integrated = jnp.stack([ds, jnp.where(moving, time * ds, 0), zero, zero])
    return _without_growth(t, y[0], speed * direction, flow.clock), integrated


def _without_growth(t, v, slope, clock):
    """The slope of `v` where that of the parameters is `slope`."""
    if clock.growth(t) is None:
        return slope
    t = jnp.asarray(t, v.dtype)
    growth, rate = jax.jvp(clock.growth, (t,), (jnp.ones_like(t),))
    return (slope - rate * v) / growth


def arc_length(interpolant: diffrax.AbstractLocalInterpolation, t0, t1):
    r"""Length of $\theta/\rho$ over part of a step, by chords of the dense output.

    Two and four chords, extrapolated: fourth order in the step. The integral of
    $\lVert G_\perp\rVert / (\lVert G\rVert^2\rho)\,ds$ is the same length, but in the
    stages of a stiff step $G_\perp$, which tends to zero, is mostly the stages' own
    error times the stiffness: that overstated late increments by half. Chords see that
    error itself, without the factor.
    """

    at = jax.vmap(lambda x: interpolant.evaluate(t0 + (t1 - t0) * x)[0])
    thetas = at(jnp.linspace(0, 1, 5, dtype=jnp.asarray(t0).dtype))
    largest = jnp.max(jnp.abs(thetas))
    thetas = thetas / jnp.where(largest > 0, largest, 1)
    rho = jnp.linalg.norm(thetas, axis=-1)
    away = rho > 0
    points = thetas / jnp.where(away, rho, 1)[:, None]

    def chords(stride):
        lengths = jnp.linalg.norm(
            points[stride::stride] - points[:-stride:stride], axis=-1
        )
        # A flow may start at zero, which has no direction.
        return jnp.sum(
            jnp.where(away[stride::stride] & away[:-stride:stride], lengths, 0)
        )

    fine, coarse = chords(1), chords(2)
    # From zero on the coarse chords are missing a half and the fine ones a quarter.
    return jnp.where(away[0], (4 * fine - coarse) / 3, fine)


def with_path(y, interpolant, t0, t1):
    """Adds the path length since `t0` to a state that has the one at `t0`."""
    theta, quadratures = y
    return theta, quadratures.at[2].add(arc_length(interpolant, t0, t1))


def _safe_norm(v):
    """Whether `v` is non-zero, and its norm, or 1 if not; differentiable at zero."""
    norm = _norm(v)
    nonzero = norm > 0
    return nonzero, jnp.where(nonzero, norm, 1)


@jax.custom_jvp
def _norm(v):
    # A norm of 1e-160 squares to zero: where squares lose digits, scale by the largest
    # entry first, which takes several times as long.
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
    return scale * jnp.linalg.norm(v / scale)


def measured_s(problem: Problem, theta) -> Float[Array, ""]:
    r"""$\ln(n/L)$ at `theta`, by one forward pass."""
    return problem.log_risk_time(problem.log_risk(theta))


def term() -> diffrax.ODETerm:
    """The flow as a Diffrax term; `args` is a `Flow`."""
    return diffrax.ODETerm(vector_field)
