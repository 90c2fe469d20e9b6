"""Checks of the powers at which norm and risk change over the last decade of s.

`final`: the end of the trajectory, evaluated anew (`Final`).
"""

import numpy as np

from ._check import Check, after_separation, near
from .diagnostics.support import direction_norm, log_loss_and_slope


def norm_rate(traj, final) -> Check | None:
    r"""The power of s that $\rho$ grew with over the last decade of s, to be $1/L$.

    A fitted slope is a mean of the slopes within, which along the flow are
    $d\ln\rho/d\ln s = s\cos^2/\langle\theta, G\rangle$: it may miss $1/L$ by as much as
    the worst of these does. $\langle\theta, G\rangle$ is $L\beta$ times the slope of
    $-\ln\ell$ at $\alpha$; the norm itself does not enter.
    """
    names = ("rho", "alignment", "beta", "smoothed_margin")
    decade = _decade(traj, final, *names)
    if decade is None:
        return None
    s, (rho, cosine, beta, alpha) = traj.s[decade], (traj[n][decade] for n in names)
    degree = final.problem.degree
    slope = np.asarray(log_loss_and_slope(final.problem.loss, alpha)[1])
    expected = 1 / degree
    slopes = s * cosine**2 / (degree * beta * slope)
    tolerance = np.max(np.abs(slopes - expected)) + 10 * traj.config["rtol"]
    value = np.polyfit(np.log(s), np.log(rho), 1)[0]
    return _rate("power of s in rho", value, expected, tolerance)


def risk_rate(traj, final) -> Check | None:
    r"""The power of $\ln t$ in $tL$ over the last decade of s, to be $-A = 2/L - 2$.

    $u = tL$ follows $\lVert G\rVert^{-2}$: $\ln u = -2\ln\lVert G\rVert + A/s + \dots$,
    and $\ln t = s + \ln(u/n)$. So its power may miss $-A$ by the worst slope of
    $-2\ln\lVert G\rVert$ between saved points, by $A$ times the difference of
    $s/\ln t$ from 1, and by terms $A/s$ and $A^2/s \le 2A/s$ (here $4A/s$).
    """
    decade = _decade(traj, final, "log_t")
    if decade is None:
        return None
    power = 2 - 2 / final.problem.degree
    s, log_t = traj.s[decade], traj["log_t"][decade]
    if not np.all(log_t > 0):
        return None
    slopes = np.diff(-2 * np.log(direction_norm(traj)[decade])) / np.diff(np.log(s))
    tolerance = np.max(np.abs(slopes + power)) + 10 * traj.config["rtol"]
    tolerance += power * (np.max(np.abs(s / log_t - 1)) + 4 / s[0])
    log_u = log_t + traj["log_risk"][decade]
    value = np.polyfit(np.log(log_t), log_u, 1)[0]
    return _rate("power of ln t in t L", value, -power, tolerance)


def _decade(traj, final, *names) -> np.ndarray | None:
    """Saved points of the last decade of s, if they can show a power."""
    needed = {"log_radial_gradient", "log_spherical_gradient", *names}
    if not final.problem.degree or not needed <= set(traj):
        return None
    end = traj.s[-1] / 10
    decade = np.flatnonzero(traj.s >= end)
    whole = end >= max(1.0, traj.s[0]) and np.all(after_separation(traj)[decade])
    if not whole or len(decade) < 6 or not np.all(np.diff(traj.s[decade]) > 0):
        return None
    return decade


def _rate(name, value, expected, tolerance) -> Check | None:
    if tolerance > 0.25 * max(abs(expected), 0.5):
        return None  # Too early: this power could not be told from others.
    source = "Lyu and Li, Corollary A.11"
    return near(name, value, expected, tolerance, source)
