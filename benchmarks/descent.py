"""Descent with a rule for its step, as one would train, on the same problems.

A rule has `start(problem)`, its memory, and `step(problem, theta, memory)`, which gives
the new parameters, the new memory and the gradient evaluations it took.
"""

import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from gradflow._flow import measured_s


class SharpnessRK4:
    """RK4 on ln L with step 1 / sharpness, the rule of edge-of-stability scripts."""

    def start(self, problem):
        noise = jax.random.normal(jax.random.key(0), problem.theta.shape)
        return noise / jnp.linalg.norm(noise)

    def step(self, problem, theta, vector):
        def gradient(theta):
            return problem.log_risk_and_direction(theta)[1]

        k1, product = jax.jvp(gradient, (theta,), (vector,))
        sharpness = jnp.linalg.norm(product)
        vector = product / jnp.where(sharpness > 0, sharpness, 1)
        h = 1 / sharpness
        k2 = gradient(theta + h / 2 * k1)
        k3 = gradient(theta + h / 2 * k2)
        k4 = gradient(theta + h * k3)
        return theta + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), vector, 6


class ConstantStep:
    """Gradient descent on the mean loss with the step 0.1."""

    def start(self, problem):
        return ()

    def step(self, problem, theta, memory):
        log_risk, direction = problem.log_risk_and_direction(theta)
        return theta + 0.1 * jnp.exp(log_risk) / problem.n * direction, memory, 1


class NormalisedStep:
    """Gradient descent with a step of 0.01 / L: constant on ln L."""

    def start(self, problem):
        return ()

    def step(self, problem, theta, memory):
        _, direction = problem.log_risk_and_direction(theta)
        return theta + 0.01 * direction, memory, 1


class LossBasedStep:
    """Lyu and Li's loss-based learning rate, Appendix L.1, full batch.

    The step is alpha / L with alpha = 0.1 at first, times 2^(1/5) after a step that
    lowers the loss; one that does not is taken back, and alpha divided by 2^(1/10).
    """

    def start(self, problem):
        log_risk, direction = problem.log_risk_and_direction(problem.theta)
        return jnp.full_like(log_risk, 0.1), log_risk, direction

    def step(self, problem, theta, memory):
        alpha, log_risk, direction = memory
        new = theta + alpha * direction
        found = problem.log_risk_and_direction(new)
        lower = found[0] < log_risk
        log_risk, direction = jax.tree.map(
            lambda a, b: jnp.where(lower, a, b), found, (log_risk, direction)
        )
        alpha = alpha * jnp.where(lower, 2 ** (1 / 5), 2 ** (-1 / 10))
        return jnp.where(lower, new, theta), (alpha, log_risk, direction), 1


DESCENT = {
    "RK4, step 1/sharpness": SharpnessRK4(),
    "gradient descent, step 0.1": ConstantStep(),
    "gradient descent, step 0.01/L": NormalisedStep(),
    "gradient descent, loss-based step": LossBasedStep(),
}


def descent(problem, name: str, to: float, budget: float) -> dict[str, Any]:
    """A rule for the step, until `to` or out of time."""
    rule = DESCENT[name]

    @eqx.filter_jit
    def chunk(problem, theta, memory, steps):
        def going(carry):
            theta, _, _, left = carry
            s = measured_s(problem, theta)
            return (left > 0) & (s < to)

        def body(carry):
            theta, memory, work, left = carry
            theta, memory, more = rule.step(problem, theta, memory)
            return theta, memory, work + more, left - 1

        return jax.lax.while_loop(
            going, body, (theta, memory, jnp.zeros((), int), steps)
        )

    theta, memory = problem.theta, rule.start(problem)
    began = time.perf_counter()
    jax.block_until_ready(chunk(problem, theta, memory, jnp.array(0)))
    compiled = time.perf_counter() - began
    began, work, steps, result = time.perf_counter(), 0, 1, "time_limit"
    while (spent := time.perf_counter() - began) < budget:
        theta, memory, more, left = chunk(problem, theta, memory, jnp.array(steps))
        work += int(more)
        if not bool(jnp.all(jnp.isfinite(theta))):
            result = "diverged"
            break
        if int(left) > 0:
            result = "reached"
            break
        # Chunks of at most a tenth of the budget.
        chunk_seconds = time.perf_counter() - began - spent
        steps = max(1, min(2 * steps, int(0.1 * budget * steps / chunk_seconds)))
    return {
        "theta": np.asarray(theta),
        "work": work,
        "seconds": time.perf_counter() - began,
        "compile_seconds": compiled,
        "result": result,
    }
