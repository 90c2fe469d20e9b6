"""`integrate`: gradient flow from a problem's parameters to a loss level."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ._arguments import (
    checked_clock,
    checked_diagnostics,
    checked_limits,
    checked_neglect,
    checked_saves,
    checked_solver,
    warn_about_precision,
)
from ._clocks import AbstractClock
from ._compile import jitted
from ._flow import Flow, measured_s
from ._problem import Problem
from ._record import describe
from ._results import FlowError, Result
from ._run import Run, listening
from ._runfolder import RunFolder
from ._state import Settings
from ._step_sizes import StepSizes
from ._trajectory import Trajectory
from .diagnostics.snapshot import Snapshot

Diagnostic = Callable[[Snapshot], dict[str, Array]]


def integrate(
    problem: Problem,
    to: float | int,
    *,
    clock: AbstractClock | None = None,
    solver: Any = None,
    rtol: float = 1e-4,
    atol: float | None = None,
    saveat: Any = 200,
    diagnostics: Sequence[Diagnostic] | None = None,
    progress: bool | None = None,
    max_steps: int | None = None,
    max_seconds: float | None = None,
    patience: int | None = 500,
    neglect: float | int | None = None,
    folder: str | Path | None = None,
    throw: bool = True,
) -> Trajectory:
    r"""Integrates $d\theta/dt = -\nabla L(\theta)$ until $\ln(n/L)$ reaches `to`.

    **Arguments:**

    - `problem`: model, data, loss and initial parameters.
    - `to`: the end as log-risk time $s = \ln(n/L)$; L = 1e-800 on n examples is
        $s = \ln n + 800\ln 10$. Measured, not integrated.
    - `clock`: the solver's independent variable; the curve is the same for all. `None`:
        `SmoothedMarginTime()` for degree 1 and a loss with an exponential tail, and
        `LogRiskTime()` otherwise.
    - `solver`: any Diffrax solver with an error estimate. `None` chooses by the size
        of the problem and whether its model is linear (`gf.solvers.choose`).
    - `rtol`, `atol`: a step is accepted if the norm of its estimated error is at most
        `atol + rtol * rho` over the parameters as a whole (`atol` is 0 by default), and
        if the measured change of $s$ differs from the integrated one by at most
        `3 * rtol` times the larger of 1 and $\sqrt{s\,\Delta s}$, with $\Delta s$ the
        step in $s$ (and the estimated error of $\ln t$ is at most `30 * rtol` times the
        larger of 1 and $\Delta s$). The second is an error of the margins that
        carry weight. Where it was measured, from s = 10 on, normalised
        margins that carry weight (relative to the least), alignment and $J$ (relative)
        were within `10 * rtol` (`tests/test_tolerance.py`).
    - `saveat`: number of saved points, spread evenly in $s$ (in $\ln s$ for runs past
        10,000), or increasing s-values. They do not influence the steps.
    - `diagnostics`: functions of a `Snapshot` that return arrays by name, evaluated at
        saved points inside the solve. `None`: `gf.diagnostics.standard`. Empty: only
        `s`, `log_risk` and the work so far (steps and what the solver counts).
    - `progress`: a progress line; by default where standard error is a terminal.
    - `max_steps`, `max_seconds`: optional limits; the flow then ends with that result.
    - `patience`: after so many tried steps in a row that are on average a hundred times
        smaller than the tolerance asks for, the flow ends as `chattering`. `None` never
        gives up.
    - `neglect`: steps may leave out examples whose losses together are at most this
        share of $L$, as measured at both ends of each step; `traj.stats["neglected"]`
        is the largest such share. `None`: the rounding of the parameters' dtype (so
        that results agree to rounding) where `n * k * to` is above 5e10 and the model
        does not couple examples; otherwise 0.0, since taking fewer examples compiles
        the steps anew. `DualRodas5P` always takes all.
    - `folder`: stream saved points and checkpoints there; the same call on the same
        folder resumes, bit-identically.
    - `throw`: raise `FlowError` (which carries the trajectory) for `step_underflow`,
        `clock_lost` and `chattering`. All other results are returned.

    **Returns:** a `Trajectory`. Ctrl-C ends the flow within three seconds with result
    `interrupted` and everything up to there; a second one raises `KeyboardInterrupt`.

    **Raises:** `ValueError` for arguments that make no sense, `FlowError` as above.
    """
    if not isinstance(problem, Problem):
        raise ValueError(f"`problem` must be a `gf.Problem`; got {type(problem)}.")
    solver = checked_solver(solver, problem, rtol, atol)
    s0, log_loss_at_zero = map(float, _beginning(problem))
    saves = checked_saves(saveat, s0, to)
    warn_about_precision(problem, to)
    neglect = checked_neglect(neglect, problem, to, solver)
    clock = checked_clock(clock, problem)
    diagnostics = checked_diagnostics(diagnostics)
    limits = checked_limits(
        max_steps=max_steps, patience=patience, max_seconds=max_seconds
    )
    rho = float(np.linalg.norm(np.asarray(problem.theta)))
    absolute = 0.0 if atol is None else float(atol)
    settings = Settings(
        flow=Flow(problem, clock.at_start(rho, problem.degree)),
        solver=solver,
        step_sizes=StepSizes(solver),
        rtol=jnp.asarray(rtol, problem.theta.dtype),
        atol=jnp.asarray(absolute, problem.theta.dtype),
        saves=jnp.asarray(saves, problem.theta.dtype),
        max_steps=jnp.asarray(limits["max_steps"]),
        patience=jnp.asarray(limits["patience"]),
        neglect=neglect,
        capacity=problem.n,
        diagnostics=diagnostics,
    )
    config = describe(
        settings,
        to=float(to),
        s0=s0,
        rtol=float(rtol),
        atol=absolute,
        log_loss_at_zero=log_loss_at_zero,
    )
    store = None if folder is None else RunFolder(folder, config)
    with listening() as interrupt:
        run = Run(settings, config, store, interrupt, progress, max_seconds)
        trajectory = run.go()
    failed = (Result.step_underflow, Result.clock_lost, Result.chattering)
    if throw and trajectory.result in failed:
        raise FlowError(trajectory)
    return trajectory


@jitted  # In one program: single operations take as long as a small flow.
def _beginning(problem: Problem):
    """Where a flow starts: its s, and ln l(0), below which all margins are positive."""
    at_zero = problem.loss.log_loss(jnp.zeros(()))
    return measured_s(problem, problem.theta), at_zero
