"""What the step loop reads and carries."""

from collections.abc import Callable

import diffrax
import equinox as eqx
from jaxtyping import Array, Float, Int, PyTree

from ._active import Activity
from ._flow import Flow
from ._step_sizes import StepSizes
from .diagnostics.snapshot import Snapshot

# Codes inside the compiled loop; `_results.Result` names them for the user.
RUNNING, REACHED, STATIONARY, STEP_UNDERFLOW, CLOCK_LOST, STEP_LIMIT, CHATTERING = (
    range(7)
)


class Settings(eqx.Module):
    """Solver, tolerances and diagnostics of one integration."""

    flow: Flow
    solver: diffrax.AbstractSolver
    step_sizes: StepSizes
    rtol: Float[Array, ""]
    atol: Float[Array, ""]
    saves: Float[Array, " saves"]
    max_steps: Int[Array, ""]
    patience: Int[Array, ""]
    neglect: float = eqx.field(static=True)
    capacity: int = eqx.field(static=True)
    diagnostics: tuple[Callable[[Snapshot], dict[str, Array]], ...]


class Carry(eqx.Module):
    """The complete state between two steps. `y`: the solver's, see `vector_field`."""

    y: PyTree
    t: Float[Array, ""]
    t_next: Float[Array, ""]
    s: Float[Array, ""]
    t_prev: Float[Array, ""]
    s_prev: Float[Array, ""]
    s_start: Float[Array, ""]
    solver_state: PyTree
    step_sizes: PyTree
    activity: Activity
    dense: PyTree
    saved: Int[Array, ""]
    theta_saved: Float[Array, " k"]
    stall_s: Float[Array, ""]
    stall_theta: Float[Array, " k"]
    stall_steps: Int[Array, ""]
    window_tries: Int[Array, ""]
    window_progress: Float[Array, ""]
    steps: Int[Array, ""]
    rejected: Int[Array, ""]
    result: Int[Array, ""]

    def theta(self, settings: Settings) -> Float[Array, " k"]:
        """The parameters at the end of the last step."""
        return settings.flow.theta(self.t, self.y[0])


def solver_counts(solver, state) -> dict[str, Array]:
    """Work done so far, from a solver of ours, or nothing (then counted per step)."""
    # Of its class: Equinox takes as long to bind a method as a small flow to step.
    counts = getattr(type(solver), "counts", None)
    return {} if counts is None else counts(solver, state)


def evaluations_per_step(solver) -> int | None:
    """Of an explicit Runge-Kutta method, all of whose stages are evaluations."""
    tableau = getattr(solver, "tableau", None)
    if not isinstance(solver, diffrax.AbstractERK) or tableau is None:
        return None
    return tableau.num_stages - int(tableau.fsal)


def work(solver, state) -> Array | int:
    """Gradient evaluations that a solver counted, Jacobian products as two."""
    counts = solver_counts(solver, state)
    evaluations = counts.get("gradient_evaluations", 0)
    return evaluations + 2 * counts.get("jacobian_products", 0)
