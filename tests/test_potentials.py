"""J, its derivative and bound, and the split of gradients, against naive formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradflow as gf

from .helpers import separable

LOSSES = [gf.Exponential(), gf.Logistic()]


def smooth_problem(loss):
    """A squared-ReLU network at a point that classifies everything correctly."""
    x, y = separable(n=10, d=3)
    model = gf.models.TwoLayer(3, 6, key=jax.random.key(0))
    problem = gf.Problem(model, x, y, loss=loss)

    def step(_, theta):  # plain descent, only to reach a low risk
        _, direction = problem.log_risk_and_direction(theta)
        return theta + 0.02 * direction / jnp.linalg.norm(direction)

    theta = jax.jit(lambda t: jax.lax.fori_loop(0, 300, step, t))(problem.theta)
    assert float(problem.log_risk(theta)) < np.log(np.log(2))
    return problem, theta


def alpha_of(problem, theta):
    risk = jnp.exp(problem.log_risk(theta))
    if isinstance(problem.loss, gf.Exponential):
        return -jnp.log(risk)
    return -jnp.log(jnp.expm1(risk))


@pytest.fixture(scope="module", params=LOSSES, ids=["exponential", "logistic"])
def case(request):
    problem, theta = smooth_problem(request.param)
    return problem, theta, gf.diagnostics.potentials(problem, theta)


def test_j_and_its_derivative_against_the_definition(case):
    problem, theta, found = case

    def j(theta):
        grad = jax.grad(lambda t: alpha_of(problem, t))(theta)
        return jnp.vdot(grad, grad) / jnp.linalg.norm(theta) ** 2

    np.testing.assert_allclose(found.j_potential, j(theta), rtol=1e-11)
    grad_alpha = jax.grad(lambda t: alpha_of(problem, t))(theta)
    hessian = jax.jit(jax.hessian(lambda t: alpha_of(problem, t)))(theta)
    degree, rho = 2, jnp.linalg.norm(theta)
    # Equation (D.5), with dense matrices.
    right = rho**2 * grad_alpha @ hessian @ grad_alpha - (degree - 1) * jnp.vdot(
        grad_alpha, grad_alpha
    ) * jnp.vdot(theta, grad_alpha)
    np.testing.assert_allclose(
        found.j_derivative, 2 * right / rho ** (2 * degree), rtol=1e-9
    )
    # dJ/ds by a central difference along the flow dtheta/ds = G / |G|^2.
    _, direction = problem.log_risk_and_direction(theta)
    speed = direction / jnp.vdot(direction, direction)
    h = 1e-5
    slope = (j(theta + h * speed) - j(theta - h * speed)) / (2 * h)
    np.testing.assert_allclose(found.j_derivative_s, slope, rtol=1e-5)


def test_bound_of_lemma_d3_holds_and_is_what_the_proof_gives(case):
    problem, theta, found = case
    assert float(found.j_derivative) <= float(found.j_bound)
    rho = jnp.linalg.norm(theta)
    grad_alpha = jax.grad(lambda t: alpha_of(problem, t))(theta)
    q = jax.grad(lambda p: _alpha_of_margins(problem, p))(problem.margins(theta))
    hessian = jax.jit(jax.hessian(lambda t: jnp.vdot(q, problem.margins(t))))
    curved = hessian(theta / rho)
    spherical = grad_alpha - jnp.vdot(grad_alpha, theta) / rho**2 * theta
    unit = spherical / jnp.linalg.norm(spherical)
    curvature = unit @ curved @ unit
    # The sum of the proof's bounds (D.7), (D.8) and (D.9), degree 2.
    beta = jnp.vdot(theta, grad_alpha) / 2
    square = jnp.vdot(grad_alpha, grad_alpha)
    sine_squared = jnp.vdot(spherical, spherical) / square
    bound = 2 * (curvature * rho**2 + 4 * beta) * square / rho**4 * sine_squared
    np.testing.assert_allclose(found.j_bound, bound, rtol=1e-9)
    np.testing.assert_allclose(found.sine_squared, sine_squared, rtol=1e-9)
    # The lemma's own constant is the norm, over all directions.
    assert curvature < jnp.linalg.norm(curved, 2)


def _alpha_of_margins(problem, margins):
    risk = jnp.sum(jnp.exp(problem.loss.log_loss(margins)))
    exponential = isinstance(problem.loss, gf.Exponential)
    return -jnp.log(risk) if exponential else -jnp.log(jnp.expm1(risk))


def test_derivative_bound_on_many_points(case):
    problem, theta, _ = case
    keys = jax.random.split(jax.random.key(1), 8)
    checked = 0
    for key in keys:
        at = theta + 0.02 * jnp.linalg.norm(theta) * jax.random.normal(key, theta.shape)
        if float(problem.log_risk(at)) < np.log(np.log(2)):
            found = gf.diagnostics.potentials(problem, at)
            assert float(found.j_derivative) <= float(found.j_bound)
            checked += 1
    assert checked >= 2


def test_parts_against_automatic_differentiation(case):
    problem, theta, found = case
    rho = jnp.linalg.norm(theta)

    def split(function):
        grad = jax.grad(function)(theta)
        radial = jnp.vdot(grad, theta) / rho
        return radial, jnp.linalg.norm(grad - radial * theta / rho)

    radial, spherical = split(lambda t: jnp.exp(problem.log_risk(t)))
    np.testing.assert_allclose(found.log_radial_risk_gradient, jnp.log(-radial))
    np.testing.assert_allclose(
        found.log_spherical_risk_gradient, jnp.log(spherical), rtol=1e-9
    )
    radial, spherical = split(lambda t: alpha_of(problem, t))
    np.testing.assert_allclose(found.radial_smoothed_margin_gradient, radial, rtol=1e-9)
    np.testing.assert_allclose(
        found.spherical_smoothed_margin_gradient, spherical, rtol=1e-9
    )
    radial, spherical = split(lambda t: alpha_of(problem, t) / jnp.linalg.norm(t) ** 2)
    np.testing.assert_allclose(found.radial_normalized_gradient, radial, rtol=1e-8)
    np.testing.assert_allclose(
        found.spherical_normalized_gradient, spherical, rtol=1e-8
    )
    np.testing.assert_allclose(
        found.case_ratio, spherical / jnp.abs(radial) / rho ** (2 / 3), rtol=1e-8
    )


def test_parts_survive_far_past_underflow():
    x = jnp.array([[1.0, 0.5], [-1.0, 0.3]])
    problem = gf.Problem(
        gf.models.Linear(2), x, jnp.array([1.0, -1.0]), loss=gf.Exponential()
    )
    theta = 5000 * jnp.array([1.0, 0.1])
    found = gf.diagnostics.potentials(problem, theta)
    # The first margin is 5250, the second 4850: only the second counts. There
    # alpha = <theta, (1, -0.3)>, so J = |(1, -0.3)|^2 for degree 1.
    np.testing.assert_allclose(found.j_potential, 1.09, rtol=1e-12)
    unit = np.array([1.0, 0.1]) / np.sqrt(1.01)
    radial = unit @ np.array([1.0, -0.3])
    np.testing.assert_allclose(
        found.log_radial_risk_gradient, -4850 + np.log(radial), rtol=1e-12
    )
    np.testing.assert_allclose(found.sine_squared, 1 - radial**2 / 1.09, rtol=1e-10)


def test_j_of_a_linear_model_at_zero_weights():
    x, y = separable()
    problem = gf.Problem(gf.models.Linear(3), x, y, loss=gf.Exponential())
    found = gf.diagnostics.potentials(problem, jnp.zeros(3))
    # alpha = -ln L has the gradient and minus the covariance of the y x at equal
    # weights for its first derivatives.
    z = np.asarray(y[:, None] * x)
    mean, covariance = z.mean(axis=0), np.cov(z.T, bias=True)
    np.testing.assert_allclose(found.j_potential, mean @ mean, rtol=1e-12)
    np.testing.assert_allclose(
        found.j_derivative, -2 * mean @ covariance @ mean, rtol=1e-12
    )
    snap = gf.diagnostics.snapshot(problem, jnp.zeros(3))
    saved = gf.diagnostics.standard(snap)["j_potential"]
    np.testing.assert_allclose(saved, mean @ mean, rtol=1e-12)
