"""When a flow ends before it gets where it was asked to go."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ._compile import jitted
from ._problem import Problem
from ._results import Result
from ._state import (
    CHATTERING,
    CLOCK_LOST,
    STATIONARY,
    STEP_LIMIT,
    STEP_UNDERFLOW,
    Carry,
    Settings,
)

_STALL_STEPS = 50
# Of ln L, from where a flow stalled: a stationary point is below it.
_FALLING = 0.01
# By what it would fall to first order over a distance of theta's own size: less is a
# small gradient, which one beside kinks is not.
_SMALL = 0.1
_LENGTHS = 50  # Tried on that line, each half as far as the one before.


def judged(settings: Settings, before: Carry, after: Carry, keep) -> Carry:
    """The carry after a tried step, with a result if the flow should end here.

    `keep`: whether the step from `before` was accepted.
    """
    theta = after.theta(settings)
    moved = theta - before.theta(settings)
    progress = jnp.where(keep, _progress(moved, theta, after.s - before.s), 0)
    after = _watch_stall(settings, after, theta, keep)
    return _verdict(settings, _watch_pace(settings, after, progress))


def seen_from_the_gradient(
    problem: Problem, theta: Float[Array, " k"], result: Result
) -> Result:
    """The result of a flow whose steps came to nothing, by what the gradient says.

    A point is stationary if ln L does not fall along a line from there; after an
    underflow or chattering, which kinks cause too, only if its gradient is small
    besides. (So it is where every example is either fitted far beyond rounding or lost:
    with all its neurons off one keeps the margin zero, and the risk stays above its
    loss. The others' margins may grow until the square of the gradient underflows.)
    """
    s, change, fall = _from(problem, theta)
    if fall > _FALLING + 64 * problem.clock_rounding(s):
        return Result.chattering if result is Result.stationary else result
    return Result.stationary if change < _SMALL else result


@jitted
def _from(problem, theta):
    """ln(n/L); its change over a distance of theta's own size (1 where that is less),
    to first order; and by how much it grows at most along its gradient within that."""
    log_risk, direction = problem.log_risk_and_direction(theta)
    slope = jnp.linalg.norm(direction)
    size = jnp.maximum(jnp.linalg.norm(theta), 1)
    line = size * direction / jnp.where(slope > 0, slope, 1)
    lengths = 0.5 ** jnp.arange(_LENGTHS, dtype=theta.dtype)
    there = jax.lax.map(lambda a: problem.log_risk(theta + a * line), lengths)
    s = problem.log_risk_time(log_risk)
    return s, slope * size, log_risk - jnp.nanmin(there)


def _watch_stall(
    settings: Settings, carry: Carry, theta: Float[Array, " k"], keep: Bool[Array, ""]
) -> Carry:
    """Counts accepted steps since the risk fell or the parameters moved.

    Motion counts relative to the larger of the present and the first norm: a flow that
    dies at zero weights goes on shrinking them by factors.
    """
    problem, last = settings.flow.problem, carry.stall_s
    least = max(1e-8, 64 * problem.rounding) * (1 + jnp.abs(last))
    gained = carry.s > last + jnp.maximum(least, 64 * problem.clock_rounding(last))
    first = problem.theta
    size = jnp.maximum(jnp.linalg.norm(theta), jnp.linalg.norm(first))
    moved = jnp.linalg.norm(theta - carry.stall_theta) > 1e-3 * size
    progress = keep & (gained | moved)
    return eqx.tree_at(
        lambda c: (c.stall_s, c.stall_theta, c.stall_steps),
        carry,
        (
            jnp.where(progress, carry.s, carry.stall_s),
            jnp.where(progress, theta, carry.stall_theta),
            jnp.where(progress, 0, carry.stall_steps + keep.astype(int)),
        ),
    )


def _progress(moved, theta, ds) -> Float[Array, ""]:
    """How far a step came: in s, plus relative arc length; for every clock alike."""
    rho = jnp.linalg.norm(theta)
    return jnp.abs(ds) + jnp.linalg.norm(moved) / jnp.where(rho > 0, rho, 1)


def _watch_pace(settings: Settings, carry: Carry, progress) -> Carry:
    """Ends a flow whose steps stay far below what its tolerance asks for.

    A method whose error is of order p takes steps of about `rtol ** (1 / (p + 1))` on a
    smooth flow. `patience` tried steps in a row with a mean of under a hundredth of
    that are spent on kinks (or, by an explicit method, on stability), or where the
    gradient is small on a stationary point.
    """
    tries, total = carry.window_tries + 1, carry.window_progress + progress
    full = tries >= settings.patience
    usual = settings.rtol ** (1 / (settings.step_sizes.order + 1))
    slow = full & (total < 0.01 * usual * tries.astype(total.dtype))
    return eqx.tree_at(
        lambda c: (c.window_tries, c.window_progress, c.result),
        carry,
        (
            jnp.where(full, 0, tries),
            jnp.where(full, 0, total),
            jnp.where(slow, CHATTERING, carry.result),
        ),
    )


def _verdict(settings: Settings, carry: Carry) -> Carry:
    step = carry.t_next - carry.t
    eps = jnp.finfo(step.dtype).eps
    corrected = jnp.abs(carry.y[1][3])
    underflow = ~(step > 16 * eps * jnp.abs(carry.t)) | ~jnp.isfinite(step)
    verdicts = [
        (carry.steps + carry.rejected >= settings.max_steps, STEP_LIMIT),
        (carry.stall_steps >= _STALL_STEPS, STATIONARY),
        (underflow, STEP_UNDERFLOW),
        (corrected > 1 + 0.1 * (carry.s - carry.s_start), CLOCK_LOST),
    ]
    result = carry.result
    for happened, code in verdicts:
        result = jnp.where(happened, code, result)
    return eqx.tree_at(lambda c: c.result, carry, result)
