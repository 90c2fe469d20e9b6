"""Is the limit of a flow a local optimum of the margin problem?"""

import dataclasses
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from .._problem import Problem
from ..models import DeepLinear, Diagonal, Identity
from .linear import deep_linear, diagonal_max_margin
from .program import MarginProgram
from .search import RADII, search
from .second_order import (
    CURVATURE_TOL,
    KKT_TOL,
    Cell,
    Conditions,
    conditions,
    polish,
    rough_residual,
)

LOCAL = "locally optimal"
NOT_LOCAL = "not locally optimal"
UNDECIDED = "undecided"
# A flow's model with a residual below this is taken for a KKT point not yet reached.
_CONVERGING = 5e-2


class Optimality(eqx.Module):
    r"""Verdict on a point of $\min\tfrac12\|\theta\|^2$ s.t. $p_i(\theta) \ge 1$.

    **Attributes:**

    - `verdict`: "locally optimal", "not locally optimal" or "undecided".
    - `reason`: one sentence with the numbers that decided.
    - `witness`: a model with all margins at least 1 and a smaller norm than `point`, as
        near to it as was searched (relative distance `distance`); `None` if no such
        model was found. Its constraints have been evaluated.
    - `decrease`: $1 - \|\text{witness}\|^2/\|\text{point}\|^2$, 0 without one.
    - `global_optimum`: whether the point is known to be a global optimum.
    - `bound`: least squared norm of all parameters with margins at least 1, against
        which $\|\text{point}\|^2$ may be held: known for deep linear and linear
        diagonal networks, otherwise NaN.
    - `point`: the model examined: the one given, scaled so that its smallest margin is
        one and moved to the KKT point next to it. `moved`: how far, relative.
    - `kkt_residual`: $\|\theta - \sum_i\lambda_i h_i\|/\|\theta\|$ with $h_i$ in
        Clarke's subdifferential. `multipliers`: $\lambda$.
    - `curvature`: smallest eigenvalue of the Lagrangian's Hessian on the critical
        subspace, over all cells of `kinks` hyperplanes; infinite if that is zero.
    - `cells`: number of smooth pieces of the margins that meet at the point.
    """

    verdict: str
    reason: str
    witness: Any
    decrease: float
    distance: float
    global_optimum: bool
    point: Any
    moved: float
    kkt_residual: float
    multipliers: Float[np.ndarray, " constraints"]
    curvature: float
    kinks: int
    cells: int
    bound: float = float("nan")


def local_optimality(
    problem: Problem, model: Any, *, starts: int = 8, seed: int = 0
) -> Optimality:
    r"""Tests a limit of gradient flow for local optimality of the margin problem.

    The model is scaled so that its smallest margin is 1 and moved to the KKT point next
    to it (Newton's method on the active constraints; saddles stay saddles). There:

    - in every cell of the kinks that pass through the point, first-order descent is
        excluded by non-negative multipliers, and the Lagrangian's Hessian examined on
        the critical subspace. Positive in all cells: locally optimal.
    - zero curvature is settled where the Lagrangian is a convex quadratic near the
        point (depth two), or where every flat direction leads along a manifold of KKT
        points of the same norm (symmetries).
    - otherwise feasible parameters of smaller norm are searched within relative radii
        0.1, 0.01 and 0.001, along the directions that failed and from random ones.
        Found within each: not locally optimal, with the nearest as witness.

    Anything else is undecided, with the reason. The cost is that of dense Hessians: a
    few hundred parameters.

    **Arguments:** `problem`, homogeneous (its own parameters do not matter); `model`,
    built like the problem's, all margins positive; `starts`, random searches per
    radius; `seed` for them.

    **Raises:** `ValueError` if the problem is not homogeneous, a margin is not positive
    or the parameters are not float64.

    **Source:** Vardi, Shamir and Srebro, Problem (1), Tables 1 and 2.
    """
    theta = _scaled(problem, model)
    program = MarginProgram.whole(problem)
    point = polish(program, theta)
    result = _examine(program, theta, point, starts, seed)
    bound = _global_bound(problem, result.point)
    result = dataclasses.replace(result, bound=bound)
    if not point @ point <= bound * (1 + 1e-9) or result.verdict == NOT_LOCAL:
        return result
    reason = f"global optimum: the squared norm attains the bound {bound:.6g}"
    return dataclasses.replace(
        result, verdict=LOCAL, reason=reason, global_optimum=True
    )


def _global_bound(problem, model) -> float:
    """Least squared norm with margins at least one; NaN where it is not known."""
    if isinstance(model, DeepLinear):
        # Normalised margins are at most `bound`.
        return deep_linear(problem, model).bound ** (-2 / problem.degree)
    if isinstance(model, Diagonal) and isinstance(model.activation, Identity):
        best = diagonal_max_margin(problem.x, problem.y, len(model.weights))
        return best.squared_norm if best.exact else float("nan")
    return float("nan")


def layer_optimality(
    problem: Problem,
    model: Any,
    layer: int | np.integer | str,
    *,
    starts: int = 8,
    seed: int = 0,
) -> Optimality:
    r"""Tests one layer for local optimality, the other layers kept.

    The problem is $\min\tfrac12\|u\|^2$ over the layer's parameters with all margins at
    least one. For a linear network it is convex, and a KKT point is its global optimum.
    The whole model is first moved to the KKT point next to it, as in
    `local_optimality`.

    **Arguments:** as `local_optimality`; `layer`: number, or name in
    `problem.layer_names`.

    **Raises:** `ValueError` as there, or for a layer that does not exist.

    **Source:** Vardi, Shamir and Srebro, Problem (3), Theorems 5.2 to 5.4.
    """
    names = problem.layer_names
    if isinstance(layer, str) and layer in names:
        layer = names.index(layer)
    if not isinstance(layer, int | np.integer) or not 0 <= layer < len(names):
        raise ValueError(
            f"`layer={layer!r}` is not a layer: give a number below "
            f"{len(names)} or one of {', '.join(names)}."
        )
    theta = _scaled(problem, model)
    whole = polish(MarginProgram.whole(problem), theta)
    program = MarginProgram.layer(problem, jnp.asarray(whole), int(layer))
    index = np.asarray(program.index)
    if not np.any(whole[index]):
        raise ValueError(f"`model` has only zeros in {names[layer]}.")
    return _examine(program, theta[index], whole[index], starts, seed)


def _scaled(problem, model) -> np.ndarray:
    if not problem.degree:
        raise ValueError(
            "`problem` must be homogeneous of positive degree: the margin problem is "
            f"stated for such models; its degree is {problem.degree}."
        )
    theta = problem.theta_of(model)
    if theta.dtype != jnp.float64:
        raise ValueError(
            f"`model` has parameters of {theta.dtype}, too coarse to judge curvature: "
            "enable jax_enable_x64 and pass float64 parameters."
        )
    least = float(np.min(MarginProgram.whole(problem).values(np.asarray(theta))))
    if not least > 0:
        raise ValueError(
            f"`model` has a margin of {least:.3g}: only models that classify every "
            "example correctly can be scaled to satisfy the constraints."
        )
    return np.asarray(theta / least ** (1 / problem.degree))


@dataclasses.dataclass(frozen=True)
class _Finding:
    verdict: str
    reason: str
    global_optimum: bool = False


def _examine(program, given, point, starts, seed) -> Optimality:
    found = conditions(program, point)
    finding = _proof(program, point, found)
    rough = rough_residual(program, point)
    witnesses = []
    if found.residual > KKT_TOL and rough < _CONVERGING:
        finding = _Finding(
            UNDECIDED,
            f"close to a KKT point (residual {rough:.1e} with constraints active to "
            "within 5 %) that Newton's method did not find: flow further",
        )
    elif finding.verdict == UNDECIDED:
        witnesses = search(
            program, point, _directions(found), n_random=starts, seed=seed
        )
        finding = _after_search(finding, found, witnesses)
    nearest = witnesses[-1] if finding.verdict == NOT_LOCAL else None

    def module(u):
        return program.problem.model(program.fill(jnp.asarray(u)))

    return Optimality(
        finding.verdict,
        finding.reason,
        None if nearest is None else module(nearest.u),
        0.0 if nearest is None else nearest.decrease,
        0.0 if nearest is None else nearest.distance,
        finding.global_optimum,
        module(point),
        float(np.linalg.norm(given - point) / np.linalg.norm(point)),
        found.residual,
        found.multipliers,
        min(cell.curvature for cell in found.cells),
        found.kinks,
        len(found.cells),
    )


def _directions(found: Conditions) -> list[np.ndarray]:
    """Directions that failed the conditions, the worst cells first."""
    cells = sorted(found.cells, key=lambda c: (-c.residual, c.curvature))[:6]
    first = [c.descent for c in cells if c.descent is not None]
    second = [s * v for c in cells for v in c.negative.T[:2] for s in (1, -1)]
    flat = [s * v for c in cells[:1] for v in c.flat.T[:2] for s in (1, -1)]
    return first + second + flat


def _after_search(finding, found, witnesses):
    if len(witnesses) < len(RADII):
        nearest = "" if not witnesses else f" nearer than {RADII[len(witnesses)]:g}"
        return _Finding(
            UNDECIDED,
            f"{finding.reason}; no feasible point of smaller norm was found{nearest}",
        )
    best = witnesses[-1]
    return _Finding(
        NOT_LOCAL,
        f"{finding.reason}; feasible parameters at relative distance "
        f"{best.distance:.1e} have a squared norm smaller by {best.decrease:.1e}",
    )


def _proof(program, point, found: Conditions) -> _Finding:
    """Locally optimal with the reason, or undecided with what stands in the way."""
    cells = found.cells
    if found.residual > KKT_TOL:
        return _Finding(
            UNDECIDED,
            f"not a KKT point: relative residual {found.residual:.1e}",
        )
    descending = [c for c in cells if c.descent is not None]
    if descending:
        return _Finding(
            UNDECIDED,
            f"{len(descending)} of {len(cells)} cells of the kinks allow first-order "
            "descent",
        )
    curvature = min(c.curvature for c in cells)
    if curvature < -CURVATURE_TOL:
        where = "on" if found.kinks == 0 else f"in one of {len(cells)} cells on"
        return _Finding(
            UNDECIDED,
            f"the Lagrangian has curvature {curvature:.3g} {where} the critical "
            "subspace",
        )
    if not found.complete:
        hidden = program.hidden_kinks()
        because = f" (hidden in {', '.join(hidden)})" if hidden else ""
        return _Finding(
            UNDECIDED,
            f"not all kinks through the point could be enumerated{because}, and the "
            f"{len(cells)} cells examined show no descent",
        )
    reasons = {_settled(program, point, cell) for cell in cells}
    if "" in reasons:
        return _Finding(
            UNDECIDED,
            f"the Lagrangian's curvature vanishes (least eigenvalue {curvature:.1e})",
        )
    # Without switches the Lagrangian is the same quadratic everywhere.
    everywhere = len(program.switches(point)[0]) == 0 and reasons == {_QUADRATIC}
    place = "" if found.kinks == 0 else f" in all {len(cells)} cells of the kinks"
    return _Finding(
        LOCAL,
        f"KKT point (residual {found.residual:.1e}), " + ", ".join(reasons) + place,
        everywhere,
    )


_POSITIVE = "positive curvature on the critical subspace"
_QUADRATIC = "convex quadratic Lagrangian"
_MANIFOLD = "flat directions lie along KKT points of the same norm"


def _settled(program, point, cell: Cell) -> str:
    """Why the point is a local minimum in this cell; empty if unknown."""
    if _convex_quadratic(program, point, cell):
        return _QUADRATIC
    if cell.curvature > CURVATURE_TOL:
        return _POSITIVE
    if cell.inside is None and _flat_manifold(program, point, cell):
        return _MANIFOLD
    return ""


def _convex_quadratic(program, point, cell):
    """Positive semidefinite and constant: a KKT point minimises the Lagrangian.

    Constancy is tested away from the point, but short of the next kink.
    """
    if np.linalg.eigvalsh(cell.hessian)[0] < -CURVATURE_TOL:
        return False
    if np.any(cell.wall_multipliers > 0):
        return False
    z, gradients = program.switches(point)
    away = np.abs(z) > 1e-6 * np.linalg.norm(gradients, axis=1)
    reach = np.abs(z[away]) / np.maximum(np.linalg.norm(gradients[away], axis=1), 1e-9)
    step = 0.4 * min([np.linalg.norm(point), *reach])
    rng = np.random.default_rng(0)
    zero = np.zeros(len(z))
    for _ in range(3):
        d = rng.standard_normal(len(point))
        d /= np.linalg.norm(d)
        if cell.inside is not None:
            # Near the ray inside the cell, which other cells' walls do not cross.
            d = cell.inside + 1e-4 * d
        other = program.hessian(point + step * d, cell.multipliers, zero)
        if np.max(np.abs(other - cell.hessian)) > 1e-7:
            return False
    return True


def _flat_manifold(program, point, cell):
    """Whether every flat direction leads to KKT points of the same norm.

    Newton's method from a step of size h along random flat directions must arrive
    within O(h^2), at full accuracy and the same norm. From near an isolated degenerate
    point it would instead fall back towards it.
    """
    rng = np.random.default_rng(0)
    rho = np.linalg.norm(point)
    count = 2 * cell.flat.shape[1]
    for weights in rng.standard_normal((count, cell.flat.shape[1])):
        d = cell.flat @ weights
        d /= np.linalg.norm(d)
        for h in (1e-2, 1e-3):
            start = point + h * rho * d
            end = polish(program, start)
            back = np.linalg.norm(end - start) / rho
            same = abs(np.linalg.norm(end) / rho - 1) <= 1e-10
            if end is start or back > 30 * h**2 or not same:
                return False
    return True
