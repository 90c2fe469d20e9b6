"""One point of a trajectory, with what all diagnostics are derived from."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._problem import Problem


class Snapshot(eqx.Module):
    r"""A point $\theta$ of the flow: margins, log risk and ascent direction.

    **Attributes:**

    - `problem`, `theta`: the problem and its flat parameters, shape `(k,)`.
    - `margins`: hard margins $p_i$, shape `(n,)`; `soft_margins` those in the loss.
    - `log_risk`: $\ln L$; `direction`: $G = -\nabla\ln L$, shape `(k,)`.
    - `rho`: $\lVert\theta\rVert$; `radial`: $\langle\theta, G\rangle$.
    - `clock`: log-risk time as integrated since the last step; `time`: $u = tL$;
        `path_length`: $\zeta$; `correction`: what the clock was corrected by so far.
    """

    problem: Problem
    theta: Float[Array, " k"]
    margins: Float[Array, " n"]
    soft_margins: Float[Array, " n"]
    log_risk: Float[Array, ""]
    direction: Float[Array, " k"]
    rho: Float[Array, ""]
    radial: Float[Array, ""]
    clock: Float[Array, ""]
    time: Float[Array, ""]
    path_length: Float[Array, ""]
    correction: Float[Array, ""]

    @property
    def s(self) -> Float[Array, ""]:
        r"""Measured log-risk time $\ln(n/L)$."""
        return self.problem.log_risk_time(self.log_risk)


def snapshot(
    problem: Problem,
    theta: Float[Array, " k"],
    quadratures: Float[Array, "4"] | None = None,
) -> Snapshot:
    """Evaluates one point; `quadratures` holds clock, time, path length, correction.

    Without them (a single point, no trajectory) those four are NaN.
    """
    if quadratures is None:
        quadratures = jnp.full((4,), jnp.nan, theta.dtype)
    margins, soft_margins = problem.both_margins(theta)
    log_risk, direction = problem.log_risk_and_direction(theta)
    return Snapshot(
        problem=problem,
        theta=theta,
        margins=margins,
        soft_margins=soft_margins,
        log_risk=log_risk,
        direction=direction,
        rho=jnp.linalg.norm(theta),
        radial=jnp.vdot(theta, direction, precision="highest"),
        clock=quadratures[0],
        time=quadratures[1],
        path_length=quadratures[2],
        correction=quadratures[3],
    )


def weights(snap: Snapshot) -> Float[Array, " n"]:
    r"""$w_i = -\ell'(p_i)/L$, with $G = \sum_i w_i\nabla p_i$; shape `(n,)`."""
    loss = snap.problem.loss
    share = jax.nn.softmax(loss.log_loss(snap.soft_margins))
    return share * loss.log_slope(snap.soft_margins)


def dual(snap: Snapshot) -> Float[Array, " n"]:
    r"""Dual variables $q_i = \partial\alpha/\partial p_i = \ell'(p_i)/\ell'(\alpha)$.

    **Source:** Ji and Telgarsky, Appendix E.
    """
    return weights(snap) / smoothed_margin_slope(snap)


def smoothed_margin_slope(snap: Snapshot) -> Float[Array, ""]:
    r"""$-\ell'(\alpha)/\ell(\alpha)$, which turns $G$ into $\nabla\alpha$."""
    loss = snap.problem.loss
    return loss.slope_at_risk(snap.log_risk)
