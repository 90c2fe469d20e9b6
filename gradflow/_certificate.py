"""Checks of a trajectory against what holds exactly along the true flow."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ._results import Result


class Check(NamedTuple):
    """One line of a certificate: measured `value` against the bound `expected`."""

    name: str
    value: float
    expected: str
    passed: bool
    source: str


class Certificate:
    """A table of checks; printable.

    **Attributes:** `rows` (`Check`s), `passed` (all of them).
    """

    def __init__(self, rows: list[Check]):
        self.rows = rows

    @property
    def passed(self) -> bool:
        """Whether every check that applies holds."""
        return all(row.passed for row in self.rows)

    def __getitem__(self, name: str) -> Check:
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"no check {name!r}; there are {[r.name for r in self.rows]}")

    def __repr__(self) -> str:
        wide = max(len(row.name) for row in self.rows)
        bound = max(len(row.expected) for row in self.rows)
        lines = [f"Certificate: {'passed' if self.passed else 'FAILED'}"]
        for row in self.rows:
            mark = "pass" if row.passed else "FAIL"
            lines.append(
                f"  {mark}  {row.name:<{wide}}  {row.value:>10.3g}  "
                f"{row.expected:<{bound}}  {row.source}"
            )
        return "\n".join(lines)


def certify(traj) -> Certificate:
    """All checks that the trajectory's quantities allow."""
    rows = [_result(traj)]
    if len(traj.s):
        rows += [row for check in _CHECKS if (row := check(traj)) is not None]
    return Certificate(rows)


def _at_most(name, value, bound, source) -> Check:
    return Check(name, float(value), f"<= {bound:.3g}", bool(value <= bound), source)


def _result(traj) -> Check:
    reached = traj.result is Result.reached
    last = traj.s[-1] if len(traj.s) else np.nan
    source = "log-risk time asked for"
    return Check("reached", last, f">= {traj.config['to']:.6g}", reached, source)


def _after_separation(traj) -> np.ndarray:
    """Saved points with L < l(0), where the theory's assertions begin."""
    return traj["log_risk"] < traj.config["log_loss_at_zero"]


def _eps(traj) -> float:
    return traj.config["rounding"]


def _clock(traj):
    if "clock_drift" not in traj:
        return None
    drift = np.max(np.abs(traj["clock_drift"]))
    bound = max(1e-2, 1e-4 * (traj.s[-1] - traj.s[0]))
    return _at_most("clock drift", drift, bound, "ln(n/L) along the flow is s")


def _complete(traj):
    """Saved points that are missing or moved, among those that should be there."""
    wanted = np.array(traj.config["saves"])
    wanted = wanted[wanted <= traj.s[-1]]
    found = traj.s[: len(wanted)]
    slack = max(1e-9, 64 * _eps(traj)) * (1 + np.abs(wanted))
    if len(found) < len(wanted):
        wrong = len(wanted) - len(found)
    else:
        wrong = int(np.sum(np.abs(found - wanted) > slack))
    return _at_most("saved points missing", wrong, 0.0, "points asked for")


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
    late = _after_separation(traj)[:-1] & (np.diff(traj.s) > 0)
    if not late.any():
        return None
    reach = 3 * np.maximum(slope[1:], slope[:-1]) * np.diff(traj.s)
    excess = (np.abs(np.diff(square)) - reach) / square[1:]
    bound = max(10 * traj.config["rtol"], 1e3 * _eps(traj))
    source = "Ji and Telgarsky, Section 3.1"
    return _at_most("growth of the norm", np.max(excess[late]), bound, source)


def _rounding(traj):
    rounding = _eps(traj) * abs(traj.s[-1])
    return _at_most("rounding of the margins", rounding, 1e-3, "machine precision")


def _tolerance(traj):
    source = "error estimates mean something below it"
    return _at_most("tolerance", traj.config["rtol"], 1e-2, source)


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
    late = _after_separation(traj)
    if name not in traj or late.sum() < 2:
        return None
    alpha = traj[name][late]
    falls = np.max(np.maximum.accumulate(alpha) - alpha) / np.max(np.abs(alpha))
    bound = max(traj.config["rtol"], 100 * _eps(traj))
    return _at_most(check, falls, bound, source)


def _euler(traj):
    if "euler_residual" not in traj:
        return None
    worst = np.max(traj["euler_residual"])
    source = "Ji and Telgarsky, Lemma C.1"
    return _at_most("Euler's identity", worst, _eps(traj) ** 0.6, source)


def _sandwich(traj):
    late = _after_separation(traj)
    if "beta" not in traj or not late.any():
        return None
    n = traj.config["n"] * (traj.config["classes"] - 1)
    alpha, beta = traj["smoothed_margin"][late], traj["beta"][late]
    above = beta - (alpha + 2 * np.log(n) + 1)
    slack = 100 * _eps(traj) * np.abs(alpha)
    worst = np.max(np.maximum(alpha - beta, above) - slack)
    source = "Ji and Telgarsky, Lemma C.5"
    return _at_most("alpha <= beta <= alpha + 2 ln n + 1", worst, 0.0, source)


def _balance(traj):
    """d |W_k|^2 / dt is the degree in layer k times a factor common to all layers."""
    degrees = traj.config["layer_degrees"]
    if "layer_norm" not in traj or len(degrees) < 2 or None in degrees:
        return None
    squares, degrees = traj["layer_norm"] ** 2, np.array(degrees)
    first = np.argmax(degrees > 0)
    ratios = degrees / (degrees[first] or 1)
    gaps = squares - ratios * squares[:, first : first + 1]
    drift = np.max(np.abs(gaps - gaps[0])) / np.max(squares)
    bound = max(10 * traj.config["rtol"], 1e3 * _eps(traj))
    source = "Du, Hu and Lee 2018; Theory III, Section 11.1.1"
    return _at_most("balance of layers", drift, bound, source)


def _lemma_3_4(traj):
    if "lemma_3_4_residual" not in traj:
        return None
    values = traj["lemma_3_4_residual"]
    values = values[np.isfinite(values)]
    if not values.size:
        return None
    source = "Ji and Telgarsky, Lemma 3.4"
    return _at_most("growth of the margin", values.max(), _eps(traj) ** 0.5, source)


_CHECKS: list[Callable] = [
    _tolerance,
    _complete,
    _clock,
    _rounding,
    _monotone,
    _monotone_by_layers,
    _norm_growth,
    _euler,
    _sandwich,
    _balance,
    _lemma_3_4,
]
