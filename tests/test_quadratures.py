"""Gradient-flow time from a step's dense output, against mpmath."""

import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from gradflow._quadratures import scaled_time

COEFFICIENTS = (1.7, -0.4, 0.2, 0.3)


@pytest.mark.parametrize("start", [0.0, 2.5])
@pytest.mark.parametrize("length", [1e-9, 1e-3, 0.7, 0.999, 1.001, 5.0, 60.0, 1e5])
def test_time_is_exact_for_quartics(length, start):
    """du = dT - u ds with T a quartic in s, whatever s is along the step."""
    x = np.linspace(0, 1, 5)
    x = 0.6 * x + 0.4 * x**2
    gained = sum(c * x ** (i + 1) for i, c in enumerate(COEFFICIENTS)) * length
    found = scaled_time(jnp.asarray(3.0 + length * x), jnp.asarray(start + gained))

    with mpmath.workdps(40):
        d = mpmath.mpf(length)

        def integrand(distance):
            # Distance to the end in s.
            at = 1 - distance / d
            slope = sum(c * (i + 1) * at**i for i, c in enumerate(COEFFICIENTS))
            return mpmath.exp(-distance) * slope

        ends = [0, d] if d < 20 else [0, 5, 20, 60, min(d, 200)]
        exact = start * mpmath.exp(-d) + mpmath.quad(integrand, ends)
    assert float(found) == pytest.approx(float(exact), rel=1e-9)


def test_time_where_nothing_moves():
    still = jnp.full(5, 2.0)
    assert float(scaled_time(still, still)) == 2.0
