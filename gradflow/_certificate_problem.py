r"""Checks of a trajectory that need its problem: model and data at its end.

Each compares a number of the trajectory with one found in another way.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ._certificate_curvature import hessian_along_theta, j_growth
from ._certificate_layers import chain_of_layers, layer_alignment
from ._certificate_linear import linear_checks
from ._certificate_oracles import oracle_checks
from ._certificate_rates import norm_rate, risk_rate
from ._certificate_robustness import boundary_distance
from ._check import Check, after_separation, at_most, clock_rounding, eps_of, near
from ._compile import jitted
from ._losses import CrossEntropy, Exponential, Logistic
from ._problem import Problem
from .diagnostics.common import point
from .diagnostics.kkt import KKT, kkt
from .diagnostics.snapshot import Snapshot

# Fewer candidates than `kkt`'s default: least squares over 4000 takes minutes.
_KKT_ROWS = 500
_KKT_ENTRIES = 2**24


class Final(NamedTuple):
    """The end of a trajectory, evaluated anew."""

    problem: Problem
    snap: Snapshot
    kkt: KKT | None

    @property
    def stationary(self) -> bool:
        """Whether the square of the gradient is near underflow."""
        size = np.linalg.norm(np.asarray(self.snap.direction, np.float64))
        return not size > float(jnp.finfo(self.snap.theta.dtype).tiny) ** 0.4


def problem_checks(traj, problem: Problem) -> list[Check]:
    """The rows that `problem`, the one that was integrated, allows.

    **Raises:** `ValueError` if the sizes of `problem` are not those of the trajectory.
    """
    for name in ("n", "k", "degree"):
        mine, theirs = getattr(problem, name), traj.config[name]
        if mine != theirs:
            raise ValueError(
                f"`problem` has {name} = {mine}, but the trajectory was computed with "
                f"{theirs}: pass the problem that was integrated."
            )
    theta = jnp.asarray(traj.theta, problem.theta.dtype)
    snap = point(problem, theta)
    final = Final(problem, snap, _kkt(problem, snap))
    rows = [check(traj, final) for check in _CHECKS]
    rows = [row for row in rows if row is not None]
    if not problem.loss.exponential_tail:
        return rows  # What follows is about margins at infinite norm.
    rows += linear_checks(traj, problem)
    return rows + oracle_checks(traj, problem, snap, final.kkt)


def _kkt(problem, snap) -> KKT | None:
    tail = problem.loss.exponential_tail
    if not problem.degree or not tail or not bool(jnp.min(snap.margins) > 0):
        return None
    try:
        rows = min(_KKT_ROWS, max(1, _KKT_ENTRIES // problem.k))
        return kkt(problem, snap.theta, max_rows=rows)
    except ValueError:
        return None  # Batch normalisation: no margin has a gradient of its own.


def _saved_log_risk(traj, final):
    difference = float(final.snap.s) - traj.s[-1]
    tolerance = eps_of(traj) ** 0.7 * (1 + abs(traj.s[-1]))
    tolerance = max(tolerance, 64 * clock_rounding(traj, traj.s[-1]))
    source = "ln(n/L) of the final model"
    return near("last s, computed anew", difference, 0.0, tolerance, source)


def _saved_margins(traj, final):
    if "margins" not in traj:
        return None
    saved = traj["margins"][-1]
    difference = np.max(np.abs(np.asarray(final.snap.margins) - saved))
    tolerance = eps_of(traj) ** 0.7 * max(float(np.max(np.abs(saved))), 1.0)
    source = "margins of the final model"
    return near("last margins, computed anew", difference, 0.0, tolerance, source)


def _gradient(traj, final):
    r"""Is $G$ the slope of $-\ln L$, along $G$ itself and along a random direction?

    Both slopes are central differences, which do not use automatic differentiation.
    The first alone would not see a component that $G$ lacks. Where differences do not
    settle (kinks, float32 far out) nothing can be said, and there is no row.
    """
    snap = final.snap
    size = float(jnp.linalg.norm(snap.direction))
    if not size > 0:
        return None
    random = jax.random.normal(jax.random.key(0), snap.theta.shape, snap.theta.dtype)
    worst = error = 0.0
    for direction in (snap.direction, random):
        unit = direction / jnp.linalg.norm(direction)
        found, uncertain = _slope(final, unit, 1 / size)
        exact = -float(np.vdot(snap.direction, unit))
        worst = max(worst, abs(found - exact) / size)
        error = max(error, uncertain / size)
    if not error <= 1e-3:
        return None
    tolerance = max(eps_of(traj) ** 0.4, 10 * error)
    source = "central differences of ln L"
    return near("gradient of ln L", worst, 0.0, tolerance, source)


def _slope(final, unit, longest) -> tuple[float, float]:
    """Slope of ln L along `unit` and its error, by Richardson's extrapolation over
    steps from `longest` down, of which the one with the least error is taken."""
    eps = float(jnp.finfo(unit.dtype).eps)

    def at(step):
        return float(_log_risk(final.problem, final.snap.theta + step * unit))

    rounding = 4 * (eps + float(final.problem.clock_rounding(final.snap.s)))
    best = (np.nan, np.inf)
    before = refined_before = np.nan
    for j in range(12):
        step = longest / 4**j
        difference = (at(step) - at(-step)) / (2 * step)
        refined = (16 * difference - before) / 15
        error = abs(refined - refined_before) + rounding / step
        if error < best[1]:
            best = (refined, error)
        before, refined_before = difference, refined
    return best


@jitted
def _log_risk(problem, theta):
    return problem.log_risk(theta)


def _kkt_epsilon(traj, final):
    r"""The least $\varepsilon/\lVert\hat\theta\rVert$ since half of the final s.

    The explicit multipliers have $\sqrt{2(1-\cos)}$, and somewhere between any two
    points $\cos^{-2} - 1$ is at most the growth of the logarithm of the margin over
    $L$ times that of the norm. At the end the best multipliers count too.
    """
    names = {"misalignment", "normalized_smoothed_margin", "rho"}
    if final.kkt is None or not names <= set(traj):
        return None
    late = np.flatnonzero((traj.s >= 0.5 * traj.s[-1]) & after_separation(traj))
    if len(late) < 3:
        return None
    first, last = late[0], late[-1]
    margin, rho = traj["normalized_smoothed_margin"], traj["rho"]
    if not (margin[first] > 0 and rho[last] > rho[first]):
        return None
    growth = np.log(rho[last] / rho[first])
    gain = max(np.log(margin[last] / margin[first]) / final.problem.degree, 0.0)
    tangent_squared = (gain + 100 * eps_of(traj)) / growth
    cosine = 1 / np.sqrt(1 + tangent_squared)
    explicit = np.sqrt(2 * np.min(traj["misalignment"][late]))
    value = min(final.kkt.relative_epsilon, explicit)
    source = "Lyu and Li, Lemma C.8 and Corollary C.10"
    return at_most("KKT epsilon", value, np.sqrt(2 * (1 - cosine)), source)


def _kkt_explicit(traj, final):
    r"""$\varepsilon/\lVert\hat\theta\rVert = \sqrt{2(1-\cos)}$ for the explicit
    multipliers: the left side anew from the final model, the right side as saved."""
    if final.kkt is None or "misalignment" not in traj:
        return None
    expected = np.sqrt(2 * max(traj["misalignment"][-1], 0.0))
    value = final.kkt.explicit.epsilon / final.kkt.norm
    eps = eps_of(traj)
    tolerance = eps**0.4 * expected + 1e3 * eps
    source = "Lyu and Li, Lemma C.8, Equation (12)"
    return near("KKT epsilon, explicit", value, expected, tolerance, source)


def _kkt_delta(traj, final):
    r"""$\delta/\lVert\hat\theta\rVert^2$ of the explicit multipliers.

    They are $\lambda_i = \lVert\hat\theta\rVert^2 p_{\min} w_i / (\rho\lVert G\rVert)$,
    and $\rho\lVert G\rVert \ge \langle\theta, G\rangle = L\sum w_i p_i \ge
    L p_{\min} w_{\min}$ with the weight $w_{\min}$ of the least margin. As
    $w_i/w_{\min} \le e^{p_{\min} - p_i}(1 + (C-1)e^{-p_{\min}})$ for $C$ classes, and
    $xe^{-x} \le 1/e$, at most $(1 + (C-1)e^{-p_{\min}}) / (eLp_{\min})$.
    """
    exponential = isinstance(final.problem.loss, Exponential | Logistic | CrossEntropy)
    if final.kkt is None or "margins" not in traj or not exponential:
        return None
    least = float(np.min(traj["margins"][-1]))
    factor = 1 + (traj.config["classes"] - 1) * np.exp(-least)
    bound = factor / (np.e * final.problem.degree * least)
    value = final.kkt.explicit.delta / final.kkt.norm**2
    source = "Lyu and Li, Lemma C.8, Equation (13)"
    return at_most("KKT delta, explicit", value, bound, source, tolerance=1e-6 * bound)


def _dual_balance(traj, final):
    r"""$\sum_i q_i p_i - p_{\min}$ over $\rho^L$, $q = w/\sum w$, with saved margins.

    With $q_i \propto a_i e^{-p_i}$ the sum is the entropy of $q$, at most $\ln n$, plus
    $\sum q_i\ln a_i \le 0$, less $\ln\sum a_i e^{p_{\min} - p_i} \ge \ln a_{\min}$;
    $a_i = 1/(1 + e^{-p_i}) \ge 1/2$ for the logistic losses and 1 for the exponential.
    """
    exponential = isinstance(final.problem.loss, Exponential | Logistic | CrossEntropy)
    binary = traj.config["classes"] == 2
    if final.kkt is None or "margins" not in traj or not (exponential and binary):
        return None
    # Two outputs have a constraint for each class.
    q = np.reshape(final.kkt.explicit.multipliers, (final.problem.n, -1)).sum(axis=1)
    margins, scale = traj["margins"][-1], float(final.snap.rho) ** final.problem.degree
    value = float(q @ margins / q.sum() - margins.min()) / scale
    bound = np.log(2 * final.problem.n) / scale
    source = "Ji and Telgarsky, Lemma E.3"
    return near("balance of dual variables", value, 0.0, bound, source)


_CHECKS = [
    _saved_log_risk,
    _saved_margins,
    _gradient,
    _kkt_epsilon,
    _kkt_explicit,
    _kkt_delta,
    _dual_balance,
    hessian_along_theta,
    j_growth,
    layer_alignment,
    chain_of_layers,
    norm_rate,
    risk_rate,
    boundary_distance,
]
