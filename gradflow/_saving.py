"""Saved points: where the measured log-risk time is the one asked for."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from ._flow import measured_s
from ._quadratures import with_quadratures
from ._state import REACHED, Carry, Settings, solver_counts
from .diagnostics.snapshot import snapshot

_ROWS = 64  # As many saved points a chunk takes at most.


def pending(saves, saved, s):
    """Whether a flow that is at `s` and has saved so many points passed more of them.

    Of NumPy's arrays as of JAX's.
    """
    return (saved < saves.shape[0]) & (_next_save(saves, saved) <= s)


def _next_save(saves, saved):
    return saves[saved.clip(max=saves.shape[0] - 1)]


def save(settings, carry, buffers, rows):
    """Writes the next saved point of the last step into a row of the buffers."""
    problem = settings.flow.problem
    interpolant = settings.solver.interpolation_cls(
        t0=carry.t_prev, t1=carry.t, **carry.dense
    )
    target = _next_save(settings.saves, carry.saved)
    inside = (target > carry.s_prev) & (carry.t > carry.t_prev)

    def theta(t):
        return settings.flow.theta(t, interpolant.evaluate(t)[0])

    def found():
        t = root(
            lambda t: measured_s(problem, theta(t)) - target,
            (carry.t_prev, carry.s_prev - target),
            (carry.t, carry.s - target),
            _s_tolerance(problem, carry.s),
        )
        y = with_quadratures(interpolant.evaluate(t), interpolant, carry.t_prev, t)
        return theta(t), y[1]

    y = jax.lax.cond(inside, found, lambda: (carry.theta(settings), carry.y[1]))
    row = saved_row(settings, carry, *y)
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


def _s_tolerance(problem, s):
    least = max(1e-10, 16 * problem.rounding) * (1 + jnp.abs(s))
    return jnp.maximum(least, 16 * problem.clock_rounding(s))


def root(function, low, high, tolerance):
    """A sign change of `function` between two points by the Illinois method."""

    def going(state):
        _, _, best, _, count = state
        return (jnp.abs(best[1]) > tolerance) & (count < 60)

    def body(state):
        (a, fa), (b, fb), _, before, count = state
        secant = b - fb * (b - a) / jnp.where(fb == fa, 1, fb - fa)
        # Every fifth point bisects, so that a flat end cannot stall the search.
        x = jnp.where((count % 5 == 4) | ~jnp.isfinite(secant), (a + b) / 2, secant)
        fx = function(x)
        side = jnp.where(fx > 0, 1, -1)
        # An end that is retained for the second time in a row has its value halved.
        again = jnp.where(side == before, 0.5, 1.0).astype(fx.dtype)
        new_low = jax.tree.map(
            lambda p, q: jnp.where(side > 0, p, q), (a, fa * again), (x, fx)
        )
        new_high = jax.tree.map(
            lambda p, q: jnp.where(side > 0, p, q), (x, fx), (b, fb * again)
        )
        return new_low, new_high, (x, fx), side, count + 1

    zero = jnp.array(0)
    *_, best, _, _ = jax.lax.while_loop(going, body, (low, high, high, zero, zero))
    return best[0]


def saved_row(settings: Settings, carry: Carry, theta, quadratures) -> dict[str, Array]:
    """One row of results: `s`, `log_risk` and the work so far, then the diagnostics."""
    problem = settings.flow.problem
    work = {
        "steps": carry.steps,
        "rejected_steps": carry.rejected,
        "active_examples": carry.activity.capacity,
        **solver_counts(settings.solver, carry.solver_state),
    }
    if "gradient_evaluations" in work:
        work["passes"] = carry.activity.passes
    if not settings.diagnostics:
        log_risk = problem.log_risk(theta)
        return {"s": problem.log_risk_time(log_risk), "log_risk": log_risk} | work
    snap = snapshot(problem, theta, quadratures)
    row = {"s": snap.s, "log_risk": snap.log_risk} | work
    reserved = set(row)
    for diagnostic in settings.diagnostics:
        found = diagnostic(snap)
        if not isinstance(found, dict):
            raise ValueError(
                f"The diagnostic {diagnostic!r} returned a {type(found).__name__}: "
                "expected a dict of arrays by name."
            )
        if taken := sorted(reserved & set(found)):
            raise ValueError(
                f"The diagnostic {diagnostic!r} returned {taken}, which every saved "
                "point has: choose other names."
            )
        row.update(found)
    return row


def no_rows(settings: Settings, carry: Carry) -> dict[str, Array]:
    """Buffers for some of the saved points, one row for each."""

    def row():
        return saved_row(settings, carry, carry.theta(settings), carry.y[1])

    rows = min(_ROWS, settings.saves.shape[0])
    return {
        name: jnp.zeros((rows, *value.shape), value.dtype)
        for name, value in jax.eval_shape(row).items()
    }
