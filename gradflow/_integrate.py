"""`integrate`: gradient flow from a problem's parameters to a loss level."""

import contextlib
import dataclasses
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import diffrax
import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from . import _loop as loop, _saving as saving, _state as state
from ._active import fitting
from ._clocks import AbstractClock, LogRiskTime
from ._compile import Interrupt, Interrupted, compiled, wait
from ._flow import Flow, measured_s
from ._problem import Problem
from ._progress import Progress
from ._results import FlowError, Result
from ._runfolder import RunFolder
from ._settings import (
    checked_neglect,
    checked_saves,
    checked_solver,
    describe,
    warn_about_precision,
)
from ._trajectory import Trajectory
from ._verdict import vanished
from .diagnostics.snapshot import Snapshot
from .diagnostics.standard import standard

_CODES = {
    state.REACHED: Result.reached,
    state.STATIONARY: Result.stationary,
    state.STEP_UNDERFLOW: Result.step_underflow,
    state.CLOCK_LOST: Result.clock_lost,
    state.STEP_LIMIT: Result.step_limit,
    state.CHATTERING: Result.chattering,
}
_BUFFER_ROWS = 64
_CHUNK_SECONDS = 0.5
_NO_LIMIT = np.iinfo(np.int32).max

Diagnostic = Callable[[Snapshot], dict[str, Array]]


def integrate(
    problem: Problem,
    to: float | int,
    *,
    clock: AbstractClock = LogRiskTime(),
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
    - `clock`: the solver's independent variable; the curve is the same for all.
    - `solver`: any Diffrax solver with an error estimate. `None` chooses by the size
        of the problem, `to` and `rtol` (`gf.solvers.choose`).
    - `rtol`, `atol`: a step is accepted if the norm of its estimated error is at most
        `atol + rtol * rho` over the parameters as a whole (`atol` is 0 by default), and
        if the measured change of $s$ differs from the integrated one by at most
        `3 * rtol` times the larger of 1 and the step in $s$. The second is an error of
        the margins that carry weight. Where it was measured, from s = 10 on, normalised
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
    solver = checked_solver(solver, problem, to, rtol, atol)
    s0 = float(eqx.filter_jit(measured_s)(problem, problem.theta))
    saves = checked_saves(saveat, s0, to)
    warn_about_precision(problem, to)
    neglect = checked_neglect(neglect, problem, to, solver)
    if diagnostics is None:
        diagnostics = (standard,)
    settings = state.Settings(
        flow=Flow(problem, clock.at_start(float(jnp.linalg.norm(problem.theta)))),
        solver=solver,
        controller=diffrax.PIDController(rtol=0.0, atol=1.0, pcoeff=0.3, icoeff=0.3),
        rtol=jnp.asarray(rtol, problem.theta.dtype),
        atol=jnp.asarray(0.0 if atol is None else atol, problem.theta.dtype),
        saves=jnp.asarray(saves, problem.theta.dtype),
        max_steps=jnp.asarray(_NO_LIMIT if max_steps is None else max_steps),
        patience=jnp.asarray(_NO_LIMIT if patience is None else patience),
        neglect=jnp.asarray(neglect, problem.theta.dtype),
        capacity=problem.n,
        diagnostics=tuple(diagnostics),
    )
    config = describe(settings, to, rtol, atol, s0)
    store = None if folder is None else RunFolder(folder, config)
    with _listening() as interrupt:
        run = _Run(settings, config, store, interrupt, progress, max_seconds)
        trajectory = run.go()
    failed = (Result.step_underflow, Result.clock_lost, Result.chattering)
    if throw and trajectory.result in failed:
        raise FlowError(trajectory)
    return trajectory


@contextlib.contextmanager
def _listening():
    """Turns Ctrl-C into a request while a flow runs (main thread only)."""
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    previous = signal.signal(signal.SIGINT, interrupt.request)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, previous)


class _Run:
    """The host's side of one integration: chunks, rows, progress, files."""

    def __init__(self, settings, config, store, interrupt, progress, max_seconds):
        self.settings, self.config, self.store = settings, config, store
        self.interrupt, self.max_seconds = interrupt, max_seconds
        self.progress = Progress(progress, settings)
        self.rows: list[dict[str, np.ndarray]] = []
        self.call: Callable | None = None
        self.compile_seconds = 0.0
        self.wall_seconds = 0.0

    def go(self) -> Trajectory:
        carry = eqx.filter_eval_shape(loop.start, self.settings)
        if self.store is not None and self.store.resumable:
            carry, self.rows, self.wall_seconds = self.store.resume(carry)
        else:
            start = self._compiled(loop.start, self.settings)
            carry = None if start is None else start(self.settings)
        result = Result.interrupted
        if carry is not None:
            carry, result = self._chunks(self._with_capacity(carry))
        self.progress.close()
        return self._finished(carry, result)

    def _compiled(self, function, *args):
        try:
            call, seconds = compiled(function, *args, interrupt=self.interrupt)
        except Interrupted:
            return None
        self.compile_seconds += seconds
        return call

    def _chunks(self, carry):
        buffers = self._buffers(carry)
        budget, began = 1, time.perf_counter()
        compiled_for = None
        while True:
            if compiled_for != self.settings.capacity:
                compiled_for = self.settings.capacity
                self.call = self._compiled(
                    loop.chunk, self.settings, carry, buffers, jnp.array(0)
                )
            if self.call is None:
                return carry, Result.interrupted
            if int(carry.result) != state.RUNNING and not bool(
                saving.pending(self.settings, carry)
            ):
                return carry, self._named(carry)
            if self.interrupt.requested:
                return carry, Result.interrupted
            if self.max_seconds is not None and self.wall_seconds > self.max_seconds:
                return carry, Result.time_limit
            tick = time.perf_counter()
            try:
                new, filled, count = wait(
                    self.call(self.settings, carry, buffers, jnp.array(budget)),
                    self.interrupt,
                )
            except Interrupted:
                return carry, Result.interrupted
            elapsed = time.perf_counter() - tick
            self.wall_seconds += elapsed
            self._collect(filled, int(count))
            carry = self._with_capacity(new)
            budget = _next_budget(budget, elapsed, self.max_seconds)
            self.progress.update(carry, self.rows, time.perf_counter() - began)
            self._checkpoint(carry)

    def _with_capacity(self, carry):
        """Has steps take as many examples as are needed."""
        activity, problem = carry.activity, self.settings.flow.problem
        capacity = fitting(problem, int(activity.needed), int(activity.capacity))
        self.settings = dataclasses.replace(self.settings, capacity=capacity)
        return eqx.tree_at(
            lambda c: c.activity.capacity,
            carry,
            jnp.full_like(activity.capacity, capacity),
        )

    def _named(self, carry) -> Result:
        result, problem = _CODES[int(carry.result)], self.settings.flow.problem
        if result is Result.step_underflow and bool(vanished(problem, carry.y[0])):
            return Result.stationary
        return result

    def _checkpoint(self, carry, force=False):
        if self.store is None or carry is None:
            return
        self.store.checkpoint(
            carry,
            lambda: self._trajectory(carry.theta_saved, carry, Result.interrupted),
            rows=len(self.rows),
            force=force,
        )

    def _buffers(self, carry):
        row = eqx.filter_eval_shape(
            lambda settings, carry: saving.saved_row(settings, carry, carry.y),
            self.settings,
            carry,
        )
        rows = min(_BUFFER_ROWS, self.settings.saves.shape[0])
        return {k: jnp.zeros((rows, *v.shape), v.dtype) for k, v in row.items()}

    def _collect(self, buffers, count):
        host = {k: np.asarray(v[:count]) for k, v in buffers.items()} if count else {}
        for i in range(count):
            self.rows.append({k: v[i] for k, v in host.items()})

    def _finished(self, carry, result) -> Trajectory:
        self._checkpoint(carry, force=True)
        if carry is None:
            return self._trajectory(self.settings.flow.problem.theta, carry, result)
        theta = carry.theta_saved
        last = self.rows[-1]["s"] if self.rows else -np.inf
        if result is not Result.reached and float(carry.s) > last:
            theta = self._save_here(carry)
        trajectory = self._trajectory(theta, carry, result)
        if self.store is not None:
            self.store.save(trajectory)
        return trajectory

    def _save_here(self, carry):
        """Saves the end of the last step too; the compiled chunk does it in no time."""
        if self.call is None:
            return carry.theta_saved
        saves = jnp.full_like(self.settings.saves, carry.s)
        settings = eqx.tree_at(lambda s: s.saves, self.settings, saves)
        carry = eqx.tree_at(
            lambda c: (c.saved, c.result),
            carry,
            (jnp.zeros_like(carry.saved), jnp.full_like(carry.result, state.RUNNING)),
        )
        carry, filled, count = self.call(
            settings, carry, self._buffers(carry), jnp.array(1)
        )
        self._collect(filled, int(count))
        return carry.theta_saved

    def _trajectory(self, theta, carry, result) -> Trajectory:
        return Trajectory.of(
            self.settings.flow.problem,
            theta,
            _stacked(self.rows),
            result,
            self._stats(carry),
            self.config,
        )

    def _stats(self, carry) -> dict[str, float | int]:
        stats: dict[str, Any] = {"steps": 0, "rejected_steps": 0}
        if carry is not None:
            counts = state.solver_counts(self.settings.solver, carry.solver_state)
            stats = {"steps": int(carry.steps), "rejected_steps": int(carry.rejected)}
            stats.update({k: np.asarray(v).item() for k, v in counts.items()})
            stats["neglected"] = float(carry.activity.neglected)
            tried = stats["steps"] + stats["rejected_steps"]
            per_step = state.evaluations_per_step(self.settings.solver)
            if per_step is not None:
                stats["gradient_evaluations"] = tried * per_step
            if "gradient_evaluations" in stats:
                stats["passes"] = float(carry.activity.passes)
        return stats | {
            "wall_seconds": self.wall_seconds,
            "compile_seconds": self.compile_seconds,
        }


def _next_budget(budget: int, elapsed: float, max_seconds: float | None) -> int:
    target = _CHUNK_SECONDS if max_seconds is None else min(_CHUNK_SECONDS, max_seconds)
    factor = np.clip(target / max(elapsed, 1e-4), 0.25, 4.0)
    return int(np.clip(budget * factor, 1, 100_000))


def _stacked(rows) -> dict[str, np.ndarray]:
    if not rows:
        return {"s": np.zeros(0), "log_risk": np.zeros(0)}
    return {k: np.stack([row[k] for row in rows]) for k in rows[0]}
