"""Rates and limits against closed forms and an independent quadratic program."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

import gradflow as gf
from gradflow.diagnostics.rates import limit, power

from .helpers import separable
from .test_kkt import quadratic_program


def single_weight(degree, points=80):
    """The flow of p = w^L with one example: t = int e^p p^(2/L - 2) dp / L^2."""
    p = np.geomspace(20, 2e4, points)
    # The integral with e^p taken out, so that it does not overflow.
    tail = [
        quad(lambda v, q=q: np.exp(-v) * (1 - v / q) ** (2 / degree - 2), 0, q / 2)[0]
        for q in p
    ]
    log_t = p + (2 / degree - 2) * np.log(p) + np.log(tail) - 2 * np.log(degree)
    return {"s": p, "log_t": log_t, "log_risk": -p, "rho": p ** (1 / degree)}


@pytest.mark.parametrize("degree", [1.0, 2.0, 3.0, 5.0])
def test_rates_of_a_single_weight_in_closed_form(degree):
    found = gf.diagnostics.rates(single_weight(degree), degree=degree)
    assert found.risk.predicted == -(2 - 2 / degree)
    assert found.risk.consistent
    assert found.norm.consistent
    # tL = (log t)^-(2 - 2/L) (1 + O(log log t / log t)): at log t of 2e3 to 2e4 the
    # slope is off by less than 0.01.
    np.testing.assert_allclose(found.risk.exponent, -(2 - 2 / degree), atol=0.01)
    np.testing.assert_allclose(found.norm.exponent, 1 / degree, atol=0.01)
    assert np.ptp(found.risk.interval) < 0.05
    assert found.direction is None
    assert found.margin is None


def test_a_wrong_degree_is_not_consistent():
    found = gf.diagnostics.rates(single_weight(3.0), degree=2.0)
    assert not found.risk.consistent
    assert not found.norm.consistent


def test_power_recovers_an_exact_power_and_sees_noise():
    x = np.geomspace(1, 1e3, 100)
    found = power(x, -1.5 * np.log(x) + 0.3, predicted=-1.5)
    np.testing.assert_allclose(found.exponent, -1.5, rtol=1e-12)
    noise = 0.1 * np.random.default_rng(0).normal(size=100)
    found = power(x, -1.5 * np.log(x) + noise, predicted=-1.5)
    assert found.consistent
    assert np.ptp(found.interval) > 0.05


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_limit_of_a_power_with_a_correction(exponent):
    s = np.linspace(10, 1e4, 200)
    values = 0.7 - 3 * s**-exponent * (1 + 5 / s)
    found = limit(s, values)
    assert found.interval[0] <= 0.7 <= found.interval[1]
    np.testing.assert_allclose(found.value, 0.7, atol=0.02 * (0.7 - values[-1]))
    np.testing.assert_allclose(found.exponent, exponent, rtol=0.02)
    np.testing.assert_allclose(found.remainder, found.value - values[-1], rtol=1e-12)


def test_limit_of_a_constant_is_itself():
    found = limit(np.linspace(1, 100, 50), np.full(50, 0.3))
    assert found.value == 0.3
    assert found.remainder == 0


def test_path_limit_of_a_power_in_closed_form():
    # rho = 1 and G = (1, s^-1.5): the speed is s^-1.5 / (1 + s^-3), the length
    # -2 s^-0.5 up to terms of order s^-3.5.
    s = np.geomspace(10, 1e4, 100)
    traj = {
        "s": s,
        "log_risk": -s,
        "rho": np.ones(100),
        "path_length": 5 - 2 * s**-0.5,
        "log_radial_gradient": -s,
        "log_spherical_gradient": -s - 1.5 * np.log(s),
    }
    found = gf.diagnostics.path_limit(traj)
    np.testing.assert_allclose(found.remainder, 2e-2, rtol=1e-6)
    np.testing.assert_allclose(found.value, 5, rtol=1e-7)
    np.testing.assert_allclose(found.exponent, 0.5, rtol=1e-6)
    traj["log_spherical_gradient"] = -s - 0.8 * np.log(s)
    assert gf.diagnostics.path_limit(traj).remainder == np.inf


def test_too_few_points_are_refused():
    with pytest.raises(ValueError, match="save more points"):
        limit(np.array([1.0, 10.0, 100.0]), np.ones(3))
    with pytest.raises(ValueError, match="degree"):
        gf.diagnostics.rates(single_weight(2.0))


def test_linear_flow_against_the_quadratic_program():
    x, y = separable(n=12, d=4)
    w, _ = quadratic_program(np.asarray(y)[:, None] * np.asarray(x))
    problem = gf.Problem(gf.models.Linear(4), x, y)

    def direction_error(snap):
        unit = jnp.asarray(w / np.linalg.norm(w))
        return {"direction_error": jnp.linalg.norm(snap.theta / snap.rho - unit)}

    diagnostics = (gf.diagnostics.standard, direction_error)
    traj = gf.integrate(problem, to=1e4, rtol=1e-7, diagnostics=diagnostics)
    found = gf.diagnostics.rates(traj, direction_error=traj["direction_error"])
    margin = 1 / np.linalg.norm(w)
    assert found.margin is not None and found.direction is not None
    assert found.margin.interval[0] <= margin <= found.margin.interval[1]
    # The last margin itself is about 1e-4 away.
    assert abs(found.margin.value - margin) < 0.02 * abs(
        traj["min_normalized_margin"][-1] - margin
    )
    assert found.direction.consistent
    assert found.risk.consistent
    assert found.norm.consistent
    # The late path is almost straight, so its tail is the distance from the limit.
    assert found.path_length is not None
    tail, distance = found.path_length.remainder, traj["direction_error"][-1]
    np.testing.assert_allclose(tail, distance, rtol=2e-3)
    # KKT residuals fall off like 1/s where the support vectors do not span the space.
    near = gf.diagnostics.kkt(problem, traj.model)
    traj = gf.integrate(problem, to=1e7, rtol=1e-7, diagnostics=diagnostics)
    far = gf.diagnostics.kkt(problem, traj.model)
    assert far.relative_epsilon < 1e-6
    assert far.delta < 1e-6
    np.testing.assert_allclose(near.epsilon / far.epsilon, 1e3, rtol=0.05)
