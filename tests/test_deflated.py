"""`DeflatedRKC2`: unstable steps, bent valleys and its functions of the stiffness."""

import diffrax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import gradflow as gf
from gradflow.solvers.deflated import _phi3


def test_steps_whose_end_is_too_stiff_for_their_stages_are_rejected():
    # A direction that becomes stiff within the step, where nothing moves yet: neither
    # the solution nor the estimate of its error shows it.
    def field(t, y, args):
        return -jnp.array([1.0, args * t]) * y

    solver, times = gf.solvers.DeflatedRKC2(rank=1), (jnp.array(0.0), jnp.array(1.0))
    for stiffness, good in ((1.0, True), (1e6, False)):
        term, y0 = diffrax.ODETerm(field), jnp.array([1.0, 0.0])
        state = solver.init(term, *times, y0, stiffness)
        _, error, _, new, _ = solver.step(term, *times, y0, stiffness, state, False)
        assert bool(jnp.all(jnp.isfinite(error))) == good
    # An error little above what is acceptable is no reason to doubt the bound.
    for times_acceptable, doubted in ((1.5, False), (50.0, True)):
        kept = solver.rejected(state, new, times_acceptable)
        assert (float(kept.jacobian.bound) > float(state.jacobian.bound)) == doubted


def test_deflated_steps_follow_a_bent_valley(monkeypatch):
    # The gradient flow of x - stiff (c - x^2)^2 / 2, along c = x^2.
    stiff = 1e4

    def field(t, y, args):
        x, c = y
        off = stiff * (c - x**2)
        return jnp.stack([1 + 2 * off * x, -off])

    solver = gf.solvers.DeflatedRKC2(rank=1)
    exact = solve_ivp(
        lambda t, y: np.asarray(field(t, y, None)),
        (0, 0.5),
        [0.0, 0.0],
        method="Radau",
        rtol=1e-10,
        atol=1e-12,
    ).y[:, -1]

    def error():
        term, y, h = diffrax.ODETerm(field), jnp.zeros(2), 0.05
        state = solver.init(term, 0.0, h, y, None)
        for i in range(10):
            y, _, _, state, _ = solver.step(
                term, i * h, (i + 1) * h, y, None, state, False
            )
        return float(np.max(np.abs(y - exact)))

    bent = error()
    assert bent < 3e-4
    monkeypatch.setattr("gradflow.solvers.deflated._CLOSE", 0.0)
    assert error() > 10 * bent


@pytest.mark.parametrize("x", [0.0, -1e-9, -0.3, -0.999, -1.001, -40.0, -1e8])
def test_third_phi_function(x):
    with mpmath.workdps(60):
        m = mpmath.mpf(x)
        exact = (mpmath.exp(m) - 1 - m - m**2 / 2) / m**3 if x else mpmath.mpf(1) / 6
    assert float(_phi3(jnp.asarray(x))) == pytest.approx(float(exact), rel=1e-14)
