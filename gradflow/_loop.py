r"""The compiled part of a flow: a chunk of solver steps with saved points in between.

The carry holds everything that a step reads, so that a chunk may end anywhere and the
next one goes on bit-identically, in this process or in another.
"""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ._active import Activity, fits, on_active
from ._flow import QUADRATURES, Flow, term, vector_field
from ._quadratures import with_quadratures
from ._saving import no_rows, pending, save
from ._state import (
    RUNNING,
    Carry,
    Settings,
    evaluations_per_step,
    work,
)
from ._verdict import judged


def start(settings: Settings) -> Carry:
    """The carry before the first step, at the problem's initial parameters."""
    problem, solver = settings.flow.problem, settings.solver
    theta = problem.theta
    zero = jnp.zeros((), theta.dtype)
    s, shares = _measured(settings, theta)
    y = (theta, jnp.zeros((QUADRATURES,), theta.dtype).at[0].set(s))
    dt = _first_step(settings.flow, y)
    solver_state = solver.init(term(), zero, dt, y, settings.flow)
    _, _, dense, _, _ = eqx.filter_eval_shape(
        solver.step, term(), zero, dt, y, settings.flow, solver_state, True
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
        step_sizes=settings.step_sizes.start(dt),
        activity=Activity.start(problem, shares, work(solver, solver_state)),
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


def _measured(settings, theta):
    r"""$\ln(n/L)$ and, where examples may be left out, the log of each one's share of
    $L$, by one forward pass."""
    problem = settings.flow.problem
    p = problem.soft_margins(theta)
    log_risk = problem.loss.log_total(p)
    shares = problem.loss.log_loss(p) - log_risk if settings.neglect else None
    return problem.log_risk_time(log_risk), shares


def _first_step(flow: Flow, y):
    """A step that changes theta by 1 % and s by 0.01 at most."""
    theta, _ = y
    rate, quadratures = vector_field(jnp.zeros((), y[0].dtype), y, flow)
    rho, norm = jnp.linalg.norm(theta), jnp.linalg.norm(rate)
    tiny = jnp.finfo(theta.dtype).tiny
    by_theta = jnp.where(rho > 0, rho / jnp.maximum(norm, tiny), jnp.inf)
    by_s = 1 / jnp.maximum(quadratures[0], tiny)
    step = jnp.minimum(by_theta, by_s)
    return 0.01 * jnp.where(jnp.isfinite(step) & (step > 0), step, 1)


def chunk(
    settings: Settings, carry: Carry, budget: Int[Array, ""]
) -> tuple[Carry, dict[str, Array], Int[Array, ""], Int[Array, ""]]:
    """Runs until `budget` steps or saved points, full buffers, an end, or until steps
    should take another number of examples.

    **Returns:** the carry, buffers of saved points, how many of their rows are filled,
    and how much of the budget was spent.
    """
    buffers = no_rows(settings, carry)
    capacity = next(iter(buffers.values())).shape[0]
    problem = settings.flow.problem

    def due(carry):
        return pending(settings.saves, carry.saved, carry.s)

    def stepping(state):
        carry, spent = state
        running = carry.result == RUNNING
        running = running & fits(problem, carry.activity, settings.capacity)
        return running & ~due(carry) & (spent < budget)

    def stepped(state):
        carry, spent = state
        return _step(settings, carry), spent + 1

    # Saved points that the last step passed are taken even if it was the last. Steps
    # have a loop of their own: a choice between the two would copy the carry each time.
    def going(state):
        carry, _, rows, spent = state
        saving = due(carry) & (rows < capacity)
        return (saving | stepping((carry, spent))) & (spent < budget)

    def body(state):
        carry, buffers, rows, spent = state
        saving = due(carry)
        carry, buffers, rows = jax.lax.cond(
            saving,
            lambda: save(settings, carry, buffers, rows),
            lambda: (carry, buffers, rows),
        )
        spent = spent + saving.astype(spent.dtype)
        carry, spent = jax.lax.while_loop(stepping, stepped, (carry, spent))
        return carry, buffers, rows, spent

    zero = jnp.zeros((), budget.dtype)
    return jax.lax.while_loop(going, body, (carry, buffers, zero, zero))


def _with_clock(y, s):
    """Sets the integrated clock to the measured one, `s`, and adds up by how much.

    No clock's speed depends on where it stands, so that the curve stays what it is.
    """
    theta, quadratures = y
    return theta, quadratures.at[3].add(s - quadratures[0]).at[0].set(s)


def _step(settings: Settings, carry: Carry) -> Carry:
    solver = settings.solver
    flow = on_active(settings.flow, carry.activity, settings.capacity)
    y1, error, dense, solver_state, outcome = solver.step(
        term(), carry.t, carry.t_next, carry.y, flow, carry.solver_state, False
    )
    s1, shares = _measured(settings, flow.theta(carry.t_next, y1[0]))
    left_out = carry.activity.left_out(shares, settings.capacity)
    usable = (outcome == diffrax.RESULTS.successful) & jnp.isfinite(s1)
    usable = usable & (left_out <= settings.neglect)
    scaled_error = _scaled_error(settings, carry, y1, s1, error, usable)
    keep, t, t_next, step_sizes = settings.step_sizes.after(
        carry.t, carry.t_next, scaled_error, carry.step_sizes
    )
    activity = carry.activity.after(
        shares,
        left_out,
        keep,
        growth=(t_next - t) / (carry.t_next - carry.t),
        neglect=settings.neglect,
        work=evaluations_per_step(solver)
        or work(solver, solver_state) - work(solver, carry.solver_state),
    )

    def pick(new, old):
        return jax.tree.map(lambda a, b: jnp.where(keep, a, b), new, old)

    interpolant = solver.interpolation_cls(t0=carry.t, t1=carry.t_next, **dense)
    y1 = with_quadratures(y1, interpolant, carry.t, carry.t_next)
    state_again = _after_rejection(carry, solver, solver_state, scaled_error)
    new = Carry(
        y=pick(_with_clock(y1, s1), carry.y),
        t=t,
        t_next=t_next,
        s=pick(s1, carry.s),
        t_prev=pick(carry.t, carry.t_prev),
        s_prev=pick(carry.s, carry.s_prev),
        s_start=carry.s_start,
        solver_state=pick(solver_state, state_again),
        step_sizes=step_sizes,
        activity=activity,
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
    return judged(settings, carry, new, keep)


def _after_rejection(carry, solver, new_state, error):
    """The solver's state to try again with; ours keep what the failed step taught."""
    rejected = getattr(solver, "rejected", None)
    before = carry.solver_state
    return before if rejected is None else rejected(before, new_state, error)


def _scaled_error(settings, carry, y1, s1, error, usable) -> Float[Array, ""]:
    r"""Error of a step relative to the tolerance; at most 1 where it is acceptable.

    The largest of three: the solver's estimate over the parameters as a whole; the
    error of the clock, which is measured rather than estimated: by how much the change
    of $\ln(n/L)$ and the integrated one differ, an error of the margins that carry
    weight, which may be `3 * rtol` times the larger of 1 and the geometric mean of $s$
    and the step in $s$; and the solver's estimate for $\ln t$, which may be `30 * rtol`
    times the larger of 1 and that step.

    That mean lies between what would bound all corrections together by `3 * rtol * s`
    (the step) and what the first criterion means for margins ($s$). By the step alone,
    late steps had a fiftieth of the error allowed in the parameters.
    """
    theta0, theta1, theta_error = (
        settings.flow.theta(carry.t_next, v) for v in (carry.y[0], y1[0], error[0])
    )
    size = jnp.maximum(jnp.linalg.norm(theta0), jnp.linalg.norm(theta1))
    tolerance = settings.atol + settings.rtol * size
    tiny = jnp.finfo(size.dtype).tiny
    scaled = jnp.linalg.norm(theta_error) / jnp.maximum(tolerance, tiny)
    ds = y1[1][0] - carry.y[1][0]
    length = jnp.maximum(1, jnp.abs(ds))
    reach = jnp.maximum(1, jnp.sqrt(jnp.abs(ds)) * jnp.sqrt(jnp.abs(s1)))
    drift = jnp.abs((s1 - carry.s) - ds)
    # Of a forward pass; in float64 far below any tolerance.
    rounding = 64 * settings.flow.problem.clock_rounding(s1)
    # Relative to what is left of tL and to the mean 1/|G|^2, to which it tends; a long
    # step's end knows of the last unit of s only.
    change = y1[1][1] - carry.y[1][1]
    time = jnp.abs(carry.y[1][1]) * jnp.exp(-jnp.abs(ds))
    time = time + jnp.abs(change) / jnp.maximum(jnp.abs(ds), tiny)
    off = jnp.abs(error[1][1]) / (length * jnp.maximum(time, tiny))
    for found in (
        drift / (3 * settings.rtol * reach + rounding),
        off / ((30 * settings.rtol + rounding) * length),
    ):
        scaled = jnp.maximum(scaled, found)
    return jnp.where(usable & jnp.isfinite(scaled), scaled, jnp.inf)
