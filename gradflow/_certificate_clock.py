r"""Checks of the clock, $s = \ln(n/L)$, which is measured and integrated.

After each step the integrated clock is set to the measured one, and what it was off by
is added to `clock_correction`.
"""

import numpy as np

from ._check import Check, at_most, clock_rounding, eps_of, near

_SOURCE = "ln(n/L) along the flow is s"


def clock_checks(traj) -> list[Check]:
    """The rows that the saved columns allow."""
    checks = (_of_the_risk, _at_the_start, _drift, _correction, _step_by_step)
    return [row for check in checks if (row := check(traj)) is not None]


def _of_the_risk(traj):
    """Both columns were computed from the same risk, so that rounding alone is left."""
    log_risk, log_n = traj["log_risk"], np.log(traj.config["n"])
    gap = np.max(np.abs(traj.s + log_risk - log_n))
    eps = float(np.finfo(traj.config["dtype"]).eps)
    tolerance = 4 * eps * (log_n + np.max(np.abs(log_risk)))
    return near("s + ln L - ln n", gap, 0.0, tolerance, "definition of s")


def _at_the_start(traj):
    """The integrated clock starts as the measured one, without corrections.

    The other rows allow an error that grows with s; an offset has been there since the
    start.
    """
    names = {"clock_drift", "clock_correction"}
    tolerance = eps_of(traj) ** 0.7 * (1 + abs(traj["log_risk"][0]))
    if not names <= set(traj) or abs(traj.s[0] - traj.config["s0"]) > tolerance:
        return None
    offset = max(abs(traj[name][0]) for name in names)
    return near("clock at the start", offset, 0.0, tolerance, _SOURCE)


def _drift(traj):
    return _largest(traj, "clock_drift", 1.0)


def _correction(traj):
    return _largest(traj, "clock_correction", 10.0)


def _largest(traj, name, times):
    """The largest entry of a column, against a share of the s covered: `times` the
    tolerance, but neither below 1e-4 nor, whatever was asked for, beyond 1e-3."""
    if name not in traj:
        return None
    share = times * min(max(1e-4, traj.config["rtol"]), 1e-3)
    bound = max(1e-2, share * (traj.s[-1] - traj.s[0]))
    row = name.replace("_", " ")
    return near(row, np.max(np.abs(traj[name])), 0.0, bound, _SOURCE)


def _step_by_step(traj):
    """The corrections between neighbouring saved points, over what steps may have.

    A step over ds is accepted only with a correction of at most `3 * rtol` times the
    larger of 1 and sqrt(s ds), and rounding. Those of m steps over D by the integrated
    clock add up to at most 3 rtol (m + sqrt(m s D)), and D is larger than by the
    measured one by no more than they are. What is saved inside a step has the
    corrections before it, so that the steps between two saved points lie between the
    second and the one before the step in which the first was saved.
    """
    rtol = traj.config["rtol"]
    if not {"clock_correction", "steps"} <= set(traj) or len(traj.s) < 2 or rtol > 0.1:
        return None
    s, steps = traj.s, traj["steps"]
    before = np.searchsorted(steps, steps, side="left") - 1
    begin = s[np.maximum(before, 0)]
    count = np.diff(steps)
    once = 3 * rtol
    # With c the sum of the second kind, c^2 = a (D + c).
    a = once**2 * count * np.abs(s[1:])
    length = np.maximum(s[1:] - begin[:-1], 0) + once * count
    allowed = once * count + (a + np.sqrt(a**2 + 4 * a * length)) / 2
    rounding = eps_of(traj) + clock_rounding(traj, s[1:])
    allowed += 100 * (1 + count) * rounding
    share = np.max(np.abs(np.diff(traj["clock_correction"])) / allowed)
    source = "what an accepted step may be off by"
    return at_most("clock corrections between points", share, 1.0, source)
