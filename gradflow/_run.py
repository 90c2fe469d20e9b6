"""The host's side of one integration: compiled chunks, results, files, interrupts."""

import contextlib
import dataclasses
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from . import _loop as loop, _saving as saving, _state as state
from ._active import fitting
from ._compile import Interrupt, Interrupted, compiled, wait
from ._points import Points
from ._progress import Progress
from ._results import Result
from ._trajectory import Trajectory
from ._verdict import seen_from_the_gradient

_CODES = {
    state.REACHED: Result.reached,
    state.STATIONARY: Result.stationary,
    state.STEP_UNDERFLOW: Result.step_underflow,
    state.CLOCK_LOST: Result.clock_lost,
    state.STEP_LIMIT: Result.step_limit,
    state.CHATTERING: Result.chattering,
}
_CHUNK_SECONDS = 0.5
# Steps of the first chunk where steps are sure to be short: by examples times
# parameters times parameters or features, and by the seconds of what comes before the
# first step. A call of a chunk costs as much as a few of them.
_SMALL_FLOW, _SOON, _FIRST_STEPS = 5e6, 5e-3, 100


@contextlib.contextmanager
def listening():
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


class Run:
    """The host's side of one integration: chunks, rows, progress, files."""

    def __init__(self, settings, config, store, interrupt, progress, max_seconds):
        self.settings, self.config, self.store = settings, config, store
        self.interrupt, self.max_seconds = interrupt, max_seconds
        self.progress = Progress(progress, settings)
        self.points = Points()
        self.call: Callable | None = None
        self.compile_seconds = 0.0
        self.wall_seconds = 0.0

    def go(self) -> Trajectory:
        """Runs to the end, from the start or from the folder's checkpoint."""
        if self.store is not None and self.store.resumable:
            carry, budget = eqx.filter_eval_shape(loop.start, self.settings), 1
            carry, self.wall_seconds = self.store.resume(carry, self.points)
        else:
            carry, budget = self._start()
        result = Result.interrupted
        if carry is not None:
            carry = self._within_steps(self._with_capacity(carry))
            carry, result = self._chunks(carry, budget)
        self.progress.close()
        return self._finished(carry, result)

    def _within_steps(self, carry):
        """Ends a flow that has no step left, which the loop sees after a step only."""
        if int(carry.steps) + int(carry.rejected) < int(self.settings.max_steps):
            return carry
        ended = jnp.full_like(carry.result, state.STEP_LIMIT)
        return eqx.tree_at(lambda c: c.result, carry, ended)

    def _start(self):
        """The first carry, or none if interrupted, and how many steps to take first:
        one, from which the seconds of more are known, unless they are sure to be few.
        """
        start = self._compiled(loop.start, self.settings, once=True)
        if start is None:
            return None, 0
        problem = self.settings.flow.problem
        width = max(problem.k, problem.x.size // problem.n)
        small = problem.n * problem.k * width <= _SMALL_FLOW
        tick = time.perf_counter()
        try:
            carry = wait(start(self.settings), self.interrupt, 0.0 if small else np.inf)
        except Interrupted:
            return None, 0
        soon = time.perf_counter() - tick < _SOON
        return carry, _FIRST_STEPS if small and soon else 1

    def _compiled(self, function, *args, once=False):
        try:
            call, seconds = compiled(
                function, *args, interrupt=self.interrupt, once=once
            )
        except Interrupted:
            return None
        self.compile_seconds += seconds
        return call

    def _chunks(self, carry, budget):
        # A first chunk of more than one step is sure to be short.
        expected = _SOON if budget > 1 else np.inf
        began, compiled_for = time.perf_counter(), None
        while True:
            if compiled_for != self.settings.capacity:
                expected = expected if compiled_for is None else np.inf
                compiled_for = self.settings.capacity
                self.call = self._compiled(
                    loop.chunk, self.settings, carry, jnp.array(0)
                )
            if self.call is None:
                return carry, Result.interrupted
            if self._ended(carry):
                return carry, self._named(carry)
            if self.interrupt.requested:
                return carry, Result.interrupted
            if self.max_seconds is not None and self.wall_seconds > self.max_seconds:
                return carry, Result.time_limit
            tick = time.perf_counter()
            try:
                new, filled, count, spent = wait(
                    self.call(self.settings, carry, jnp.array(budget)),
                    self.interrupt,
                    expected,
                )
            except Interrupted:
                return carry, Result.interrupted
            elapsed = time.perf_counter() - tick
            self.wall_seconds += elapsed
            self.points.collect(filled, int(count))
            carry = self._with_capacity(new)
            spent = max(int(spent), 1)
            budget = _next_budget(spent, elapsed, self.max_seconds)
            expected = budget * elapsed / spent
            self.progress.update(carry, self.points, time.perf_counter() - began)
            self._checkpoint(carry)

    def _ended(self, carry) -> bool:
        if int(carry.result) == state.RUNNING:
            return False
        # On the host, which compiles nothing.
        at = (self.settings.saves, carry.saved, carry.s)
        return not saving.pending(*map(np.asarray, at))

    def _with_capacity(self, carry):
        """Has steps take as many examples as are needed."""
        activity, problem = carry.activity, self.settings.flow.problem
        now = int(activity.capacity)
        capacity = fitting(problem, int(activity.needed), now)
        if capacity == now == self.settings.capacity:
            return carry
        self.settings = dataclasses.replace(self.settings, capacity=capacity)
        return eqx.tree_at(
            lambda c: c.activity.capacity,
            carry,
            jnp.full_like(activity.capacity, capacity),
        )

    def _named(self, carry) -> Result:
        result = _CODES[int(carry.result)]
        if result not in (Result.step_underflow, Result.stationary, Result.chattering):
            return result
        problem, theta = self.settings.flow.problem, carry.theta(self.settings)
        return seen_from_the_gradient(problem, theta, result)

    def _checkpoint(self, carry, force=False):
        if self.store is None or carry is None:
            return
        self.store.checkpoint(
            carry,
            lambda: self._trajectory(carry.theta_saved, carry, Result.interrupted),
            points=len(self.points),
            force=force,
        )

    def _finished(self, carry, result) -> Trajectory:
        self._checkpoint(carry, force=True)
        if carry is None:
            return self._trajectory(self.settings.flow.problem.theta, carry, result)
        theta = carry.theta_saved
        if result is not Result.reached and self._moved(carry):
            theta = self._save_here(carry)
        trajectory = self._trajectory(theta, carry, result)
        if self.store is not None:
            self.store.save(trajectory)
        return trajectory

    def _moved(self, carry) -> bool:
        """Whether the last step ended beyond the last saved point, which on a plateau
        has the same s."""
        last = self.points.last()
        return not last or bool(carry.s > last["s"] or carry.steps > last["steps"])

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
        carry, filled, count, _ = self.call(settings, carry, jnp.array(1))
        self.points.collect(filled, int(count))
        return carry.theta_saved

    def _trajectory(self, theta, carry, result) -> Trajectory:
        return Trajectory.of(
            self.settings.flow.problem,
            theta,
            self.points.joined(),
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


def _next_budget(spent: int, elapsed: float, max_seconds: float | None) -> int:
    target = _CHUNK_SECONDS if max_seconds is None else min(_CHUNK_SECONDS, max_seconds)
    # Few steps tell little about many.
    most = min(64 * spent, 100_000)
    return int(np.clip(spent * target / max(elapsed, 1e-4), 1, most))
