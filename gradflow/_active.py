r"""Steps on the examples whose share of the risk is not lost in rounding.

Late in a flow few examples carry weight. Of the others' losses nothing is left in
$\nabla\ln L$ but rounding, so that a step may leave them out: it then costs as many
passes over the data as the examples in use are of all. Which ones is decided anew
before every step, from the losses of all examples at its start, extrapolated to its
end; what was left out is measured at its end, again from all, and bounded.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import Array, Bool, Float, Int

from ._flow import Flow
from ._problem import Problem

# Fewest examples that a step takes, unless there are fewer.
_LEAST = 64
# A change of their number compiles the step anew: worth it for so many times fewer.
_FEWER = 4
# Spare places, so that a few more active examples fit.
_SPARE = 1.1
# Between what is left out by extrapolation and what may be found to be left out.
_MARGIN = 1e-3


class Activity(eqx.Module):
    r"""Each example's share of the risk, and how many steps have to look at.

    **Attributes:** `shares` ($\ln(\ell_i/L)$ at the last accepted step), `reach` (the
    larger of that and what it is extrapolated to at the end of the next step; both
    `None` where no example may be left out), `needed` (how many of those are not
    negligible), `capacity` (how many examples steps take now), `neglected` (largest
    share left out of a step, measured at its end), `passes` (work so far, in passes
    over all examples).
    """

    shares: Float[Array, " n"] | None
    reach: Float[Array, " n"] | None
    needed: Int[Array, ""]
    capacity: Int[Array, ""]
    neglected: Float[Array, ""]
    passes: Float[Array, ""]

    @staticmethod
    def start(
        problem: Problem,
        shares: Float[Array, " n"] | None,
        work: Int[Array, ""] | int,
    ) -> "Activity":
        """Before the first step, which takes all examples, and after work on all."""
        dtype = problem.theta.dtype
        return Activity(
            shares=shares,
            reach=shares,
            needed=jnp.full((), problem.n, int),
            capacity=jnp.full((), problem.n, int),
            neglected=jnp.zeros((), dtype),
            passes=jnp.asarray(work, dtype),
        )

    def chosen(self, capacity: int) -> Int[Array, " capacity"]:
        """The examples that the next step takes: those of largest `reach`."""
        if self.reach is None:
            raise ValueError("No example may be left out where `neglect` is zero.")
        return jax.lax.top_k(self.reach, capacity)[1]

    def left_out(self, shares: Float[Array, " n"] | None, capacity: int):
        """Share of the risk that the examples have which `chosen` has left out, by
        `shares`, measured elsewhere."""
        if shares is None or capacity == shares.size:
            return jnp.zeros_like(self.neglected)
        return jnp.exp(logsumexp(shares.at[self.chosen(capacity)].set(-jnp.inf)))

    def after(
        self,
        shares: Float[Array, " n"] | None,
        left_out: Float[Array, ""],
        keep: Bool[Array, ""],
        growth: Float[Array, ""],
        neglect: float,
        work: Int[Array, ""] | int,
    ) -> "Activity":
        """After a tried step to where the shares are `shares`, the next one being
        `growth` times as long.

        A step that left out more than `neglect` was rejected: the examples that it
        missed are then in reach.
        """
        if shares is None or self.shares is None or self.reach is None:
            passes = self.passes + jnp.asarray(work, self.passes.dtype)
            return eqx.tree_at(lambda activity: activity.passes, self, passes)
        extrapolated = shares + growth * (shares - self.shares)
        missed = ~keep & (left_out > neglect)
        found = jnp.where(missed, jnp.maximum(self.reach, shares), self.reach)
        reach = jnp.where(keep, jnp.maximum(shares, extrapolated), found)
        fraction = self.capacity.astype(shares.dtype) / shares.size
        # Division by a constant may be compiled to a product with its reciprocal.
        fraction = jnp.where(self.capacity == shares.size, 1, fraction)
        bound = math.log(neglect) + math.log(_MARGIN / shares.size)
        return Activity(
            shares=jnp.where(keep, shares, self.shares),
            reach=reach,
            needed=jnp.sum(reach > bound, dtype=self.needed.dtype),
            capacity=self.capacity,
            neglected=jnp.maximum(self.neglected, jnp.where(keep, left_out, 0)),
            passes=self.passes + fraction * jnp.asarray(work, shares.dtype),
        )


def on_active(flow: Flow, activity: Activity, capacity: int) -> Flow:
    """The flow on the examples that the next step takes."""
    if capacity == flow.problem.n:
        return flow
    active = flow.problem.on(activity.chosen(capacity))
    return eqx.tree_at(lambda flow: flow.problem, flow, active)


def fits(problem: Problem, activity: Activity, capacity: int) -> Bool[Array, ""]:
    """Whether steps on so many examples are right for now."""
    lower = _capacities(problem, capacity // _FEWER)
    few = activity.needed <= (_room(lower[-1]) if lower else 0)
    return ~(few | (activity.needed > capacity))


def fitting(problem: Problem, needed: int, capacity: int) -> int:
    """How many examples steps are to take, where they took `capacity` so far."""
    most = capacity // _FEWER if needed <= capacity else problem.n // _FEWER
    enough = (c for c in _capacities(problem, most) if needed <= _room(c))
    return next(enough, capacity if needed <= capacity else problem.n)


def _room(capacity: int) -> int:
    return math.floor(capacity / _SPARE)


def _capacities(problem: Problem, most: int) -> list[int]:
    """The numbers of examples that steps may take, up to `most`."""
    unit = max(_LEAST, problem.batch_size or 0)
    count = 0 if most < unit else 1 + math.floor(math.log2(most // unit))
    return [unit * 2**j for j in range(count)]
