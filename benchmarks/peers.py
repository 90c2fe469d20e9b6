"""Other libraries' solvers on the same problems, in log-risk time.

Every method returns `theta`, its work (gradient evaluations, a Jacobian product counted
as two), seconds after compilation, seconds to compile and the reason to stop.
"""

import time
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from scipy.integrate import BDF, LSODA, Radau

from gradflow._flow import measured_s

SCIPY = {"LSODA": LSODA, "BDF": BDF, "Radau": Radau}


# Compiled once for all runs of a problem.
@jax.jit
def rate(problem, theta):
    """dtheta/ds = G/|G|^2."""
    _, direction = problem.log_risk_and_direction(theta)
    return direction / jnp.vdot(direction, direction)


@jax.jit
def _jacobian(problem, theta):
    return jax.jacfwd(rate, argnums=1)(problem, theta)


def atol_of(problem, rtol: float) -> float:
    """The absolute tolerance that goes with a relative one."""
    norm = float(jnp.linalg.norm(problem.theta))
    # Where a linear model starts, at zero, relative tolerances have no scale.
    return rtol * (norm / np.sqrt(problem.k) if norm else 1e-3)


def scipy(
    problem,
    name: str,
    to: float,
    budget: float,
    rtol: float,
    steps: list | None = None,
) -> dict[str, Any]:
    """A stiff solver of SciPy, with the exact jitted Jacobian; `steps` is filled with
    the parameters after each step."""
    began = time.perf_counter()
    jax.block_until_ready(
        (rate(problem, problem.theta), _jacobian(problem, problem.theta))
    )
    compiled = time.perf_counter() - began
    began = time.perf_counter()
    solver = SCIPY[name](
        lambda s, t: np.asarray(rate(problem, t)),
        float(measured_s(problem, problem.theta)),
        np.asarray(problem.theta),
        to,
        rtol=rtol,
        atol=atol_of(problem, rtol),
        jac=lambda s, t: np.asarray(_jacobian(problem, t)),
    )
    while solver.status == "running" and time.perf_counter() - began < budget:
        solver.step()
        if steps is not None:
            steps.append(solver.y.copy())
    result = {"finished": "reached", "failed": "failed"}
    return {
        "theta": solver.y,
        "work": int(solver.nfev + 2 * problem.k * solver.njev),
        "seconds": time.perf_counter() - began,
        "compile_seconds": compiled,
        "result": result.get(solver.status, "time_limit"),
    }


def kencarp4(problem, to: float, rtol: float) -> dict[str, Any]:
    """Diffrax's KenCarp4, an implicit-explicit pair, with all of the flow implicit."""
    terms = diffrax.MultiTerm(
        diffrax.ODETerm(lambda t, y, args: jnp.zeros_like(y)),
        diffrax.ODETerm(lambda t, y, problem: rate(problem, y)),
    )

    atol = atol_of(problem, rtol)

    @eqx.filter_jit
    def solve(problem, to):
        return diffrax.diffeqsolve(
            terms,
            diffrax.KenCarp4(),
            measured_s(problem, problem.theta),
            to,
            None,
            problem.theta,
            problem,
            stepsize_controller=diffrax.PIDController(rtol, atol),
            max_steps=2000,
            throw=False,
        )

    def timed():
        began = time.perf_counter()
        solution = jax.block_until_ready(solve(problem, jnp.asarray(to)))
        return solution, time.perf_counter() - began

    _, first = timed()
    solution, seconds = timed()
    reached = solution.result == diffrax.RESULTS.successful
    return {
        "theta": solution.ys[-1],
        "work": None,
        "seconds": seconds,
        "compile_seconds": first - seconds,
        "result": "reached" if reached else "failed",
    }


def torchdiffeq(problem, to: float, budget: float, rtol: float) -> dict[str, Any]:
    """torchdiffeq's dopri5 on the same jitted function (extra: `benchmarks`)."""
    import torch
    from torchdiffeq import odeint

    began = time.perf_counter()
    jax.block_until_ready(rate(problem, problem.theta))
    compiled = time.perf_counter() - began
    began, last = time.perf_counter(), [np.asarray(problem.theta), 0]

    def function(s, theta):
        last[1] += 1
        if time.perf_counter() - began > budget:
            raise TimeoutError
        return torch.from_numpy(np.array(rate(problem, theta.numpy())))

    def accepted(s, theta, step):
        last[0] = theta.numpy()

    # Where the last accepted step began: not a stage of one still being tried.
    function.callback_accept_step = accepted

    start = float(measured_s(problem, problem.theta))
    times = torch.tensor([start, to], dtype=torch.float64)
    try:
        path = odeint(
            function,
            torch.from_numpy(np.array(problem.theta)),
            times,
            rtol=rtol,
            atol=atol_of(problem, rtol),
            method="dopri5",
        )
        last[0], result = path[-1].numpy(), "reached"
    except TimeoutError:
        result = "time_limit"
    except AssertionError:
        result = "step_underflow"
    return {
        "theta": last[0],
        "work": last[1],
        "seconds": time.perf_counter() - began,
        "compile_seconds": compiled,
        "result": result,
    }
