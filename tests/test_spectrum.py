"""Spectra against dense Hessians and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradflow as gf
from gradflow.diagnostics import spectrum as compute

from .helpers import separable


def eigenvalues(function, theta):
    return np.linalg.eigvalsh(np.asarray(jax.jit(jax.hessian(function))(theta)))


def largest(values, count):
    return values[np.argsort(-np.abs(values))][:count]


def small_problem(loss=None):
    x, y = separable(n=10, d=6)
    model = gf.models.TwoLayer(6, 16, key=jax.random.key(0), scale=0.5)
    return gf.Problem(model, x, y, loss=loss)


def test_lanczos_agrees_with_the_dense_hessians():
    problem = small_problem()
    theta = problem.theta
    assert problem.k == 96  # so that the matrix-free branch runs
    found = gf.diagnostics.spectrum(problem, theta, count=3)
    value = float(jnp.exp(problem.log_risk(theta)))
    risk = eigenvalues(lambda t: jnp.exp(problem.log_risk(t)), theta) / value
    np.testing.assert_allclose(found.risk, np.sort(risk)[::-1][:3], rtol=1e-5)
    log_risk = eigenvalues(problem.log_risk, theta)
    np.testing.assert_allclose(found.log_risk, largest(log_risk, 3), rtol=1e-5)

    def alpha(t):
        return -jnp.log(jnp.expm1(jnp.exp(problem.log_risk(t))))

    np.testing.assert_allclose(
        found.smoothed_margin, largest(eigenvalues(alpha, theta), 3), rtol=1e-5
    )

    def field(t):
        g = -jax.grad(problem.log_risk)(t)
        return g / jnp.vdot(g, g)

    rates = np.linalg.eigvals(np.asarray(jax.jit(jax.jacobian(field))(theta)))
    np.testing.assert_allclose(found.stiffness, np.max(np.abs(rates)), rtol=1e-5)


def test_one_example_in_closed_form_far_past_underflow():
    # One example, one weight: L = exp(-w), so each Hessian is known, and
    # t = int e^w dw = e^w up to a constant.
    problem = gf.Problem(
        gf.models.Linear(1), jnp.ones((1, 1)), jnp.ones(1), loss=gf.Exponential()
    )
    found = compute(problem, jnp.array([5000.0]), count=1, log_t=5000.0)
    np.testing.assert_allclose(found.risk, [1.0], rtol=1e-12)
    np.testing.assert_allclose(found.log_risk, [0.0], atol=1e-12)
    np.testing.assert_allclose(found.log_sharpness, -5000, rtol=1e-12)
    np.testing.assert_allclose(found.sharpness_times_time, 1.0, rtol=1e-9)


def test_one_example_and_too_many_weights_for_a_matrix():
    # L = exp(-w x): the Hessian of ln L vanishes, and that of L over L is x x^T.
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 65)))
    problem = gf.Problem(
        gf.models.Linear(65), x, jnp.ones(1), loss=gf.Exponential(), one_class=True
    )
    found = compute(problem, jnp.zeros(65), count=1)
    np.testing.assert_allclose(found.risk, [jnp.sum(x**2)], rtol=1e-9)
    assert found.log_risk == found.smoothed_margin == found.stiffness == 0


def test_two_weights_in_closed_form():
    # ln L = ln(e^-a + e^-b) at a = b: the Hessian is [[1, -1], [-1, 1]] / 4, and
    # alpha = -ln L for the exponential loss.
    problem = gf.Problem(
        gf.models.Linear(2), jnp.array([[1.0, 0], [0, -1.0]]), jnp.array([1.0, -1.0]),
        loss=gf.Exponential(),
    )  # fmt: skip
    found = gf.diagnostics.spectrum(problem, jnp.array([900.0, 900.0]), count=2)
    np.testing.assert_allclose(found.log_risk, [0.5, 0], atol=1e-12)
    np.testing.assert_allclose(found.smoothed_margin, [-0.5, 0], atol=1e-12)
    np.testing.assert_allclose(found.risk, [0.5, 0.5], atol=1e-12)
    # G = (1/2, 1/2): DF = (I - 2 gg^T) DG / |G|^2 with DG = -Hessian.
    np.testing.assert_allclose(found.stiffness, 1.0, rtol=1e-12)
    assert np.isnan(found.sharpness_times_time)


def test_count_beyond_the_parameters_is_refused():
    problem = gf.Problem(gf.models.Linear(3), *separable())
    with pytest.raises(ValueError, match="number of parameters"):
        gf.diagnostics.spectrum(problem, problem.theta, count=4)
