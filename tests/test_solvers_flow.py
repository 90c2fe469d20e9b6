"""The solver made for gradient flow, against the dense one on a tiny network."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradflow as gf

from .helpers import separable


@pytest.fixture(scope="module")
def problem():
    x, y = separable(n=12, d=3)
    model = gf.models.MLP((3, 6, 1), gf.models.SmoothReLU(0.3), key=jax.random.key(0))
    return gf.Problem(model, x, y)


def end(problem, solver, rtol):
    traj = gf.integrate(problem, 30.0, solver=solver, rtol=rtol, saveat=[10.0, 30.0])
    return traj["normalized_margins"], traj


def test_agrees_with_the_dense_solver(problem):
    exact, _ = end(problem, gf.solvers.Rodas5P(), 1e-6)
    ours, traj = end(problem, gf.solvers.FlowRKC2(), 1e-4)
    np.testing.assert_allclose(ours, exact, rtol=1e-3)
    assert traj.stats["gradient_evaluations"] > 0
    assert traj.stats["steps"] < 300


def test_step_is_the_flow_at_held_speed(problem):
    # A short step against the definition: theta + h v G, and s + h v |G|^2.
    clock = gf.LogRiskTime()
    args = _Flow(problem, clock)
    theta = problem.theta
    log_risk, direction = problem.log_risk_and_direction(theta)
    norm, rho = jnp.linalg.norm(direction), jnp.linalg.norm(theta)
    speed = clock.speed(log_risk, norm, rho, jnp.vdot(theta, direction), problem.loss)
    solver, h = gf.solvers.FlowRKC2(), jnp.array(1e-6)
    term, y0 = diffrax.ODETerm(_field), (theta, jnp.zeros(1))

    @eqx.filter_jit
    def step(y0, args):
        state = solver.init(term, jnp.array(0.0), h, y0, args)
        return solver.step(term, jnp.array(0.0), h, y0, args, state, False)

    (theta1, q1), error, _, state, _ = step(y0, args)
    np.testing.assert_allclose(theta1 - theta, h * speed * direction, rtol=1e-3)
    np.testing.assert_allclose(q1[0], h * speed * norm**2, rtol=1e-3)
    assert float(jnp.linalg.norm(error[0])) < 1e-10
    # Three stages, and the slope at the start.
    assert int(solver.counts(state)["gradient_evaluations"]) == 4


class _Flow(eqx.Module):
    problem: gf.Problem
    clock: gf.LogRiskTime


def _field(t, y, args):
    theta, _ = y
    log_risk, direction = args.problem.log_risk_and_direction(theta)
    norm = jnp.linalg.norm(direction)
    speed = args.clock.speed(
        log_risk,
        norm,
        jnp.linalg.norm(theta),
        jnp.vdot(theta, direction),
        args.problem.loss,
    )
    return speed * direction, jnp.reshape(speed * norm**2, (1,))
