"""Quadratures that the step loop takes from a step's dense output."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# Where the dense output is looked at: at both ends and three points between.
_POINTS = 5
# Terms of the series of the weights; those left out are below 1e-18.
_TERMS = 19


def with_quadratures(
    y: tuple[Array, Array], interpolant: diffrax.AbstractLocalInterpolation, t0, t1
) -> tuple[Array, Array]:
    r"""A solver's state at `t1` with $u = tL$ and the path length as they are there,
    those at `t0` being the dense output's."""
    theta, quadratures = y
    t = t0 + (t1 - t0) * jnp.linspace(0, 1, _POINTS, dtype=jnp.asarray(t0).dtype)
    thetas, along = jax.vmap(interpolant.evaluate)(t)
    time = scaled_time(along[:, 0], along[:, 1])
    length = quadratures[2] + arc_length(thetas)
    return theta, quadratures.at[1].set(time).at[2].set(length)


def arc_length(thetas: Float[Array, "5 k"]) -> Float[Array, ""]:
    r"""Length of $\theta/\rho$ over part of a step, by chords of the dense output.

    Two and four chords, extrapolated: fourth order in the step. The integral of
    $\lVert G_\perp\rVert / (\lVert G\rVert^2\rho)\,ds$ is the same length, but in the
    stages of a stiff step $G_\perp$, which tends to zero, is mostly the stages' own
    error times the stiffness: that overstated late increments by half. Chords see that
    error itself, without the factor.
    """
    largest = jnp.max(jnp.abs(thetas))
    thetas = thetas / jnp.where(largest > 0, largest, 1)
    rho = jnp.linalg.norm(thetas, axis=-1)
    away = rho > 0
    points = thetas / jnp.where(away, rho, 1)[:, None]

    def chords(stride):
        lengths = jnp.linalg.norm(
            points[stride::stride] - points[:-stride:stride], axis=-1
        )
        # A flow may start at zero, which has no direction.
        return jnp.sum(
            jnp.where(away[stride::stride] & away[:-stride:stride], lengths, 0)
        )

    fine, coarse = chords(1), chords(2)
    # From zero on the coarse chords are missing a half and the fine ones a quarter.
    return jnp.where(away[0], (4 * fine - coarse) / 3, fine)


def scaled_time(s: Float[Array, " 5"], time: Float[Array, " 5"]) -> Float[Array, ""]:
    r"""$u = tL$ at the last of five points of a step, by $du = dT - u\,ds$.

    `time` is $u$ at the first point and grows by $T = \int L\,dt$, which is taken as
    the polynomial in $s$ through the points. With $\Delta$ the change of $s$,
    $u_1 = e^{-\Delta}u_0 + \int e^{-(s_1 - s)}\,dT$.
    """
    length = jnp.maximum(s[-1] - s[0], 0)
    moving = length > 0
    x = (s - s[0]) / jnp.where(moving, length, 1)
    gained = jnp.sum(_powers(x, time) * _weights(length))
    return time[0] * jnp.exp(-length) + jnp.where(moving, gained, time[-1] - time[0])


def _powers(x: Float[Array, " 5"], y: Float[Array, " 5"]) -> Float[Array, " 4"]:
    """Coefficients of x, ..., x^4 in the polynomial through five points, the first of
    which has x = 0 (Newton's divided differences)."""
    newton = []
    for order in range(1, _POINTS):
        gap = x[order:] - x[:-order]
        y = jnp.diff(y) / jnp.where(gap == 0, 1, gap)
        newton.append(y[:1])
    p = newton.pop()
    for i in reversed(range(1, _POINTS - 1)):
        p = jnp.append(newton.pop(), p) - x[i] * jnp.append(p, 0)
    return p


def _weights(length: Float[Array, ""]) -> Float[Array, " 4"]:
    r"""$m\int_0^1 e^{-\Delta(1 - x)}x^{m-1}dx$ for $m = 1, ..., 4$ and $\Delta$ the
    `length`: by their series up to 1, by recurrence beyond, where it is stable."""
    small, large = jnp.minimum(length, 1), jnp.maximum(length, 1)
    powers = (-small) ** jnp.arange(_TERMS, dtype=length.dtype)
    series = jnp.sum(jnp.asarray(_series(), length.dtype) * powers[None], axis=1)
    weights, integral = [], -jnp.expm1(-large) / large
    for m in range(1, _POINTS):
        weights.append(m * integral)
        integral = (1 - m * integral) / large
    return jnp.where(length < 1, series, jnp.stack(weights))


def _series() -> np.ndarray:
    """Coefficients 1 / ((m + 1) ... (m + j)) of the j-th power, shape (4, terms)."""
    m, j = np.arange(1, _POINTS)[:, None], np.arange(1, _TERMS)
    return np.cumprod(np.hstack([np.ones_like(m), 1 / (m + j)]), axis=1)
