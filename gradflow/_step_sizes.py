"""How long the next step is to be, by the error of the last."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from ._flow import term

# Limits of the order that two tries show, and of what is left of a step's length then.
_LEAST_ORDER, _LEAST_FACTOR = 0.1, 0.1
_SLOW, _FAST = (
    diffrax.PIDController(0.0, 1.0, pcoeff=pcoeff, icoeff=icoeff)
    for pcoeff, icoeff in ((0.3, 0.3), (0.2, 0.7))
)


class Failure(eqx.Module):
    """Length and error of the last try if it was rejected, or zeros."""

    length: Float[Array, ""]
    error: Float[Array, ""]


class StepSizes(eqx.Module):
    """Steps to keep a scaled error below one.

    A proportional-integral controller, and where steps are rejected twice in a row,
    the order that their errors show in place of the method's: what comes up within a
    step, such as an example that becomes active, is an error that may fall as slowly as
    the root of its length.

    **Source** of the latter: Gustafsson, Control theoretic techniques for stepsize
    selection in explicit Runge-Kutta methods, ACM Trans. Math. Softw. 17, 1991.
    """

    pid: diffrax.PIDController
    order: float = eqx.field(static=True)

    def __init__(self, solver: diffrax.AbstractSolver):
        order = solver.error_order(term())
        if order is None:
            raise ValueError(
                f"`solver={type(solver).__name__}()` does not state its order."
            )
        self.order = float(order)
        # The errors of a method of second order lie on the same side step after step
        # and add up: its steps grow slowly, which keeps them well below what one step
        # may be off by. So do those of explicit methods, which are rejected beyond
        # their stability.
        slowly = self.order <= 3 or isinstance(solver, diffrax.AbstractERK)
        self.pid = _SLOW if slowly else _FAST

    def start(self, length: Float[Array, ""]) -> PyTree:
        """The state before the first step, which is to be of this length."""
        zero = jnp.zeros_like(length)
        _, state = self.pid.init(
            term(), zero, length, zero, length, None, lambda *_: zero, self.order
        )
        return jax.tree.map(jnp.asarray, state), Failure(zero, zero)

    def after(
        self,
        t: Float[Array, ""],
        t_next: Float[Array, ""],
        error: Float[Array, ""],
        state: PyTree,
    ) -> tuple[Bool[Array, ""], Float[Array, ""], Float[Array, ""], PyTree]:
        """Whether the step from `t` to `t_next` is accepted; where the next one starts
        and ends; and the state."""
        pid_state, last = state
        zero, length = jnp.zeros_like(error), t_next - t
        keep, start, end, _, pid_state, _ = self.pid.adapt_step_size(
            t, t_next, zero, zero, None, error, self.order, pid_state
        )
        keep = jnp.asarray(keep)
        failed = ~keep & jnp.isfinite(error)
        again = failed & (last.length > 0)
        # Powers of one, should there be nothing to see.
        shorter = jnp.where(again, length / last.length, 0.5)
        fall = jnp.log(jnp.where(again, error / last.error, 1)) / jnp.log(shorter)
        order = jnp.clip(fall, _LEAST_ORDER, self.order)
        factor = self.pid.safety * jnp.where(again, error, 1) ** (-1 / order)
        seen = start + length * jnp.maximum(_LEAST_FACTOR, factor)
        end = jnp.where(again, jnp.minimum(end, seen), end)
        failure = Failure(jnp.where(failed, length, 0), jnp.where(failed, error, 0))
        return keep, jnp.asarray(start), end, (pid_state, failure)
