"""What else one could integrate the flow with, on the same problems.

Every method returns `theta`, its work (gradient evaluations, a Jacobian product counted
as two), seconds after compilation, seconds to compile and the reason to stop.
"""

import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from scipy.integrate import BDF, LSODA, Radau

SCIPY = {"LSODA": LSODA, "BDF": BDF, "Radau": Radau}


def start_of(problem) -> float:
    return float(jnp.log(problem.n) - problem.log_risk(problem.theta))


def scipy(problem, name: str, to: float, rtol: float, budget: float) -> dict[str, Any]:
    """A stiff solver of SciPy in log-risk time, with the exact jitted Jacobian."""

    @jax.jit
    def rate(problem, theta):
        _, direction = problem.log_risk_and_direction(theta)
        return direction / jnp.vdot(direction, direction)

    began = time.perf_counter()
    jacobian = jax.jit(lambda p, t: jax.jacfwd(lambda t: rate(p, t))(t))
    jax.block_until_ready(
        (rate(problem, problem.theta), jacobian(problem, problem.theta))
    )
    compiled = time.perf_counter() - began
    theta0 = np.asarray(problem.theta)
    if not theta0.any():
        # Where a linear model starts, relative tolerances have no scale.
        atol = rtol * 1e-3
    else:
        atol = rtol * np.linalg.norm(theta0) / np.sqrt(problem.k)
    began = time.perf_counter()
    solver = SCIPY[name](
        lambda s, t: np.asarray(rate(problem, t)),
        start_of(problem),
        theta0,
        to,
        rtol=rtol,
        atol=atol,
        jac=lambda s, t: np.asarray(jacobian(problem, t)),
    )
    while solver.status == "running" and time.perf_counter() - began < budget:
        solver.step()
    result = {"finished": "reached", "failed": "failed"}
    return {
        "theta": solver.y,
        "work": int(solver.nfev + 2 * problem.k * solver.njev),
        "seconds": time.perf_counter() - began,
        "compile_seconds": compiled,
        "result": result.get(solver.status, "time_limit"),
    }


def _sharpness(gradient, theta, vector):
    _, product = jax.jvp(gradient, (theta,), (vector,))
    norm = jnp.linalg.norm(product)
    return product / jnp.where(norm > 0, norm, 1), norm


def sharpness_rk4(problem, theta, memory):
    """RK4 on ln L with step 1 / sharpness, the rule of edge-of-stability scripts."""

    def gradient(theta):
        return problem.log_risk_and_direction(theta)[1]

    vector, sharpness = _sharpness(gradient, theta, memory)
    h = 1 / sharpness
    k1 = gradient(theta)
    k2 = gradient(theta + h / 2 * k1)
    k3 = gradient(theta + h / 2 * k2)
    k4 = gradient(theta + h * k3)
    return theta + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), vector, 6


def constant_step(problem, theta, memory):
    """Gradient descent on the mean loss with the step 0.1."""
    log_risk, direction = problem.log_risk_and_direction(theta)
    return theta + 0.1 * jnp.exp(log_risk) / problem.n * direction, memory, 1


def normalised_step(problem, theta, memory):
    """Gradient descent with a step of 0.01 / L: constant on ln L."""
    _, direction = problem.log_risk_and_direction(theta)
    return theta + 0.01 * direction, memory, 1


DESCENT = {
    "RK4, step 1/sharpness": sharpness_rk4,
    "gradient descent, step 0.1": constant_step,
    "gradient descent, step 0.01/L": normalised_step,
}


def descent(problem, name: str, to: float, budget: float) -> dict[str, Any]:
    """A fixed rule for the step, until `to` or out of time."""
    rule = DESCENT[name]

    @eqx.filter_jit
    def chunk(problem, theta, memory, steps):
        def going(carry):
            theta, _, _, left = carry
            s = jnp.log(problem.n) - problem.log_risk(theta)
            return (left > 0) & (s < to)

        def body(carry):
            theta, memory, work, left = carry
            theta, memory, more = rule(problem, theta, memory)
            return theta, memory, work + more, left - 1

        return jax.lax.while_loop(
            going, body, (theta, memory, jnp.zeros((), int), steps)
        )

    noise = jax.random.normal(jax.random.key(0), problem.theta.shape)
    theta, memory = problem.theta, noise / jnp.linalg.norm(noise)
    began = time.perf_counter()
    jax.block_until_ready(chunk(problem, theta, memory, jnp.array(0)))
    compiled = time.perf_counter() - began
    began, work, result = time.perf_counter(), 0, "time_limit"
    while time.perf_counter() - began < budget:
        theta, memory, more, left = chunk(problem, theta, memory, jnp.array(200))
        work += int(more)
        if not bool(jnp.all(jnp.isfinite(theta))):
            result = "diverged"
            break
        if int(left) > 0:
            result = "reached"
            break
    return {
        "theta": theta,
        "work": work,
        "seconds": time.perf_counter() - began,
        "compile_seconds": compiled,
        "result": result,
    }
