"""Rates of convergence and extrapolated limits, fitted to the end of a trajectory."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float
from scipy.optimize import minimize_scalar
from scipy.stats import linregress, t as student

from .support import direction_norm

_DECADE = 10.0  # Fits use the last decade of the abscissa, and its last half (in ln).
_FEWEST = 6  # Points needed in that half.


class Rate(eqx.Module):
    r"""A fitted power $y \sim x^{\text{exponent}}$.

    **Attributes:** `exponent`; `interval`, (low, high); `predicted` by theory.
    """

    exponent: float
    interval: tuple[float, float]
    predicted: float

    @property
    def consistent(self) -> bool:
        """Whether the prediction lies in the interval."""
        return self.interval[0] <= self.predicted <= self.interval[1]


class Limit(eqx.Module):
    r"""An extrapolated limit of $y(s) = y_\infty + C s^{-\text{exponent}}$.

    **Attributes:** `value` ($y_\infty$); `interval`, (low, high); `exponent`, NaN where
    the series is constant to rounding; `remainder`, $y_\infty$ minus the last value.
    """

    value: float
    interval: tuple[float, float]
    exponent: float
    remainder: float


class Rates(eqx.Module):
    r"""Fitted rates of a trajectory; see `rates`.

    **Attributes:**

    - `risk`: exponent of $tL$ in $\log t$, predicted $-(2 - 2/L)$.
    - `norm`: exponent of $\rho$ in $\log t$, predicted $1/L$.
    - `direction`: exponent of the direction error in $\log t$, predicted $-1$.
    - `margin`: limit of the smallest normalised margin.
    - `path_length`: limit of the path length; its `remainder` is the tail still to
        come, which bounds the distance of the direction from its limit.

    What the trajectory does not hold is `None`.
    """

    risk: Rate
    norm: Rate
    direction: Rate | None
    margin: Limit | None
    path_length: Limit | None


def rates(
    traj: Mapping[str, Any],
    *,
    degree: float | None = None,
    direction_error: Float[Array | np.ndarray, " points"] | None = None,
) -> Rates:
    r"""Fits $L \sim 1/(t(\log t)^{2 - 2/L})$, $\rho \sim (\log t)^{1/L}$ and direction
    error $\sim 1/\log t$, and extrapolates margin and path length.

    Each fit uses the saved points of the last decade of $\log t$ (or $s$). Deviations
    from a power are systematic, not random, so an interval is the 95 % interval of the
    regression for the later half of the window (in $\ln$), widened by twice the change
    from the whole window to that half: a deviation that decays like $1/s$ is about
    halved by it, so as much again remains.

    **Arguments:**

    - `traj`: a trajectory, or a dictionary with `s`, `log_t`, `log_risk`, `rho` and, if
        wanted, `min_normalized_margin` and what `path_limit` needs, each of shape
        `(points,)`.
    - `degree`: $L$; taken from `traj.config` when not given.
    - `direction_error`: distance of $\theta/\rho$, or of a linear predictor, from its
        limit; `direction` is `None` without. The rate $1/\log t$ is that of linear
        predictors; the weights of deeper networks may approach their limit more
        slowly, deep linear ones like $(\log t)^{-1/L}$ if the layers start unbalanced.

    **Raises:** `ValueError` without a degree, or with fewer than six saved points in
    the later half of the window.

    **Source:** Lyu and Li, Corollary A.11; for the direction, Soudry et al. 2017.
    """
    if degree is None:
        degree = getattr(traj, "config", {}).get("degree")
    if not degree:
        raise ValueError(
            f"`degree={degree}`: pass the degree of homogeneity, a positive number."
        )
    log_t = np.asarray(traj["log_t"], np.float64)
    log_risk = np.asarray(traj["log_risk"], np.float64)
    s = np.asarray(traj["s"], np.float64)
    margin = path = direction = None
    if "min_normalized_margin" in traj:
        margin = limit(s, traj["min_normalized_margin"])
    if "path_length" in traj and "log_spherical_gradient" in traj:
        path = path_limit(traj)
    if direction_error is not None:
        direction = power(log_t, _log(direction_error), predicted=-1.0)
    return Rates(
        risk=power(log_t, log_risk + log_t, predicted=-(2 - 2 / degree)),
        norm=power(log_t, _log(traj["rho"]), predicted=1 / degree),
        direction=direction,
        margin=margin,
        path_length=path,
    )


def path_limit(traj: Mapping[str, Any]) -> Limit:
    r"""The limit of the path length of $\theta/\rho$, and the tail still to come.

    From the speed $d\zeta/ds = \lVert G_\perp\rVert/(\lVert G\rVert^2\rho)$ at the
    saved points, which is exact there. With a fitted speed $\sim s^{-b-1}$ the
    tail is speed times $s/b$ at the end. `exponent` is $b$. The tail, `remainder`, is
    infinite if $b \le 0$ is fitted, and so is the upper end of `interval` if its
    interval reaches 0. It bounds the distance of $\theta/\rho$ from its limit. That the
    speed falls like a power is taken for granted; whether it falls fast enough for the
    length to converge is a row of the certificate, "path length to come".

    **Arguments:** `traj` with `s`, `log_risk`, `rho`, `path_length`,
    `log_radial_gradient` and `log_spherical_gradient`.

    **Source:** Ji and Telgarsky, Lemma 3.4 and Theorem 3.1 (the length is finite).
    """
    s = np.asarray(traj["s"], np.float64)
    last = float(np.asarray(traj["path_length"])[-1])
    log_norm = _log(direction_norm(traj))
    log_speed = np.asarray(traj["log_spherical_gradient"], np.float64) - np.asarray(
        traj["log_risk"], np.float64
    )
    log_speed = log_speed - 2 * log_norm - _log(traj["rho"])
    if log_speed[-1] == -np.inf:
        return Limit(last, (last, last), float("nan"), 0.0)
    found = power(s, log_speed)
    end = float(np.exp(log_speed[-1])) * float(s[-1])

    def tail(slope):
        return end / (-slope - 1) if slope < -1 else float("inf")

    low, high = (last + tail(slope) for slope in found.interval)
    remainder = tail(found.exponent)
    return Limit(last + remainder, (low, high), -found.exponent - 1, remainder)


def power(
    x: Float[Array | np.ndarray, " points"],
    log_y: Float[Array | np.ndarray, " points"],
    *,
    predicted: float = float("nan"),
) -> Rate:
    r"""Fits $y \sim x^{\text{exponent}}$ to the last decade of $x$, given $\ln y$."""
    x, log_y = np.asarray(x, np.float64), np.asarray(log_y, np.float64)
    fits = []
    for window in _windows(x, np.isfinite(log_y)):
        fit = linregress(np.log(x[window]), log_y[window])
        quantile = student.ppf(0.975, len(window) - 2)
        # The standard error of a constant series is NaN.
        fits.append((float(fit.slope), float(quantile * np.nan_to_num(fit.stderr))))
    (whole, _), (late, spread) = fits
    half = 2 * abs(late - whole) + spread
    return Rate(late, (late - half, late + half), float(predicted))


def limit(
    s: Float[Array | np.ndarray, " points"],
    values: Float[Array | np.ndarray, " points"],
) -> Limit:
    r"""Extrapolates $y(s) = y_\infty + C s^{-b}$ from the last decade of $s$.

    The exponent $b$ between 1/10 and 5 is fitted too; for given $b$ the rest is linear
    least squares.
    """
    s, values = np.asarray(s, np.float64), np.asarray(values, np.float64)
    whole, late = _windows(s, np.isfinite(values))
    last = float(values[whole[-1]])
    noise = float(np.ptp(values[whole]))
    if noise <= 1e-12 * max(abs(last), 1e-300):
        return Limit(last, (last - noise, last + noise), float("nan"), 0.0)
    first, _, _ = _extrapolate(s[whole], values[whole])
    value, exponent, error = _extrapolate(s[late], values[late])
    half = 2 * abs(value - first) + error
    return Limit(value, (value - half, value + half), exponent, value - last)


def _log(values):
    # Minus infinity at zero (a linear model may start there); fits leave it out.
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.log(np.asarray(values, np.float64))


def _windows(x, usable):
    """Indices of the last decade of x, and of its later half."""
    end = float(np.max(x[usable], initial=-np.inf))
    windows = [
        np.flatnonzero(usable & (x >= end / factor) & (x > 0))
        for factor in (_DECADE, np.sqrt(_DECADE))
    ]
    if len(windows[1]) < _FEWEST:
        raise ValueError(
            f"only {len(windows[1])} usable saved points lie in the last half decade; "
            f"at least {_FEWEST} are needed: save more points, or go on further."
        )
    return windows


def _extrapolate(s, values):
    scaled = s / s[-1]

    def fit(b):
        basis = np.stack([np.ones_like(s), scaled**-b], axis=1)
        coefficients = np.linalg.lstsq(basis, values, rcond=None)[0]
        return coefficients, basis, values - basis @ coefficients

    def misfit(b):
        return float(np.sum(fit(b)[2] ** 2))

    # Coarsely first: the misfit need not have one minimum only.
    grid = np.geomspace(0.1, 5, 25)
    best = int(np.argmin([misfit(b) for b in grid]))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    b = float(minimize_scalar(misfit, bounds=(low, high), method="bounded").x)
    (value, slope), basis, residual = fit(b)
    # Covariance of (y_inf, C, b) from the Jacobian of the model.
    jacobian = np.column_stack([basis, -slope * basis[:, 1] * np.log(scaled)])
    freedom = max(len(s) - 3, 1)
    covariance = np.linalg.pinv(jacobian.T @ jacobian) * (residual @ residual) / freedom
    error = student.ppf(0.975, freedom) * np.sqrt(max(covariance[0, 0], 0))
    return float(value), b, float(error)
