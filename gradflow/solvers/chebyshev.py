"""Stabilised explicit Runge-Kutta-Chebyshev methods: matrix-free, for large systems."""

from collections.abc import Callable
from typing import Any, ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from .common import (
    Counts,
    NewtonInterpolation,
    finite_or_infinite_error,
    flatten,
    interpolation_info,
)
from .spectral import SpectralRadius

_DAMPING = 2 / 13


class RKC2State(eqx.Module):
    """What `RKC2` carries from step to step."""

    slope: Float[Array, " k"]
    spectral: SpectralRadius
    counts: Counts


class RKC2(diffrax.AbstractAdaptiveSolver):
    r"""Runge-Kutta-Chebyshev method of order 2, with as many stages as the step needs.

    Explicit and matrix-free, stable along the negative real axis up to about
    $\tfrac23 s^2$ with $s$ stages: made for large, moderately stiff systems whose
    Jacobian has (nearly) real eigenvalues, as gradient flows have. A step $h$ takes
    $s = 1 + \lceil\sqrt{1 + 1.54\,h\varrho}\rceil$ evaluations of the vector field, so
    work grows only like $\sqrt{h\varrho}$. The spectral radius $\varrho$ comes from a
    power iteration on exact Jacobian-vector products, carried along from step to step.

    Dense output is the parabola through $y_0$, $y_1$ and the internal stage nearest to
    the middle, which is itself a second-order approximation; interpolants that use
    slopes would multiply the stiff noise in $y_1$ by $h\varrho$.

    **Arguments:**

    - `max_stages`: a step that needs more is handed back with an infinite error, so
        that the step-size controller shortens it. Rounding errors grow like $s^2$ times
        the unit roundoff.

    **Source:** Sommeijer, Shampine and Verwer, RKC: an explicit solver for parabolic
    PDEs, J. Comput. Appl. Math. 88, 1997, Sections 2 and 3.
    """

    max_stages: int = 500

    term_structure: ClassVar = diffrax.ODETerm
    interpolation_cls: ClassVar[Callable[..., NewtonInterpolation]] = (
        NewtonInterpolation
    )

    def __check_init__(self):
        if self.max_stages < 3:
            raise ValueError(f"`max_stages` must be at least 3; got {self.max_stages}.")

    def order(self, terms):
        del terms
        return 2

    def error_order(self, terms):
        # The estimate of the paper is the local error itself, of order h^3.
        del terms
        return 3

    def init(self, terms, t0, t1, y0, args) -> RKC2State:
        del t1
        field, y, _ = flatten(terms, y0, args)
        slope = field(t0, y)
        counts = Counts.zero().add(evaluations=1)
        return RKC2State(slope, SpectralRadius.start(slope), counts)

    def step(
        self, terms, t0, t1, y0, args, solver_state: RKC2State, made_jump
    ) -> tuple[PyTree, PyTree, dict[str, PyTree], RKC2State, diffrax.RESULTS]:
        field, y, unravel = flatten(terms, y0, args)
        h = jnp.asarray(terms.contr(t0, t1), y.dtype)
        slope0 = jax.lax.cond(
            made_jump, lambda: field(t0, y), lambda: solver_state.slope
        )
        spectral, products = solver_state.spectral.update(
            lambda v: jax.jvp(lambda y: field(t0, y), (y,), (v,))[1]
        )
        wanted = 1 + jnp.ceil(jnp.sqrt(1 + 1.54 * jnp.abs(h) * spectral.bound))
        possible = wanted <= self.max_stages
        stages = jnp.where(possible, jnp.maximum(wanted, 3), 0).astype(int)

        y1, middle, middle_node = _chebyshev(field, t0, t1, y, h, slope0, stages)
        slope1 = jax.lax.cond(possible, lambda: field(t1, y1), lambda: slope0)
        error = 0.8 * (y - y1) + 0.4 * h * (slope0 + slope1)
        y1, error = finite_or_infinite_error(y, y1, jnp.where(possible, error, jnp.inf))
        tree1 = unravel(y1)
        # y0 + x (y1 - y0) + x (1 - x) d passes through the middle stage.
        straight = y + middle_node * (y1 - y)
        d = (middle - straight) / (middle_node * (1 - middle_node))
        info = interpolation_info(unravel, y0, tree1, d[None])
        evaluations = stages + jnp.asarray(made_jump, stages.dtype)
        counts = solver_state.counts.add(evaluations=evaluations, products=products)
        state = RKC2State(slope1, spectral, counts)
        result: Any = diffrax.RESULTS.successful  # Its type comes from untyped lineax.
        return tree1, unravel(error), info, state, result

    def func(self, terms, t0, y0, args) -> PyTree:
        return terms.vf(t0, y0, args)

    def rejected(self, before: RKC2State, after: RKC2State) -> RKC2State:
        """The state to go on with when the step from `before` to `after` is rejected.

        Diffrax goes on with `before`, which is also correct, but forgets the work and
        the better spectral radius.
        """
        return RKC2State(before.slope, after.spectral.doubted(), after.counts)

    def counts(self, solver_state: RKC2State) -> dict[str, Any]:
        """Work done so far: `gradient_evaluations`, `jacobian_products`,
        `factorizations` (none), as integer arrays, and the latest
        `spectral_radius`."""
        counts = solver_state.counts.as_dict()
        return {**counts, "spectral_radius": solver_state.spectral.radius}


class _Stage(eqx.Module):
    # T, T' and T'' of the stage and the one before, at w0; b; displacements from y0.
    chebyshev: Float[Array, "2 3"]
    b: Float[Array, "2"]
    node: Float[Array, ""]
    z: Float[Array, " k"]
    z_before: Float[Array, " k"]
    middle: Float[Array, " k"]
    middle_node: Float[Array, ""]


def _next_chebyshev(pair: Float[Array, "2 3"], w0: Array) -> Float[Array, "2 3"]:
    # T_j = 2 w T_{j-1} - T_{j-2}, differentiated twice.
    (t1, d1, e1), (t0, d0, e0) = pair
    new = [2 * w0 * t1 - t0, 2 * (t1 + w0 * d1) - d0, 4 * d1 + 2 * w0 * e1 - e0]
    return jnp.stack([jnp.stack(new), pair[0]])


def _weight(pair: Float[Array, "2 3"]) -> Array:
    _, slope, curvature = pair[0]
    return curvature / slope**2


def _chebyshev(
    field, t0, t1, y, h, slope0, stages: Int[Array, ""]
) -> tuple[Float[Array, " k"], Float[Array, " k"], Float[Array, ""]]:
    # Displacements z_j = Y_j - y0 instead of Y_j: rounding errors are then relative to
    # the step, not to the state, which float32 needs.
    length = jnp.asarray(t1 - t0)
    s = jnp.maximum(stages, 3).astype(y.dtype)
    w0 = 1 + _DAMPING / s**2
    one, zero = jnp.ones_like(w0), jnp.zeros_like(w0)
    first = jnp.stack([jnp.stack([w0, one, zero]), jnp.stack([one, zero, zero])])
    last = jax.lax.fori_loop(1, stages, lambda j, p: _next_chebyshev(p, w0), first)
    w1 = last[0, 1] / jnp.where(stages > 1, last[0, 2], one)
    second = _next_chebyshev(first, w0)
    b1 = _weight(second)
    node1 = w1 * b1
    middle_index = jnp.round(jnp.sqrt((s**2 + 1) / 2)).astype(stages.dtype)

    def stage(j, carry: _Stage) -> _Stage:
        pair = _next_chebyshev(carry.chebyshev, w0)
        b = _weight(pair)
        mu = 2 * w0 * b / carry.b[0]
        nu = -b / carry.b[1]
        mu_slope = 2 * w1 * b / carry.b[0]
        gamma = -(1 - carry.b[0] * carry.chebyshev[0, 0]) * mu_slope
        time = t0 + carry.node.astype(length.dtype) * length
        slope = field(time, y + carry.z)
        z = mu * carry.z + nu * carry.z_before + h * (mu_slope * slope + gamma * slope0)
        node = w1 * pair[0, 2] / pair[0, 1]
        here = j == middle_index
        return _Stage(
            pair,
            jnp.stack([b, carry.b[0]]),
            node,
            z,
            carry.z,
            jnp.where(here, z, carry.middle),
            jnp.where(here, node, carry.middle_node),
        )

    z1 = node1 * h * slope0
    start = _Stage(
        first, jnp.stack([b1, b1]), node1, z1, jnp.zeros_like(y), z1, one / 2
    )
    end = jax.lax.fori_loop(2, stages + 1, stage, start)
    return y + end.z, y + end.middle, end.middle_node
