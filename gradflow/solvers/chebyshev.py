"""Stabilised explicit Runge-Kutta-Chebyshev methods: matrix-free, for large systems."""

from collections.abc import Callable
from typing import Any, ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from .common import (
    Counts,
    NewtonInterpolation,
    flatten,
    interpolation_info,
)
from .spectral import SpectralRadius

_DAMPING = 2 / 13
# Between the first stage, which is of first order, and the last there are two.
_FEWEST = 4
# What counts of the estimate by slopes: with 0.3 the digits flow takes 17 % more
# evaluations to s = 1e5, and without it the alignment may be off by 3e-3 at 1e-4.
_BY_SLOPES = 0.1


class RKC2State(eqx.Module):
    """What `RKC2` carries from step to step."""

    slope: Float[Array, " k"]
    spectral: SpectralRadius
    counts: Counts


class AbstractChebyshev(diffrax.AbstractAdaptiveSolver):
    """What the Chebyshev methods of order 2 share."""

    term_structure: ClassVar = diffrax.ODETerm
    interpolation_cls: ClassVar[Callable[..., NewtonInterpolation]] = (
        NewtonInterpolation
    )

    def order(self, terms):
        del terms
        return 2

    def error_order(self, terms):
        # The estimate of the paper is the local error itself, of order h^3.
        del terms
        return 3

    def func(self, terms, t0, y0, args) -> PyTree:
        return terms.vf(t0, y0, args)


class RKC2(AbstractChebyshev):
    r"""Runge-Kutta-Chebyshev method of order 2, with as many stages as the step needs.

    Explicit and matrix-free, stable along the negative real axis up to about
    $\tfrac23 s^2$ with $s$ stages: made for large, moderately stiff systems whose
    Jacobian has (nearly) real eigenvalues, as gradient flows have. A step $h$ takes
    $s = 1 + \lceil\sqrt{1 + 1.54\,h\varrho}\rceil$ evaluations of the vector field, so
    work grows only like $\sqrt{h\varrho}$. The spectral radius $\varrho$ comes from a
    power iteration on exact Jacobian-vector products, carried along from step to step.

    Dense output is the cubic through $y_0$, $y_1$ and two internal stages near a third
    and two thirds of the step, which are themselves second-order approximations; its
    leading coefficient estimates the error. The paper's estimate uses slopes, which
    multiply what $y_0$ and $y_1$ hold in stiff directions by $h\varrho$: late in a flow
    it is up to ten times too large. A tenth of it is the least that is estimated, so
    that the slopes too stay near the slow manifold.

    **Arguments:**

    - `max_stages`: a step that needs more is handed back with an infinite error, so
        that the step-size controller shortens it. Rounding errors grow like $s^2$ times
        the unit roundoff.

    **Source:** Sommeijer, Shampine and Verwer, RKC: an explicit solver for parabolic
    PDEs, J. Comput. Appl. Math. 88, 1997, Sections 2 and 3.
    """

    max_stages: int = 500

    def __check_init__(self):
        check_stages(self.max_stages)

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
        spectral, products = solver_state.spectral.settled(
            lambda v: jax.jvp(lambda y: field(t0, y), (y,), (v,))[1]
        )
        stages, possible = stages_for(jnp.abs(h) * spectral.bound, self.max_stages)
        z, inner = _chebyshev(field, t0, t1, y, h, slope0, stages, self.max_stages)
        good = possible & jnp.all(jnp.isfinite(z))
        y1 = jnp.where(good, y + z, y)
        # The last evaluation carries a product with it, for little more than its cost.
        slope1, image = jax.jvp(lambda y: field(t1, y), (y1,), (spectral.vector,))
        d = cubic(inner, y1 - y)
        by_slopes = error_by_slopes(y1 - y, h * (slope0 + slope1))
        error = larger(error_of_cubic(d), by_slopes)
        error = jnp.where(good & jnp.all(jnp.isfinite(error)), error, jnp.inf)
        tree1 = unravel(y1)
        info = interpolation_info(unravel, y0, tree1, d)
        evaluations = stages + jnp.asarray(made_jump, stages.dtype)
        counts = solver_state.counts.add(evaluations=evaluations, products=products + 1)
        state = RKC2State(slope1, spectral.followed(image), counts)
        result: Any = diffrax.RESULTS.successful  # Its type comes from untyped lineax.
        return tree1, unravel(error), info, state, result

    def rejected(self, before: RKC2State, after: RKC2State, error) -> RKC2State:
        """The state to go on with when the step from `before` to `after` is rejected.

        Diffrax goes on with `before`, which is also correct, but forgets the work and
        does not look at the spectral radius again.
        """
        del error
        return RKC2State(before.slope, before.spectral.doubted(), after.counts)

    def counts(self, solver_state: RKC2State) -> dict[str, Any]:
        """Work done so far: `gradient_evaluations`, `jacobian_products`,
        `factorizations` (none), as integer arrays, and the latest
        `spectral_radius`."""
        counts = solver_state.counts.as_dict()
        return {**counts, "spectral_radius": solver_state.spectral.radius}


def check_stages(max_stages: int) -> None:
    """Raises `ValueError` for a limit on stages that no step can keep."""
    if max_stages < _FEWEST:
        raise ValueError(f"`max_stages` must be at least {_FEWEST}; got {max_stages}.")


def stages_for(
    scaled_radius: Float[Array, ""], max_stages: int
) -> tuple[Int[Array, ""], Bool[Array, ""]]:
    """Stages for a step of which `scaled_radius` is the length times the spectral
    radius, and whether so many are allowed; the least number if not."""
    wanted = stable_stages(scaled_radius)
    possible = wanted <= max_stages
    return jnp.where(possible, wanted, _FEWEST).astype(int), possible


def stable_stages(scaled_radius: Float[Array, ""]) -> Float[Array, ""]:
    """The fewest stages that are stable for a step of which `scaled_radius` is the
    length times the spectral radius."""
    return jnp.maximum(1 + jnp.ceil(jnp.sqrt(1 + 1.54 * scaled_radius)), _FEWEST)


class Inner(eqx.Module):
    """Two internal stages of a step: where they are in it, and displacements there."""

    node: Float[Array, "2"]
    z: Float[Array, "2 k"]


def staged(
    stage: Callable, start: tuple, stages: Int[Array, ""], node: Float[Array, " stages"]
) -> tuple[tuple, Inner]:
    """Stages 2, 3, ..., from what `start` is after the first.

    `stage(j, carry)` returns the next carry, whose first entry is the displacement or
    has it as `z`; `node` is where in the step each stage is.

    **Returns:** what the last stage returned, and the stages nearest to a third and two
    thirds of the step.
    """
    # Stage j is at about (j^2 - 1) / (stages^2 - 1).
    thirds = jnp.array([1, 2], node.dtype) / 3
    nearest = jnp.sqrt(1 + thirds * (stages**2 - 1).astype(node.dtype))
    nearest = jnp.round(nearest).astype(stages.dtype)
    second = jnp.clip(nearest[1], 3, stages - 1)
    first = jnp.clip(nearest[0], 2, second - 1)
    ends = jnp.stack([jnp.ones_like(stages), first, second, stages])

    # One loop over three parts, so that a stage is compiled once.
    def part(carry, bounds):
        carry = jax.lax.fori_loop(bounds[0] + 1, bounds[1] + 1, stage, carry)
        return carry, getattr(carry[0], "z", carry[0])

    end, z = jax.lax.scan(part, start, jnp.stack([ends[:-1], ends[1:]], axis=1))
    return end, Inner(node[ends[1:3]], z[:2])


def cubic(inner: Inner, z: Float[Array, " k"]) -> Float[Array, "2 k"]:
    """The coefficients of `NewtonInterpolation` through both inner stages, the
    displacement at the end being `z`."""
    x = inner.node[:, None]
    a, b = (inner.z - x * z[None]) / (x * (1 - x))
    slope = (b - a) / (inner.node[1] - inner.node[0])
    return jnp.stack([a - inner.node[0] * slope, slope])


def error_of_cubic(d: Float[Array, "2 k"]) -> Float[Array, " k"]:
    r"""The local error by the cubic's leading coefficient.

    Of $h^3y'''$ the error is 1/15 and the coefficient 0.102, with 4 stages or more, on
    linear equations and on quadratures. In stiff directions neither is amplified.
    """
    return 2 / 3 * d[1]


def error_by_slopes(
    z: Float[Array, " k"], slopes: Float[Array, " k"]
) -> Float[Array, " k"]:
    """What counts of the paper's estimate of the local error, from the displacement and
    the sum of h y' at both ends."""
    return _BY_SLOPES * (0.4 * slopes - 0.8 * z)


def larger(error: Float[Array, " k"], other: Float[Array, " k"]) -> Float[Array, " k"]:
    """The one of larger norm."""
    return jnp.where(jnp.linalg.norm(error) < jnp.linalg.norm(other), other, error)


class Coefficients(eqx.Module):
    # Of stages 0, 1, 2, ...; Section 2 of the paper. Entries past the last are unused.
    mu: Float[Array, " stages"]
    nu: Float[Array, " stages"]
    mu_slope: Float[Array, " stages"]
    gamma: Float[Array, " stages"]
    node: Float[Array, " stages"]


# Terms of the series below; those left out are smaller than 1e-20 of the sum.
_TERMS = 9


def _chebyshev_polynomials(j: Float[Array, " stages"], delta: Float[Array, ""]):
    r"""$T_j, T_j', T_j''$ at $1 + \delta$ with $j^2\delta \le 2/13$, by the Taylor
    series in $\delta$: its terms are positive, so nothing cancels, and all stages are
    evaluated at once, where the recurrence takes them one by one."""
    coefficients = [jnp.ones_like(j)]
    for m in range(1, _TERMS):
        ratio = (j - (m - 1)) * (j + (m - 1)) / (m * (2 * m - 1))
        coefficients.append(coefficients[-1] * jnp.maximum(ratio, 0))
    values = []
    for _ in range(3):
        value = jnp.zeros_like(j)
        for coefficient in reversed(coefficients):
            value = value * delta + coefficient
        values.append(value)
        coefficients = [m * c for m, c in enumerate(coefficients)][1:]
    return values


def chebyshev_coefficients(stages: Int[Array, ""], size: int, dtype) -> Coefficients:
    """The coefficients of all stages at once, in arrays of `size + 1`."""
    s = stages.astype(dtype)
    j = jnp.arange(size + 1, dtype=dtype)
    delta = _DAMPING / s**2
    w0 = 1 + delta
    # Stages past the last would leave the series' range.
    value, slope, curvature = _chebyshev_polynomials(jnp.minimum(j, s), delta)
    w1 = slope[stages] / curvature[stages]
    b = curvature / slope**2
    b = jnp.where(j < 2, b[2], b)
    before, before2 = jnp.roll(b, 1), jnp.roll(b, 2)
    mu_slope = 2 * w1 * b / before
    gamma = -(1 - before * jnp.roll(value, 1)) * mu_slope
    node = jnp.where(j < 2, w1 * b[2] * j, w1 * curvature / slope)
    return Coefficients(2 * w0 * b / before, -b / before2, mu_slope, gamma, node)


def _chebyshev(
    field, t0, t1, y, h, slope0, stages: Int[Array, ""], max_stages: int
) -> tuple[Float[Array, " k"], Inner]:
    # Displacements z_j = Y_j - y0 instead of Y_j: rounding errors are then relative to
    # the step, not to the state, which float32 needs.
    length = jnp.asarray(t1 - t0)
    table = chebyshev_coefficients(stages, max_stages, y.dtype)

    def stage(j, carry):
        z, z_before = carry
        at = jax.tree.map(lambda a: a[j], table)
        time = t0 + table.node[j - 1].astype(length.dtype) * length
        slope = field(time, y + z)
        new = (
            at.mu * z + at.nu * z_before + h * (at.mu_slope * slope + at.gamma * slope0)
        )
        return new, z

    start = (table.node[1] * h * slope0, jnp.zeros_like(y))
    (z, _), inner = staged(stage, start, stages, table.node)
    return z, inner
