"""RKC2 made for gradient flow: the clock is held over each step."""

from collections.abc import Callable
from typing import Any, ClassVar

import diffrax
import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .chebyshev import RKC2, RKC2State
from .common import NewtonInterpolation


class _Held(eqx.Module):
    """A clock whose speed does not depend on where it is."""

    value: Float[Array, ""]

    def speed(self, log_risk, direction_norm, rho, radial, loss):
        del log_risk, direction_norm, rho, radial, loss
        return self.value


class FlowRKC2(diffrax.AbstractAdaptiveSolver):
    r"""Stabilised explicit steps for the flow of a `Problem`, for large models.

    `RKC2` with the clock's speed held over each step, $d\theta = v(\theta_0)\,G\,
    d\sigma$: the same curve, since a speed changes only how it is run through, but
    now with a symmetric Jacobian. That of $G/\lVert G\rVert^2$ has the factor
    $I - 2\hat G\hat G^\top$, which turns stiff noise in $G$ into growth.

    Only for `integrate`: `args` must hold `problem` and `clock`, and the vector field
    $(\theta, q) \mapsto v\,(G, \dot q)$ must be proportional to the clock's speed $v$.

    **Arguments:** `max_stages` as for `RKC2`.
    """

    max_stages: int = 500

    term_structure: ClassVar = diffrax.ODETerm
    interpolation_cls: ClassVar[Callable[..., NewtonInterpolation]] = (
        NewtonInterpolation
    )

    @property
    def _method(self) -> RKC2:
        return RKC2(self.max_stages)

    def order(self, terms):
        return self._method.order(terms)

    def error_order(self, terms):
        return self._method.error_order(terms)

    def init(self, terms, t0, t1, y0, args) -> RKC2State:
        # The slope is carried at unit speed.
        one = jnp.ones((), y0[0].dtype)
        return self._method.init(terms, t0, t1, y0, _at_speed(args, one))

    def step(
        self, terms, t0, t1, y0, args, solver_state: RKC2State, made_jump
    ) -> tuple[PyTree, PyTree, dict[str, PyTree], RKC2State, diffrax.RESULTS]:
        direction = solver_state.slope[: y0[0].size]
        speed = _speed(args, y0[0], direction)
        scaled = _with_slope(solver_state, speed * solver_state.slope)
        y1, error, info, state, result = self._method.step(
            terms, t0, t1, y0, _at_speed(args, speed), scaled, made_jump
        )
        # At speed zero nothing moved, and the slope is the old one.
        moving = speed != 0
        slope = state.slope / jnp.where(moving, speed, 1)
        state = _with_slope(state, jnp.where(moving, slope, solver_state.slope))
        return y1, error, info, state, result

    def func(self, terms, t0, y0, args) -> PyTree:
        return terms.vf(t0, y0, args)

    def rejected(self, before: RKC2State, after: RKC2State) -> RKC2State:
        """As for `RKC2`."""
        return self._method.rejected(before, after)

    def counts(self, solver_state: RKC2State) -> dict[str, Any]:
        """As for `RKC2`."""
        return self._method.counts(solver_state)


def _at_speed(args, value):
    return eqx.tree_at(lambda flow: flow.clock, args, _Held(value))


def _with_slope(state: RKC2State, slope: Float[Array, " k"]) -> RKC2State:
    return eqx.tree_at(lambda s: s.slope, state, slope)


def _speed(args, theta, direction) -> Float[Array, ""]:
    norm, rho = jnp.linalg.norm(direction), jnp.linalg.norm(theta)
    moving = norm > 0
    speed = args.clock.speed(
        args.problem.log_risk(theta),
        jnp.where(moving, norm, 1),
        rho,
        jnp.vdot(theta, direction),
        args.problem.loss,
    )
    return jnp.where(moving, speed, 0)
