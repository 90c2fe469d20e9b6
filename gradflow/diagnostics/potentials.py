"""The potential J, its derivative and bound, and the split of gradients."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._compile import jitted
from .._problem import Problem
from .common import need_degree, point
from .snapshot import dual, smoothed_margin_slope


class Potentials(eqx.Module):
    r"""Potentials and decompositions at one point; see `potentials`.

    Parts are norms of the radial part (along $\theta$) and the spherical part (normal
    to it); radial parts carry the sign of $\langle\cdot, \theta\rangle$.

    **Attributes:**

    - `j_potential`: $J = \lVert\nabla\alpha\rVert^2/\rho^{2L-2}$.
    - `j_derivative`: $\langle\nabla J, \nabla\alpha\rangle = \tfrac{dJ}{dt}
        / (-\ell'(\alpha))$, by a Hessian-vector product.
    - `j_derivative_s`: $dJ/ds$.
    - `j_bound`: the bound of Lemma D.3 for `j_derivative`.
    - `sine_squared`: $\sin^2$ of the angle between $\theta$ and $-\nabla L$.
    - `log_radial_risk_gradient`, `log_spherical_risk_gradient`: ln of the parts of
        $\nabla L$ (radial: of $-\nabla L$, NaN where $\theta$ shrinks).
    - `radial_smoothed_margin_gradient`, `spherical_smoothed_margin_gradient`: of
        $\nabla\alpha$.
    - `radial_normalized_gradient`, `spherical_normalized_gradient`: of
        $\nabla\tilde\alpha$, $\tilde\alpha = \alpha/\rho^L$.
    - `case_ratio`: $\lVert\partial_\perp\tilde\alpha\rVert / (\lVert\partial_r
        \tilde\alpha\rVert\,\rho^{L/3})$. Lemma 3.3's proof treats the points above
        some constant by its first case, those below by its second.
    """

    j_potential: Float[Array, ""]
    j_derivative: Float[Array, ""]
    j_derivative_s: Float[Array, ""]
    j_bound: Float[Array, ""]
    sine_squared: Float[Array, ""]
    log_radial_risk_gradient: Float[Array, ""]
    log_spherical_risk_gradient: Float[Array, ""]
    radial_smoothed_margin_gradient: Float[Array, ""]
    spherical_smoothed_margin_gradient: Float[Array, ""]
    radial_normalized_gradient: Float[Array, ""]
    spherical_normalized_gradient: Float[Array, ""]
    case_ratio: Float[Array, ""]


def potentials(problem: Problem, model: Any) -> Potentials:
    r"""J with its derivative along the flow, and radial and spherical parts.

    The bound is that of Lemma D.3 as its proof gives it,
    $$\langle\nabla J, \nabla\alpha\rangle \le \frac{2\bigl(K\rho^L +
    2L(L-1)\beta\bigr)\lVert\nabla\alpha\rVert^2}{\rho^{2L}}\sin^2.$$
    In place of the proof's $K = 2K_\sigma$, with $K_\sigma$ the largest norm of any
    $\nabla^2p_i$ on the unit sphere, $K$ is here the value of the quadratic form
    $\sum_i q_i\nabla^2p_i$ at $\theta/\rho$ ($q$ the dual variables) on the unit vector
    along the spherical part of $\nabla\alpha$, which is all that the proof needs at
    this point. Holds where $L < \ell(0)$, for $L \ge 1$, the exponential or logistic
    loss and margins that are twice differentiable at $\theta$.

    **Arguments:**

    - `model`: a module, or flat parameters of shape `(k,)`.

    **Raises:** `ValueError` for a model without degree.

    **Source:** Ji and Telgarsky, Lemma D.3 with Equations (D.5) to (D.9); Lemmas C.2
    and C.3; proof of Lemma 3.3.
    """
    degree = need_degree(problem, "potentials")
    return _potentials(problem, problem.theta_of(model), degree)


@jitted
def _potentials(problem, theta, degree):
    snap = point(problem, theta)
    rho, slope = snap.rho, smoothed_margin_slope(snap)
    positive = jnp.where(rho > 0, rho, 1)
    radial = snap.radial / positive
    off_axis = snap.direction - (radial / positive) * theta
    spherical = jnp.linalg.norm(off_axis)
    direction_norm = jnp.linalg.norm(snap.direction)

    def log_j(theta):
        log_risk, direction = problem.log_risk_and_direction(theta)
        slope = problem.loss.slope_at_risk(log_risk)
        log_j = 2 * (jnp.log(jnp.linalg.norm(direction)) - jnp.log(slope))
        if degree == 1:  # Zero to the power zero is one.
            return log_j
        return log_j - (2 * degree - 2) * jnp.log(jnp.linalg.norm(theta))

    value, along = jax.jvp(log_j, (theta,), (snap.direction,))
    j = jnp.exp(value)
    q = dual(snap)
    _, curved = jax.jvp(
        jax.grad(lambda theta: jnp.vdot(q, problem.soft_margins(theta))),
        (theta,),
        (off_axis,),
    )
    curvature = rho**2 * jnp.vdot(off_axis, curved)
    curvature = curvature + 2 * (degree - 1) * (radial * rho / slope) * spherical**2
    alpha = problem.loss.inverse(snap.log_risk)
    # grad of alpha / rho^L = grad alpha / rho^L - L alpha theta / rho^(L + 2)
    radial_normalized = (radial / slope - degree * alpha / rho) / rho**degree
    spherical_normalized = spherical / slope / rho**degree
    ratio = spherical_normalized / jnp.abs(radial_normalized)
    return Potentials(
        j_potential=j,
        j_derivative=j * along / slope,
        j_derivative_s=j * along / direction_norm**2,
        j_bound=2 * curvature / slope**2 / rho ** (2 * degree),
        sine_squared=(spherical / direction_norm) ** 2,
        log_radial_risk_gradient=snap.log_risk + jnp.log(radial),
        log_spherical_risk_gradient=snap.log_risk + jnp.log(spherical),
        radial_smoothed_margin_gradient=radial / slope,
        spherical_smoothed_margin_gradient=spherical / slope,
        radial_normalized_gradient=radial_normalized,
        spherical_normalized_gradient=spherical_normalized,
        case_ratio=ratio / rho ** (degree / 3),
    )
