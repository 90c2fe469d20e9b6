r"""The compiled part of a flow: a chunk of solver steps with saved points in between.

The carry holds everything that a step reads, so that a chunk may end anywhere and the
next one goes on bit-identically, in this process or in another.
"""

from collections.abc import Callable

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from ._clocks import AbstractClock
from ._problem import Problem
from .diagnostics.snapshot import Snapshot, snapshot

# Codes inside the compiled loop; `_results.Result` names them for the user.
RUNNING, REACHED, STATIONARY, STEP_UNDERFLOW, CLOCK_LOST, STEP_LIMIT, CHATTERING = (
    range(7)
)
_STALL_STEPS = 50


class Flow(eqx.Module):
    """What a vector field is evaluated on: the `args` of every solver.

    With `newton` the derivative of the path length is taken as zero. Nothing depends on
    the path length, so Newton iterations converge all the same; near zero weights that
    derivative grows like the inverse square of the norm and they would not.
    """

    problem: Problem
    clock: AbstractClock
    newton: bool = eqx.field(static=True, default=False)


class Settings(eqx.Module):
    """Solver, tolerances and diagnostics of one integration."""

    flow: Flow
    solver: diffrax.AbstractSolver
    controller: diffrax.PIDController
    rtol: Float[Array, ""]
    atol: Float[Array, ""]
    saves: Float[Array, " saves"]
    max_steps: Int[Array, ""]
    patience: Int[Array, ""]
    diagnostics: tuple[Callable[[Snapshot], dict[str, Array]], ...]


class Carry(eqx.Module):
    """The complete state between two steps."""

    y: PyTree
    t: Float[Array, ""]
    t_next: Float[Array, ""]
    s: Float[Array, ""]
    t_prev: Float[Array, ""]
    s_prev: Float[Array, ""]
    s_start: Float[Array, ""]
    solver_state: PyTree
    controller_state: PyTree
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


def vector_field(t, y, flow: Flow):
    r"""$(\theta, (s, u, \zeta))$ along the clock: the parameters and three quadratures.

    $d\theta = vG\,d\sigma$, $ds = v\lVert G\rVert^2 d\sigma$,
    $du = (\lVert G\rVert^{-2} - u)\,ds$ with $u = tL$, and
    $d\zeta = \lVert G_\perp\rVert / (\lVert G\rVert^2\rho)\,ds$, the path length of
    $\theta/\rho$. At a stationary point ($G = 0$) everything stands still.
    """
    del t
    theta, quadratures = y
    log_risk, direction = flow.problem.log_risk_and_direction(theta)
    moving, norm = _safe_norm(direction)
    away, rho = _safe_norm(theta)
    radial = jnp.vdot(theta, direction)
    speed = flow.clock.speed(
        log_risk, norm, jnp.where(away, rho, 0), radial, flow.problem.loss
    )
    speed = jnp.where(moving, speed, 0)
    _, spherical = _safe_norm(direction - (radial / rho**2) * theta)
    ds = speed * norm * norm
    time = (1 / norm) / norm - quadratures[1]
    path = jnp.where(away, speed * spherical / rho, 0)
    if flow.newton:
        path = jax.lax.stop_gradient(path)
    return speed * direction, jnp.stack([ds, jnp.where(moving, time * ds, 0), path])


def _safe_norm(v):
    """Whether `v` is non-zero, and its norm, or 1 if not; differentiable at zero."""
    square = jnp.vdot(v, v)
    # A norm of 1e-160 squares to zero: scale by the largest entry first.
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(v)))
    scale = jnp.where(largest > 0, largest, 1)
    square = jnp.sum((v / scale) ** 2)
    nonzero = largest > 0
    return nonzero, jnp.where(
        nonzero, scale * jnp.sqrt(jnp.where(nonzero, square, 1)), 1
    )


def measured_s(problem: Problem, theta) -> Float[Array, ""]:
    r"""$\ln(n/L)$ at `theta`, by one forward pass."""
    return jnp.log(problem.n).astype(theta.dtype) - problem.log_risk(theta)


def term() -> diffrax.ODETerm:
    """The flow as a Diffrax term; `args` is a `Flow`."""
    return diffrax.ODETerm(vector_field)


def solver_counts(solver, state) -> dict[str, Array]:
    """Work done so far, from a solver of ours, or nothing (then counted per step)."""
    counts = getattr(solver, "counts", None)
    return {} if counts is None else counts(state)


def start(settings: Settings) -> Carry:
    """The carry before the first step, at the problem's initial parameters."""
    problem, solver = settings.flow.problem, settings.solver
    theta = problem.theta
    zero = jnp.zeros((), theta.dtype)
    s = measured_s(problem, theta)
    y = (theta, jnp.zeros((3,), theta.dtype).at[0].set(s))
    dt = _first_step(settings.flow, y)
    solver_state = solver.init(term(), zero, dt, y, settings.flow)
    _, _, dense, _, _ = eqx.filter_eval_shape(
        solver.step, term(), zero, dt, y, settings.flow, solver_state, True
    )
    _, controller_state = settings.controller.init(
        term(), zero, dt, zero, dt, settings.flow, solver.func, _error_order(solver)
    )
    return Carry(
        y=y,
        t=zero,
        t_next=dt,
        s=s,
        t_prev=zero,
        s_prev=s,
        s_start=s,
        solver_state=solver_state,
        controller_state=jax.tree.map(jnp.asarray, controller_state),
        dense=jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), dense),
        saved=jnp.zeros((), int),
        theta_saved=theta,
        stall_s=s,
        stall_theta=theta,
        stall_steps=jnp.zeros((), int),
        window_tries=jnp.zeros((), int),
        window_progress=zero,
        steps=jnp.zeros((), int),
        rejected=jnp.zeros((), int),
        result=jnp.full((), RUNNING, int),
    )


def _first_step(flow: Flow, y):
    """A step that changes theta by 1 % and s by 0.01 at most."""
    theta, _ = y
    rate, quadratures = vector_field(None, y, flow)
    rho, norm = jnp.linalg.norm(theta), jnp.linalg.norm(rate)
    tiny = jnp.finfo(theta.dtype).tiny
    by_theta = jnp.where(rho > 0, rho / jnp.maximum(norm, tiny), jnp.inf)
    by_s = 1 / jnp.maximum(quadratures[0], tiny)
    step = jnp.minimum(by_theta, by_s)
    return 0.01 * jnp.where(jnp.isfinite(step) & (step > 0), step, 1)


def chunk(
    settings: Settings, carry: Carry, buffers: dict[str, Array], budget: Int[Array, ""]
) -> tuple[Carry, dict[str, Array], Int[Array, ""]]:
    """Runs until `budget` steps or saved points, a full buffer, or an end.

    **Returns:** the carry, the buffers and how many of their rows are filled.
    """
    capacity = next(iter(buffers.values())).shape[0]

    def going(state):
        carry, _, rows, spent = state
        # Saved points that the last step passed are taken even if it was the last.
        active = (carry.result == RUNNING) | _pending(settings, carry)
        return active & (spent < budget) & (rows < capacity)

    def body(state):
        carry, buffers, rows, spent = state
        carry, buffers, rows = jax.lax.cond(
            _pending(settings, carry),
            lambda: _save(settings, carry, buffers, rows),
            lambda: (_step(settings, carry), buffers, rows),
        )
        return carry, buffers, rows, spent + 1

    zero = jnp.zeros((), budget.dtype)
    carry, buffers, rows, _ = jax.lax.while_loop(
        going, body, (carry, buffers, zero, zero)
    )
    return carry, buffers, rows


def _pending(settings, carry):
    left = carry.saved < settings.saves.shape[0]
    return left & (_next_save(settings, carry) <= carry.s)


def _next_save(settings, carry):
    return settings.saves[jnp.minimum(carry.saved, settings.saves.shape[0] - 1)]


def _save(settings, carry, buffers, rows):
    problem = settings.flow.problem
    interpolant = settings.solver.interpolation_cls(
        t0=carry.t_prev, t1=carry.t, **carry.dense
    )
    target = _next_save(settings, carry)
    inside = (target > carry.s_prev) & (carry.t > carry.t_prev)

    def found():
        t = _root(
            lambda t: measured_s(problem, interpolant.evaluate(t)[0]) - target,
            (carry.t_prev, carry.s_prev - target),
            (carry.t, carry.s - target),
            _s_tolerance(carry.s),
        )
        return interpolant.evaluate(t)

    y = jax.lax.cond(inside, found, lambda: carry.y)
    row = diagnose(settings, y)
    buffers = {k: v.at[rows].set(row[k]) for k, v in buffers.items()}
    saved = carry.saved + 1
    carry = eqx.tree_at(
        lambda c: (c.saved, c.theta_saved, c.result),
        carry,
        (
            saved,
            y[0],
            jnp.where(saved == settings.saves.shape[0], REACHED, carry.result),
        ),
    )
    return carry, buffers, rows + 1


def _s_tolerance(s):
    eps = jnp.finfo(s.dtype).eps
    return jnp.maximum(1e-10, 16 * eps).astype(s.dtype) * (1 + jnp.abs(s))


def _root(function, low, high, tolerance):
    """A sign change of `function` between two points by the Illinois method."""

    def going(state):
        _, _, best, count = state
        return (jnp.abs(best[1]) > tolerance) & (count < 60)

    def body(state):
        (a, fa), (b, fb), _, count = state
        secant = b - fb * (b - a) / jnp.where(fb == fa, 1, fb - fa)
        # Every fifth point bisects, so that a flat end cannot stall the search.
        x = jnp.where((count % 5 == 4) | ~jnp.isfinite(secant), (a + b) / 2, secant)
        fx = function(x)
        right = fx > 0
        # The retained end's value is halved when it is retained (Illinois).
        new_low = jax.tree.map(
            lambda p, q: jnp.where(right, p, q), (a, fa / 2), (x, fx)
        )
        new_high = jax.tree.map(
            lambda p, q: jnp.where(right, p, q), (x, fx), (b, fb / 2)
        )
        return new_low, new_high, (x, fx), count + 1

    best = high
    *_, best, _ = jax.lax.while_loop(going, body, (low, high, best, jnp.array(0)))
    return best[0]


def diagnose(settings: Settings, y) -> dict[str, Array]:
    """One row of results: always `s` and `log_risk`, then the diagnostics."""
    problem = settings.flow.problem
    if not settings.diagnostics:
        log_risk = problem.log_risk(y[0])
        return {
            "s": jnp.log(problem.n).astype(log_risk.dtype) - log_risk,
            "log_risk": log_risk,
        }
    snap = snapshot(problem, *y)
    row = {"s": snap.s, "log_risk": snap.log_risk}
    for diagnostic in settings.diagnostics:
        row.update(diagnostic(snap))
    return row


def _step(settings: Settings, carry: Carry) -> Carry:
    solver, flow = settings.solver, settings.flow
    y1, error, dense, solver_state, outcome = solver.step(
        term(), carry.t, carry.t_next, carry.y, flow, carry.solver_state, False
    )
    s1 = measured_s(flow.problem, y1[0])
    usable = (outcome == diffrax.RESULTS.successful) & jnp.isfinite(s1)
    kept, t, t_next, _, controller_state, _ = settings.controller.adapt_step_size(
        carry.t,
        carry.t_next,
        jnp.zeros_like(s1),
        jnp.zeros_like(s1),
        flow,
        _scaled_error(settings, carry, y1, s1, error, usable),
        _error_order(solver),
        carry.controller_state,
    )
    keep = jnp.asarray(kept)

    def pick(new, old):
        return jax.tree.map(lambda a, b: jnp.where(keep, a, b), new, old)

    new = Carry(
        y=pick(y1, carry.y),
        t=jnp.asarray(t),
        t_next=jnp.asarray(t_next),
        s=pick(s1, carry.s),
        t_prev=pick(carry.t, carry.t_prev),
        s_prev=pick(carry.s, carry.s_prev),
        s_start=carry.s_start,
        solver_state=pick(solver_state, _after_rejection(carry, solver, solver_state)),
        controller_state=controller_state,
        dense=pick(dense, carry.dense),
        saved=carry.saved,
        theta_saved=carry.theta_saved,
        stall_s=carry.stall_s,
        stall_theta=carry.stall_theta,
        stall_steps=carry.stall_steps,
        window_tries=carry.window_tries,
        window_progress=carry.window_progress,
        steps=carry.steps + keep.astype(int),
        rejected=carry.rejected + (~keep).astype(int),
        result=carry.result,
    )
    progress = jnp.where(keep, _progress(carry, y1[0], s1), 0)
    return _verdict(settings, _watch_pace(settings, _watch_stall(new, keep), progress))


def _error_order(solver) -> float | int:
    order = solver.error_order(term())
    if order is None:
        raise ValueError(
            f"`solver={type(solver).__name__}()` does not state its order."
        )
    return order


def _after_rejection(carry, solver, new_state):
    """The solver's state to try again with; ours keep what the failed step taught."""
    rejected = getattr(solver, "rejected", None)
    before = carry.solver_state
    return before if rejected is None else rejected(before, new_state)


def _scaled_error(settings, carry, y1, s1, error, usable) -> Float[Array, ""]:
    r"""Error of a step relative to the tolerance; at most 1 where it is acceptable.

    The larger of two: the solver's estimate over the parameters as a whole, and the
    error of the clock, which is measured rather than estimated: by how much the change
    of $\ln(n/L)$ and the integrated one differ. It is an error of the margins that
    carry weight, and may be `3 * rtol` times the larger of 1 and the step in $s$.
    """
    theta0, theta1 = carry.y[0], y1[0]
    size = jnp.maximum(jnp.linalg.norm(theta0), jnp.linalg.norm(theta1))
    tolerance = settings.atol + settings.rtol * size
    tiny = jnp.finfo(size.dtype).tiny
    scaled = jnp.linalg.norm(error[0]) / jnp.maximum(tolerance, tiny)
    ds = y1[1][0] - carry.y[1][0]
    drift = jnp.abs((s1 - carry.s) - ds)
    rounding = 16 * jnp.finfo(size.dtype).eps * jnp.abs(s1)
    scaled = jnp.maximum(
        scaled, drift / (3 * settings.rtol * jnp.maximum(1, jnp.abs(ds)) + rounding)
    )
    return jnp.where(usable & jnp.isfinite(scaled), scaled, jnp.inf)


def _watch_stall(carry: Carry, keep: Bool[Array, ""]) -> Carry:
    """Counts accepted steps since the risk fell or the parameters moved."""
    eps = jnp.finfo(carry.s.dtype).eps
    tolerance = jnp.maximum(1e-8, 64 * eps).astype(carry.s.dtype)
    gained = carry.s > carry.stall_s + tolerance * (1 + jnp.abs(carry.stall_s))
    moved = jnp.linalg.norm(carry.y[0] - carry.stall_theta) > 1e-3 * jnp.linalg.norm(
        carry.y[0]
    )
    progress = keep & (gained | moved)
    return eqx.tree_at(
        lambda c: (c.stall_s, c.stall_theta, c.stall_steps),
        carry,
        (
            jnp.where(progress, carry.s, carry.stall_s),
            jnp.where(progress, carry.y[0], carry.stall_theta),
            jnp.where(progress, 0, carry.stall_steps + keep.astype(int)),
        ),
    )


def _progress(carry: Carry, theta1, s1) -> Float[Array, ""]:
    """How far a step came: in s, plus relative arc length; for every clock alike."""
    rho = jnp.linalg.norm(theta1)
    moved = jnp.linalg.norm(theta1 - carry.y[0]) / jnp.where(rho > 0, rho, 1)
    return jnp.abs(s1 - carry.s) + moved


def _watch_pace(settings: Settings, carry: Carry, progress) -> Carry:
    """Ends a flow whose steps stay far below what its tolerance asks for.

    A method whose error is of order p takes steps of about `rtol ** (1 / (p + 1))` on a
    smooth flow. `patience` tried steps in a row with a mean of under a hundredth of
    that are spent on kinks (or, by an explicit method, on stability); where the risk
    does not fall either, on a stationary point.
    """
    tries, total = carry.window_tries + 1, carry.window_progress + progress
    full = tries >= settings.patience
    usual = settings.rtol ** (1 / (_error_order(settings.solver) + 1))
    slow = full & (total < 0.01 * usual * tries.astype(total.dtype))
    return eqx.tree_at(
        lambda c: (c.window_tries, c.window_progress, c.result),
        carry,
        (
            jnp.where(full, 0, tries),
            jnp.where(full, 0, total),
            jnp.where(
                slow,
                jnp.where(carry.stall_steps >= 5, STATIONARY, CHATTERING),
                carry.result,
            ),
        ),
    )


def _verdict(settings: Settings, carry: Carry) -> Carry:
    step = carry.t_next - carry.t
    eps = jnp.finfo(step.dtype).eps
    drift = jnp.abs(carry.s - carry.y[1][0])
    underflow = ~(step > 16 * eps * jnp.abs(carry.t)) | ~jnp.isfinite(step)
    verdicts = [
        (carry.steps + carry.rejected >= settings.max_steps, STEP_LIMIT),
        (carry.stall_steps >= _STALL_STEPS, STATIONARY),
        (underflow, STEP_UNDERFLOW),
        (drift > 1 + 0.1 * (carry.s - carry.s_start), CLOCK_LOST),
    ]
    result = carry.result
    for happened, code in verdicts:
        result = jnp.where(happened, code, result)
    return eqx.tree_at(lambda c: c.result, carry, result)
