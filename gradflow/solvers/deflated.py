"""Runge-Kutta-Chebyshev with the stiffest directions taken out of its way."""

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from .chebyshev import (
    AbstractChebyshev,
    chebyshev_coefficients,
    check_stages,
    cubic,
    error_by_slopes,
    error_of_cubic,
    larger,
    stable_stages,
    staged,
    stages_for,
)
from .common import Counts, flatten, interpolation_info
from .low_rank import LowRankJacobian
from .spectral import SpectralRadius

# Stages suffice for so many times the bound on the rest, at most and at least: an
# accepted step takes off a little, a rejected one adds more. In float32 it is always
# the most: rounding that stages amplify limits steps far on in a flow, and with fewer
# stages some flows come to crawl.
_SAFETY, _LEAST_SAFETY = 2.0, 1.25
_ACCEPTED, _REJECTED = 0.97, 1.4
# Updates before the first step: few where even that step is not stiff.
_LEAST_UPDATES, _MOST_UPDATES = 6, 24
# Errors beyond which a rejected step counts as unstable.
_UNSTABLE = 2.0
# Nodes of two stages up to so many times apart tell how the forcing bends: from the
# ninth stage on. If all do, the early part of a flow takes half as many steps again.
_CLOSE = 1.3


class DeflatedState(eqx.Module):
    """What `DeflatedRKC2` carries from step to step."""

    slope: Float[Array, " k"]
    jacobian: LowRankJacobian
    others: SpectralRadius  # Of all arrays but the largest.
    counts: Counts
    # Length of the last step, or infinite if it needed more than `max_stages`.
    length: Float[Array, ""]
    safety: Float[Array, ""]


class DeflatedRKC2(AbstractChebyshev):
    r"""`RKC2` on a system whose few stiffest directions are integrated exponentially.

    For gradient flows: symmetric Jacobians with a few large negative eigenvalues and
    many small ones. (Where the products below find a Jacobian that is not symmetric, it
    steps as `RKC2` does.) With $V$ the stiffest eigenvectors and $\Lambda$ their values
    (followed with three Jacobian-vector products a step), the coordinates
    $c = V^\top(y - y_0)$ obey $\dot c = \Lambda c + V^\top f(y_0) + N(t)$, where $N$
    vanishes at the start. After each stage they are set to the solution of that
    equation with $N = at + bt^2$ through its values at the two stages before,

    $$c = \tau\varphi_1(\tau\Lambda)V^\top f(y_0)
        + \tau^2\varphi_2(\tau\Lambda)a + 2\tau^3\varphi_3(\tau\Lambda)b,$$

    and once more after the last ($b = 0$ where these two are far apart, as first stages
    are). Margins bend along a step, so that late in a flow $b$ is most of $N$: without
    it the clock is off five to nine times as much. The Chebyshev stages then need to be
    stable for the rest of the spectrum only: a step takes
    $2 + \lceil\sqrt{1 + 1.54\,h\varrho}\rceil$ evaluations with $\varrho$ the bound on
    that rest times a safety factor: 2 at first, falling to 1.25 while steps are
    accepted (in float32 it stays at 2). A step is rejected if the rest at its end turns
    out to be too stiff for its stages. The exact vector field is integrated, whatever
    $V$ and $\Lambda$ are: these influence stability and the error constant only. The
    order is 2.

    The directions lie in the largest array of the state (for a flow the parameters).
    Other arrays (quadratures) have a spectral radius of their own, which a product with
    the Jacobian in these arrays alone follows; $\varrho$ is at least that.

    **Arguments:**

    - `rank`: how many directions. They take `rank` times the memory of the largest
        array.
    - `max_stages`: as in `RKC2`.

    **Source:** the stages of Sommeijer, Shampine and Verwer, J. Comput. Appl. Math. 88,
    1997; exponential Runge-Kutta methods in Hochbruck and Ostermann, Acta Numerica
    2010, Section 2. The combination is ours.
    """

    rank: int = 16
    max_stages: int = 500

    def __check_init__(self):
        check_stages(self.max_stages)
        if self.rank < 1:
            raise ValueError(f"`rank` must be at least 1; got {self.rank}.")

    def init(self, terms, t0, t1, y0, args) -> DeflatedState:
        field, y, _ = flatten(terms, y0, args)
        part = _largest(y0)
        h = jnp.asarray(terms.contr(t0, t1), y.dtype)
        slope, linear = jax.linearize(lambda y: field(t0, y), y)
        outside = _outside(terms, t0, y0, args)

        def updating(carry):
            updates, jacobian, _ = carry
            stiff = h * jacobian.radius > 1
            return (updates < _LEAST_UPDATES) | (stiff & (updates < _MOST_UPDATES))

        def updated(carry):
            updates, jacobian, others = carry
            others = others.followed(outside(others.vector))
            return updates + 1, jacobian.updated(_within(part, y, linear)), others

        jacobian = LowRankJacobian.start(part.stop - part.start, self.rank, y.dtype)
        others = SpectralRadius.start(jnp.delete(slope, part))
        start = (jnp.zeros((), int), jacobian, others)
        updates, jacobian, others = jax.lax.while_loop(updating, updated, start)
        products = updates * jacobian.probes
        counts = Counts.zero().add(evaluations=1, products=products)
        length, safety = (jnp.asarray(value, y.dtype) for value in (0, _SAFETY))
        return DeflatedState(slope, jacobian, others, counts, length, safety)

    def step(
        self, terms, t0, t1, y0, args, solver_state: DeflatedState, made_jump
    ) -> tuple[PyTree, PyTree, dict[str, PyTree], DeflatedState, diffrax.RESULTS]:
        field, y, unravel = flatten(terms, y0, args)
        part = _largest(y0)
        h = jnp.asarray(terms.contr(t0, t1), y.dtype)
        slope0 = jax.lax.cond(
            made_jump, lambda: field(t0, y), lambda: solver_state.slope
        )
        jacobian, others = solver_state.jacobian, solver_state.others
        stiff = _Stiff(part, jacobian, h, slope0)
        rest = jnp.maximum(jacobian.rest, others.bound)
        stages, possible = stages_for(h * solver_state.safety * rest, self.max_stages)
        table = chebyshev_coefficients(stages, self.max_stages, y.dtype)
        length = jnp.asarray(t1 - t0)

        def stage(j, carry):
            now, before, last = carry
            at = jax.tree.map(lambda a: a[j], table)
            node = table.node[j - 1]
            slope = field(t0 + node.astype(length.dtype) * length, y + now.z)
            slope = stiff.split(h * slope)
            # The same combination of displacements and of their coordinates.
            new = jax.tree.map(
                lambda z, b, f, f0: (
                    at.mu * z + at.nu * b + at.mu_slope * f + at.gamma * f0
                ),
                *(now, before, slope, stiff.slope0),
            )
            forcing = stiff.forcing(now, slope, node)
            return stiff.replaced(new, at.node, forcing, last), now, forcing

        first = table.node[1]
        start = jax.tree.map(lambda f: first * f, stiff.slope0)
        one, none = jnp.ones_like(h), _Forcing.none(start.c)
        start = stiff.replaced(start, first, none, none)
        start = (start, jax.tree.map(jnp.zeros_like, start), none)
        (end, _, last), inner = staged(stage, start, stages, table.node)
        slope = stiff.split(h * field(t1, y + end.z))
        z = stiff.replaced(end, one, stiff.forcing(end, slope, one), last).z

        good = possible & jnp.all(jnp.isfinite(z))
        y1 = jnp.where(good, y + z, y)
        slope1, linear = jax.linearize(lambda y: field(t1, y), y1)
        d = cubic(inner, y1 - y)
        by_slopes = error_by_slopes(y1 - y, h * (slope0 + slope1))
        error = larger(stiff.filtered(error_of_cubic(d)), stiff.filtered(by_slopes))
        good = good & jnp.all(jnp.isfinite(error))
        tree1 = unravel(y1)
        info = interpolation_info(unravel, y0, tree1, d)
        counts = solver_state.counts.add(
            evaluations=stages + 1 + jnp.asarray(made_jump, stages.dtype),
            products=jacobian.probes,
        )
        jacobian = jacobian.updated(_within(part, y, linear))
        # A mode that came up within the step has grown, seen by the error or not.
        good = good & (stable_stages(h * jacobian.rest) <= stages.astype(h.dtype))
        state = DeflatedState(
            slope1,
            jacobian,
            others.followed(_outside(terms, t1, tree1, args)(others.vector)),
            counts,
            jnp.where(possible, h, jnp.inf),
            _less(solver_state.safety),
        )
        result: Any = diffrax.RESULTS.successful  # Its type comes from untyped lineax.
        return tree1, unravel(jnp.where(good, error, jnp.inf)), info, state, result

    def rejected(
        self, before: DeflatedState, after: DeflatedState, error
    ) -> DeflatedState:
        """The state to go on with when the step from `before` to `after` is rejected.

        Diffrax goes on with `before`, which is also correct, but forgets the work and
        does not doubt the bound. A step of too many stages was not tried and says
        nothing of it, nor does an error little above what is acceptable.
        """
        tried = jnp.isfinite(after.length)
        doubtful = tried & (error > _UNSTABLE)
        more = jnp.minimum(_SAFETY, _REJECTED * before.safety)
        return DeflatedState(
            before.slope,
            before.jacobian.doubted(jnp.where(doubtful, after.length, jnp.inf)),
            before.others,
            after.counts,
            after.length,
            jnp.where(doubtful, more, before.safety),
        )

    def counts(self, solver_state: DeflatedState) -> dict[str, Any]:
        """Work done so far: `gradient_evaluations`, `jacobian_products`,
        `factorizations` (none), as integer arrays; the latest `spectral_radius` and
        `deflated_radius`, the bound on what is left of it."""
        jacobian = solver_state.jacobian
        return {
            **solver_state.counts.as_dict(),
            "spectral_radius": jnp.where(
                jacobian.symmetric, -jacobian.values[0], jacobian.radius
            ),
            "deflated_radius": jacobian.bound,
        }


class _Split(eqx.Module):
    # A displacement or slope with its coordinates in the stiff directions.
    z: Float[Array, " k"]
    c: Float[Array, " r"]


class _Forcing(eqx.Module):
    # $N$ over the node, at the node of a stage.
    rate: Float[Array, " r"]
    node: Float[Array, ""]

    @staticmethod
    def none(c) -> "_Forcing":
        return _Forcing(jnp.zeros_like(c), jnp.zeros((), c.dtype))


class _Stiff(eqx.Module):
    # Over one step of length 1: values and slopes are multiplied by h.
    part: slice = eqx.field(static=True)
    vectors: Float[Array, "r p"]
    values: Float[Array, " r"]
    slope0: _Split

    def __init__(self, part: slice, jacobian: LowRankJacobian, h, slope0):
        self.part = part
        # Of vectors that are zero, all coordinates are: plain stages.
        self.vectors = jnp.where(jacobian.symmetric, jacobian.vectors, 0)
        self.values = h * jacobian.values
        self.slope0 = self.split(h * slope0)

    def split(self, z) -> _Split:
        return _Split(z, self.vectors @ z[self.part])

    def forcing(self, at: _Split, slope: _Split, node) -> _Forcing:
        """$N$ at `node`, where the displacement is `at`."""
        return _Forcing((slope.c - self.slope0.c - self.values * at.c) / node, node)

    def replaced(self, at: _Split, node, now: _Forcing, last: _Forcing) -> _Split:
        """A displacement with its stiff coordinates as they are at `node`, by $N$ at
        the latest stage and the one before."""
        gap = now.node - last.node
        bend = (now.rate - last.rate) / jnp.where(gap > 0, gap, 1)
        bend = jnp.where(now.node < _CLOSE * last.node, bend, 0)
        first = now.rate - now.node * bend
        x = node * self.values
        c = node * (
            _phi1(x) * self.slope0.c
            + node * (_phi2(x) * first + 2 * node * _phi3(x) * bend)
        )
        return _Split(self._changed(at.z, c - at.c), c)

    def filtered(self, error):
        """Errors in stiff directions die out: divided by $1 + 0.4 h|\\lambda|$, as
        Shampine does for implicit methods, with the estimate's own factor of h f."""
        c = self.split(error).c
        return self._changed(error, c / (1 - 0.4 * self.values) - c)

    def _changed(self, z, change):
        return z.at[self.part].add(change @ self.vectors)


def _less(safety: Float[Array, ""]) -> Float[Array, ""]:
    """The safety factor after an accepted step."""
    single = jnp.finfo(safety.dtype).eps > 1e-10
    return jnp.maximum(_SAFETY if single else _LEAST_SAFETY, _ACCEPTED * safety)


def _number_of_largest(y0: PyTree) -> int:
    sizes = [leaf.size for leaf in jax.tree.leaves(y0)]
    return sizes.index(max(sizes))


def _largest(y0: PyTree) -> slice:
    """Where the largest array of the state lies in the flat state."""
    number = _number_of_largest(y0)
    sizes = [leaf.size for leaf in jax.tree.leaves(y0)]
    start = sum(sizes[:number])
    return slice(start, start + sizes[number])


def _within(part: slice, y: Float[Array, " k"], linear: Callable) -> Callable:
    """A linear map of the flat state, restricted to a part of it."""
    return lambda v: linear(jnp.zeros_like(y).at[part].set(v))[part]


def _outside(terms, t, y: PyTree, args) -> Callable:
    """The Jacobian in all arrays but the largest, as a linear map of them, flat.

    The largest stays what it is: no derivative passes through it, and of the slope at
    `y`, which a step needs anyhow, the compiler keeps one copy.
    """
    number = _number_of_largest(y)
    leaves, structure = jax.tree.flatten(y)
    largest = leaves.pop(number)
    if not leaves:
        return lambda nothing: nothing
    flat, unravel = ravel_pytree(leaves)

    def field(flat):
        others = unravel(flat)
        others.insert(number, largest)
        slopes = jax.tree.leaves(terms.vf(t, structure.unflatten(others), args))
        del slopes[number]
        return ravel_pytree(slopes)[0]

    return jax.linearize(field, flat)[1]


def _phi1(x):
    r"""$(e^x - 1)/x$ for $x \le 0$."""
    small = jnp.abs(x) < 1e-3
    safe = jnp.where(small, -1, x)
    return jnp.where(small, 1 + x / 2 * (1 + x / 3), jnp.expm1(safe) / safe)


def _phi2(x):
    r"""$(e^x - 1 - x)/x^2$ for $x \le 0$."""
    small = jnp.abs(x) < 1e-2
    safe = jnp.where(small, -1, x)
    series = 1 / 2 + x / 6 * (1 + x / 4 * (1 + x / 5))
    return jnp.where(small, series, (jnp.expm1(safe) - safe) / safe**2)


def _phi3(x):
    r"""$(e^x - 1 - x - x^2/2)/x^3$ for $x \le 0$."""
    small = jnp.abs(x) < 1
    safe = jnp.where(small, -1, x)
    series = jnp.zeros_like(x)
    for n in range(20, 3, -1):
        series = x / n * (1 + series)
    return jnp.where(
        small, (1 + series) / 6, (jnp.expm1(safe) - safe - safe**2 / 2) / safe**3
    )
