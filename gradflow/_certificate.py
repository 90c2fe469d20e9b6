"""Checks of a trajectory against what holds exactly along the true flow."""

from collections.abc import Callable

import numpy as np

from ._certificate_clock import clock_checks
from ._certificate_layers import layer_balance, layer_shares
from ._certificate_path import path_check
from ._certificate_problem import problem_checks
from ._check import (
    Certificate,
    Check,
    after_separation,
    at_most,
    clock_rounding,
    eps_of,
    near,
)
from ._results import Result


def certify(traj, problem=None) -> Certificate:
    """All checks that the trajectory's quantities allow, and those of `problem`."""
    rows = [_result(traj)]
    if len(traj.s):
        rows += clock_checks(traj)
        rows += [row for check in _CHECKS if (row := check(traj)) is not None]
        rows += [] if problem is None else problem_checks(traj, problem)
    return Certificate(rows)


def _result(traj) -> Check:
    reached = traj.result is Result.reached
    last = traj.s[-1] if len(traj.s) else np.nan
    source = "log-risk time asked for"
    return Check("reached", last, f">= {traj.config['to']:.6g}", 0.0, reached, source)


def _complete(traj):
    """Saved points that are missing or moved, among those that should be there."""
    wanted = np.array(traj.config["saves"])
    wanted = wanted[wanted <= traj.s[-1]]
    found = traj.s[: len(wanted)]
    slack = max(1e-9, 64 * eps_of(traj)) * (1 + np.abs(wanted))
    if "clock_rounding" in traj.config:
        # Parameters are rounded, too: a network's margins by tens of epsilons.
        slack = np.maximum(slack, 256 * clock_rounding(traj, wanted))
    if len(found) < len(wanted):
        wrong = len(wanted) - len(found)
    else:
        wrong = int(np.sum(np.abs(found - wanted) > slack))
    return near("saved points missing", wrong, 0.0, 0.0, "points asked for")


def _norm_growth(traj):
    """Does rho change between saved points as its derivative at both ends says?

    d(rho^2)/ds = 2 <theta, G> / |G|^2; between neighbours the mean of the derivative
    lies near its values there. The worst excess over three times the larger one,
    relative to rho^2: large where pieces of different flows were joined.
    """
    if "alignment" not in traj or len(traj.s) < 3:
        return None
    log_norm = np.logaddexp(
        2 * traj["log_radial_gradient"], 2 * traj["log_spherical_gradient"]
    )
    direction = np.exp(0.5 * log_norm - traj["log_risk"])
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = 2 * np.abs(traj["alignment"]) * traj["rho"] / direction
    square = traj["rho"] ** 2
    # Near a plateau s stands still while theta moves: only steps in s can be judged.
    late = after_separation(traj)[:-1] & (np.diff(traj.s) > 0)
    if not late.any():
        return None
    reach = 3 * np.maximum(slope[1:], slope[:-1]) * np.diff(traj.s)
    excess = (np.abs(np.diff(square)) - reach) / square[1:]
    bound = max(10 * traj.config["rtol"], 1e3 * eps_of(traj))
    source = "Ji and Telgarsky, Section 3.1"
    return at_most(
        "growth of the norm", np.max(excess[late]), 0.0, source, tolerance=bound
    )


def _rounding(traj):
    rounding = clock_rounding(traj, traj.s[-1])
    return near("rounding of the margins", rounding, 0.0, 1e-3, "machine precision")


def _tolerance(traj):
    source = "error estimates mean something below it"
    return at_most("tolerance", traj.config["rtol"], 1e-2, source)


def _left_out(traj):
    """A share of the risk is about that of the gradient, and may be an error of it."""
    if not traj.config.get("neglect"):
        return None
    source = "measured from all examples"
    share, bound = traj.stats["neglected"], 0.1 * traj.config["rtol"]
    return near("risk left out of the steps", share, 0.0, bound, source)


def _monotone(traj):
    check = "fall of the smoothed margin"
    source = "Lyu and Li, Theorem 4.1"
    return _fall(traj, "normalized_smoothed_margin", check, source)


def _monotone_by_layers(traj):
    check = "fall of the layerwise margin"
    return _fall(
        traj, "layer_normalized_smoothed_margin", check, "Lyu and Li, Lemma H.2"
    )


def _fall(traj, name, check, source):
    late = after_separation(traj)
    if name not in traj or late.sum() < 2:
        return None
    alpha = traj[name][late]
    falls = np.max(np.maximum.accumulate(alpha) - alpha) / np.max(np.abs(alpha))
    bound = max(traj.config["rtol"], 100 * eps_of(traj))
    return near(check, falls, 0.0, bound, source)


def _euler(traj):
    if "euler_residual" not in traj:
        return None
    worst = np.max(traj["euler_residual"])
    source = "Ji and Telgarsky, Lemma C.1"
    bound = max(eps_of(traj) ** 0.6, _identity_rounding(traj))
    return near("Euler's identity", worst, 0.0, bound, source)


def _identity_rounding(traj):
    """Relative, of <theta, gradient> / L: at most the products' rounding over L."""
    return 100 * eps_of(traj) * max(1, 1 / (traj.config["degree"] or 1))


def _sandwich(traj):
    late = after_separation(traj)
    if "beta" not in traj or not late.any():
        return None
    n = traj.config["n"] * (traj.config["classes"] - 1)
    alpha, beta = traj["smoothed_margin"][late], traj["beta"][late]
    above = beta - (alpha + 2 * np.log(n) + 1)
    slack = _identity_rounding(traj) * np.abs(alpha)
    worst = np.max(np.maximum(alpha - beta, above) - slack)
    source = "Ji and Telgarsky, Lemma C.5"
    return at_most("alpha <= beta <= alpha + 2 ln n + 1", worst, 0.0, source)


def _j_potential(traj):
    """The radial part of grad alpha, by J and by beta: two columns, one vector."""
    names = ("j_potential", "beta", "alignment", "rho")
    degree, late = traj.config["degree"], after_separation(traj)
    if not set(names) <= set(traj) or not degree or not late.any():
        return None
    j, beta, cosine, rho = (traj[name][late] for name in names)
    ratio = np.sqrt(j) * cosine * rho**degree / (degree * beta)
    source = "Ji and Telgarsky, Section 4.1"
    # Of J = exp(... - (2L - 2) ln rho), the exponent is rounded.
    exponent = 2 * abs(degree - 1) * np.max(np.abs(np.log(rho)))
    bound = _identity_rounding(traj) * (1 + exponent)
    return near("J against beta", np.max(np.abs(ratio - 1)), 0.0, bound, source)


def _lemma_3_4(traj):
    if "lemma_3_4_residual" not in traj:
        return None
    values = traj["lemma_3_4_residual"]
    values = values[np.isfinite(values)]
    if not values.size:
        return None
    source = "Ji and Telgarsky, Lemma 3.4"
    return near("growth of the margin", values.max(), 0.0, eps_of(traj) ** 0.5, source)


_CHECKS: list[Callable] = [
    _tolerance,
    _complete,
    _rounding,
    _left_out,
    _monotone,
    _monotone_by_layers,
    _norm_growth,
    _euler,
    _sandwich,
    layer_balance,
    layer_shares,
    _lemma_3_4,
    _j_potential,
    path_check,
]
