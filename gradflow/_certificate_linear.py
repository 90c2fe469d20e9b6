r"""Checks of a linear predictor against the best one, found without a flow.

With $\Phi(x) = \langle u, x\rangle$ and $\gamma$ the maximum margin, reached by the
unit vector $\hat u = \sum_i q_i y_i x_i / \gamma$ ($q$ in the simplex), every $u$ has
$\min_i p_i \le \sum_i q_i p_i = \gamma\langle u, \hat u\rangle \le \gamma\|u\|$.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from ._check import Check, after_separation, at_least, at_most, eps_of
from ._losses import Exponential, Logistic
from ._problem import Problem
from .diagnostics.common import all_outputs
from .oracles.linear import MaxMargin, max_margin, signed_examples


class Predictor(NamedTuple):
    """The final predictor $u$, shape `(d,)`, and the best one."""

    vector: np.ndarray
    best: MaxMargin

    @property
    def norm(self) -> float:
        return float(np.linalg.norm(self.vector))


def linear_checks(traj, problem: Problem) -> list[Check]:
    """Rows for a model that is linear in `x` and separates the examples, else none."""
    if "margins" not in traj or not np.min(traj["margins"][-1]) > 0:
        return []
    predictor = _predictor(traj, problem)
    if predictor is None:
        return []
    rows = [_margin(traj, predictor), _direction(traj, predictor)]
    lower = _growth(traj, problem, predictor)
    return rows if lower is None else [*rows, lower]


def _predictor(traj, problem) -> Predictor | None:
    binary = traj.config["classes"] == 2 and problem.x.ndim == 2
    if not binary or not isinstance(problem.loss, Exponential | Logistic):
        return None
    theta = jnp.asarray(traj.theta, problem.theta.dtype)
    # Values at the unit vectors determine a linear function; the margins tell whether
    # it is one.
    unit = jnp.eye(problem.x.shape[1], dtype=problem.x.dtype)
    vector = np.asarray(problem.outputs(theta, unit), np.float64).reshape(-1)
    outputs = problem.y * jnp.reshape(all_outputs(problem, theta), (-1,))
    margins = np.asarray(outputs, np.float64)
    z = signed_examples(problem.x, problem.y)
    slack = eps_of(traj) ** 0.7 * np.linalg.norm(vector)
    if np.any(np.abs(z @ vector - margins) > slack * np.linalg.norm(z, axis=1)):
        return None
    return Predictor(vector, max_margin(problem.x, problem.y))


def _share(traj, predictor) -> float:
    """The saved least margin over the norm of the predictor and the maximum margin."""
    return float(np.min(traj["margins"][-1])) / (predictor.norm * predictor.best.margin)


def _margin(traj, predictor):
    value = _share(traj, predictor)
    source = "maximum margin by least squares"
    tolerance = eps_of(traj) ** 0.7
    return at_most(
        "margin over the maximum", value, 1.0, source, tolerance=max(tolerance, 1e-9)
    )


def _direction(traj, predictor):
    r"""$\|u/\|u\| - \hat u\|^2 = 2 - 2\langle u, \hat u\rangle/\|u\| \le
    2(1 - \min_i p_i/(\gamma\|u\|))$: the direction is as good as the margin says."""
    difference = predictor.vector / predictor.norm - predictor.best.direction
    bound = np.sqrt(2 * max(1 - _share(traj, predictor), 0.0))
    source = "from the margin by weak duality"
    return at_most(
        "distance to the best direction",
        np.linalg.norm(difference),
        bound,
        source,
        tolerance=max(eps_of(traj) ** 0.4, 1e-5),
    )


def _growth(traj, problem, predictor):
    r"""A least margin, for parameters that are the predictor itself.

    There $\lVert G\rVert \ge \langle G, \hat u\rangle \ge \gamma\sum w_i \ge \gamma f$
    with $f = 1$ for the exponential loss and $f = 1 - L_1/2$ for the logistic one once
    $L \le L_1$, so from a saved point 1 on $\rho \le \rho_1 + (s - s_1)/(\gamma f)$,
    while $\min_i p_i \ge \alpha(s)$.
    """
    same = problem.k == predictor.vector.size and problem.degree == 1
    late = np.flatnonzero(after_separation(traj))
    names = {"rho", "smoothed_margin"}
    if not same or not len(late) or not names <= set(traj):
        return None
    if abs(np.linalg.norm(traj.theta) - predictor.norm) > 1e-6 * predictor.norm:
        return None
    first, gamma = late[0], predictor.best.margin
    logistic = isinstance(problem.loss, Logistic)
    factor = 1 - np.exp(traj["log_risk"][first]) / 2 if logistic else 1.0
    longest = traj["rho"][first] + (traj.s[-1] - traj.s[first]) / (gamma * factor)
    bound = traj["smoothed_margin"][-1] / (gamma * longest)
    source = "norm of the gradient >= maximum margin x sum of weights"
    return at_least(
        "margin reached",
        _share(traj, predictor),
        bound,
        source,
        tolerance=max(traj.config["rtol"], eps_of(traj) ** 0.7),
    )
