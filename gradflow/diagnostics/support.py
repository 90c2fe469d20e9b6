"""Dual variables: which examples carry the flow, at a point and along a trajectory."""

from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy.interpolate import PchipInterpolator
from scipy.special import softmax

from .._compile import jitted
from .._losses import AbstractLoss
from .._problem import Problem
from .common import need_degree, point
from .snapshot import dual


class Support(eqx.Module):
    r"""The dual variables $q_i = \partial\alpha/\partial p_i$ and who supports; see
    `support`.

    **Attributes:**

    - `dual`: $q_i \ge 0$, shape `(n,)`.
    - `total`: $\sum q_i$, which tends to 1 (and is at most 2).
    - `examples`: those with $q_i/\sum q$ above the threshold, heaviest first.
    - `counts`: how many margins lie within each of `levels` of the smallest.
    - `balance`: $\sum q_i p_i/\rho^L - \min_i p_i/\rho^L$, which tends to zero.
    """

    dual: Float[np.ndarray, " n"]
    total: float
    examples: Int[np.ndarray, " m"]
    counts: Int[np.ndarray, " levels"]
    levels: Float[np.ndarray, " levels"]
    balance: float


def support(
    problem: Problem,
    model: Any,
    *,
    threshold: float = 1e-3,
    levels: Sequence[float] = (1.0, 2.0, 3.0, 4.0, 5.0, 10.0),
) -> Support:
    r"""Support examples of a model, by weight and by margin, and Lemma E.3's balance.

    The lemma says that limits $\bar q$ of the dual variables lie in the simplex and
    are balanced on the smallest margins, $\sum\bar q_i p_i/\rho^L \to \min_i
    p_i/\rho^L$. (It writes the left side as $\langle\theta, \nabla p_i\rangle$, which
    is $L p_i$ by Euler's identity: a factor $L$ is missing there.)

    **Arguments:**

    - `model`: a module, or flat parameters of shape `(k,)`.
    - `threshold`: share of the dual weight from which an example counts.
    - `levels`: distances from the smallest margin, in units of the margin itself: an
        example at distance $c$ has weight $e^{-c}$ relative to the worst one.

    **Raises:** `ValueError` for a model without degree.

    **Source:** Ji and Telgarsky, Lemma E.3; Lyu and Li's published code for the counts.
    """
    degree = need_degree(problem, "support")
    snap = point(problem, problem.theta_of(model))
    q = np.asarray(dual(snap), np.float64)
    margins = np.asarray(snap.margins, np.float64)
    soft_margins = np.asarray(snap.soft_margins, np.float64)
    total = float(np.sum(q))
    order = np.argsort(-q, kind="stable")
    smallest = float(np.min(margins))
    steps = np.asarray(levels, np.float64)
    return Support(
        dual=q,
        total=total,
        examples=order[q[order] > threshold * total],
        counts=np.sum(margins[None] <= smallest + steps[:, None], axis=1),
        levels=steps,
        balance=(float(q @ soft_margins) - smallest) / float(snap.rho) ** degree,
    )


def direction_norm(traj: Mapping[str, Any]) -> Float[np.ndarray, " points"]:
    r"""$\lVert G\rVert$ at the saved points of a trajectory.

    From `log_risk`, `log_radial_gradient` and `log_spherical_gradient`.
    """
    radial = np.asarray(traj["log_radial_gradient"], np.float64)
    spherical = np.asarray(traj["log_spherical_gradient"], np.float64)
    log_risk = np.asarray(traj["log_risk"], np.float64)
    return np.exp(np.logaddexp(2 * radial, 2 * spherical) / 2 - log_risk)


def integrated_multipliers(
    s: Float[Array | np.ndarray, " points"],
    margins: Float[Array | np.ndarray, "points n"],
    norm: Float[Array | np.ndarray, " points"],
    loss: AbstractLoss,
) -> Float[np.ndarray, "points n"]:
    r"""$\lambda_i(s) = \int -\ell'(p_i)\,dt = \int w_i/\lVert G\rVert^2\,ds$.

    The flow is $\theta(s) = \theta_0 + \sum_i\int\nabla p_i\,d\lambda_i$, so for a
    linear model $\theta(s) = \theta_0 + \sum_i\lambda_i(s)\,y_i x_i$ exactly; for a
    homogeneous one $\tfrac12(\rho^2 - \rho_0^2) = L\sum_i\int p_i\,d\lambda_i$. The
    integral is taken of a monotone cubic interpolant through the saved points, so its
    error is that of their spacing.

    **Arguments:**

    - `s`: increasing, shape `(points,)`, as `traj.s`.
    - `margins`: those in the loss, shape `(points, n)`, as `traj["margins"]` for
        labels -1 and +1 and `traj["soft_margins"]` for several classes.
    - `norm`: $\lVert G\rVert$, shape `(points,)`, as `direction_norm(traj)`.

    **Raises:** `ValueError` if `s` does not increase.
    """
    s, norm = np.asarray(s, np.float64), np.asarray(norm, np.float64)
    if not np.all(np.diff(s) > 0):
        raise ValueError(
            "`s` must increase from one saved point to the next; leave out repetitions."
        )
    log_loss, slope = log_loss_and_slope(loss, jnp.asarray(margins))
    weight = softmax(np.asarray(log_loss, np.float64), axis=1)
    weight = weight * np.asarray(slope, np.float64)
    rate = PchipInterpolator(s, weight / norm[:, None] ** 2, axis=0)
    return rate.antiderivative()(s)


@jitted
def log_loss_and_slope(loss, margins):
    r"""$\ln\ell$ and $-(\ln\ell)'$ at each margin, compiled."""
    return loss.log_loss(margins), loss.log_slope(margins)
