r"""First- and second-order conditions of the margin problem, cell by cell.

Around a point on kinks the parameters fall into *cells*, on each of which the margins
are smooth: the sign patterns of the switches that vanish there. The point is a local
minimum if it is one in every cell, where the cell's walls are constraints too.
"""

import dataclasses

import numpy as np
from scipy.optimize import linprog, nnls

from .program import MarginProgram

KKT_TOL = 1e-6  # relative residual of theta = sum of lambda times gradients
CURVATURE_TOL = 1e-6  # eigenvalues of the Lagrangian's Hessian; the objective's are 1
_ON_KINK = 1e-9
_ACTIVE = 1e-7
_CLEARLY_ACTIVE = 1.001
_NEARLY_ACTIVE = 1.05
_MAX_CELLS = 256


@dataclasses.dataclass(frozen=True)
class Cell:
    """What the smooth piece of one cell says about the point.

    `residual`: of the KKT conditions in the cell; `descent`: a direction of first-order
    descent or `None`; `curvature`: smallest eigenvalue of the Lagrangian's Hessian on
    the critical subspace (infinite if that is zero); `negative`, `flat`: eigenvectors
    of negative and zero curvature, as columns.
    """

    inside: np.ndarray | None
    multipliers: np.ndarray
    wall_multipliers: np.ndarray
    residual: float
    descent: np.ndarray | None
    curvature: float
    negative: np.ndarray
    flat: np.ndarray
    hessian: np.ndarray


@dataclasses.dataclass(frozen=True)
class Conditions:
    """All cells at a point, and whether they are known to be all.

    `residual` is that of the KKT conditions with Clarke's subdifferential: gradients
    may be mixed over cells.
    """

    cells: list[Cell]
    complete: bool
    kinks: int
    residual: float
    multipliers: np.ndarray
    active: np.ndarray


def conditions(program: MarginProgram, u: np.ndarray) -> Conditions:
    """Examines `u`, scaled so that its smallest constraint is 1."""
    active = np.flatnonzero(program.values(u) <= 1 + _ACTIVE)
    z, gradients = program.switches(u)
    size = np.linalg.norm(gradients, axis=1)
    rho = np.linalg.norm(u)
    on_kink = np.abs(z) <= _ON_KINK * (size * rho + 1e-3)
    kinks = np.flatnonzero(on_kink & (size > _ON_KINK))
    invisible = bool(np.any(on_kink & (size <= _ON_KINK)))
    walls = _distinct(gradients[kinks] / size[kinks, None])
    insides, all_found = _insides(walls)
    pieces = [_gradients(program, u, inside, active) for inside in insides]
    bent = any(_bent(program, u, kinks, gradients, inside) for inside in insides)
    cells = [
        _cell(program, u, inside, active, piece, walls, kinks)
        for inside, piece in zip(insides, pieces)
    ]
    columns = np.concatenate(pieces).T
    weights, gap = _nonnegative(columns, u)
    multipliers = np.zeros(len(program.values(u)))
    np.add.at(multipliers, np.tile(active, len(pieces)), weights)
    return Conditions(
        cells,
        all_found and not (invisible or bent) and not program.hidden_kinks(),
        len(walls),
        gap / float(rho),
        multipliers,
        active,
    )


def _bent(program, u, kinks, gradients, inside):
    """Whether the kinks through `u` have other normals inside this cell than at `u`."""
    if inside is None:
        return False
    _, there = program.switches(u + 1e-5 * np.linalg.norm(u) * inside)
    size = np.linalg.norm(gradients[kinks], axis=1)
    return bool(
        np.any(np.linalg.norm(there[kinks] - gradients[kinks], axis=1) > 1e-3 * size)
    )


def _distinct(normals):
    """Unit normals without repetitions, up to sign."""
    kept: list[np.ndarray] = []
    for a in normals:
        if all(abs(abs(a @ b) - 1) > 1e-10 for b in kept):
            kept.append(a)
    return np.array(kept).reshape(-1, normals.shape[1])


def _insides(walls):
    """A unit direction inside every cell, and whether all cells were found."""
    if len(walls) == 0:
        return [None], True
    patterns = [()]
    for count in range(1, len(walls) + 1):
        patterns = [p + (s,) for p in patterns for s in (1.0, -1.0)]
        patterns = [p for p in patterns if _inside(walls[:count], p) is not None]
        if len(patterns) > _MAX_CELLS:
            return _random_insides(walls), False
    return [_inside(walls, p) for p in patterns], True


def _inside(walls, signs):
    """The deepest direction with these signs, or `None` if the cell is empty."""
    rows = -np.asarray(signs)[:, None] * walls
    k = walls.shape[1]
    solution = linprog(
        np.append(np.zeros(k), -1.0),
        A_ub=np.hstack([rows, np.ones((len(rows), 1))]),
        b_ub=np.zeros(len(rows)),
        bounds=[(-1, 1)] * k + [(None, 1)],
        method="highs",
    )
    if not solution.success or solution.x[-1] < 1e-7:
        return None
    return solution.x[:k] / np.linalg.norm(solution.x[:k])


def _random_insides(walls):
    rng = np.random.default_rng(0)
    found = {}
    for d in rng.standard_normal((20 * _MAX_CELLS, walls.shape[1])):
        found.setdefault(tuple(np.sign(walls @ d)), d / np.linalg.norm(d))
    return list(found.values())[:_MAX_CELLS]


def _gradients(program, u, inside, active):
    """Gradients of the active constraints in one cell, extrapolated to `u`."""
    if inside is None:
        return program.jacobian(u)[active]
    step = 1e-5 * np.linalg.norm(u) * inside
    near, far = program.jacobian(u + step), program.jacobian(u + 2 * step)
    return (2 * near - far)[active]


def _nonnegative(columns, target):
    """Non-negative least squares; columns scaled to unit norm first."""
    size = np.linalg.norm(columns, axis=0)
    size = np.where(size > 0, size, 1.0)
    weights, gap = nnls(columns / size, target, maxiter=100 * max(columns.shape))
    return weights / size, float(gap)


def _cell(program, u, inside, active, gradients, walls, kinks):
    n, k = len(program.values(u)), len(u)
    rho = np.linalg.norm(u)
    oriented = walls if inside is None else np.sign(walls @ inside)[:, None] * walls
    columns = np.concatenate([gradients, oriented]).T
    weights, gap = _nonnegative(columns, u)
    multipliers = np.zeros(n)
    multipliers[active] = weights[: len(active)]
    # Residual r of least squares: -r is feasible to first order, and descends.
    residual = columns @ weights - u
    first_order = gap > KKT_TOL * rho
    at = u if inside is None else u + 1e-5 * rho * inside
    switch_weights = _switch_weights(
        program, u, kinks, oriented, weights[len(active) :]
    )
    hessian = program.hessian(at, multipliers, switch_weights)
    strong = np.linalg.norm(columns, axis=0) * weights > 1e-7 * rho
    basis = _null_space(columns[:, strong].T, k)
    values, vectors = np.linalg.eigh(basis.T @ hessian @ basis)
    vectors = basis @ vectors
    return Cell(
        inside,
        multipliers,
        weights[len(active) :],
        gap / float(rho),
        residual / gap if first_order else None,
        float(values[0]) if len(values) else np.inf,
        vectors[:, values < -CURVATURE_TOL],
        vectors[:, np.abs(values) <= CURVATURE_TOL],
        hessian,
    )


def _switch_weights(program, u, kinks, oriented, weights):
    """Multipliers of the walls, as coefficients of the switches they come from."""
    z, gradients = program.switches(u)
    out = np.zeros(len(z))
    for wall, weight in zip(oriented, weights):
        for j in kinks:
            size = np.linalg.norm(gradients[j])
            cosine = gradients[j] @ wall / size
            if abs(abs(cosine) - 1) < 1e-10:
                out[j] = weight * np.sign(cosine) / size
                break
    return out


def _null_space(rows, k):
    if len(rows) == 0:
        return np.eye(k)
    _, singular, right = np.linalg.svd(rows / np.linalg.norm(rows, axis=1)[:, None])
    rank = int(np.sum(singular > 1e-9))
    return right[rank:].T


def rough_residual(program: MarginProgram, u: np.ndarray) -> float:
    """Relative KKT residual where constraints up to 5 % above one may be active."""
    c, jacobian = program.constraints_and_jacobian(u)
    _, gap = _nonnegative(jacobian[c <= _NEARLY_ACTIVE].T, u)
    return gap / float(np.linalg.norm(u))


def polish(program: MarginProgram, u: np.ndarray) -> np.ndarray:
    """The KKT point next to `u` by Newton's method, or `u` itself if there is none.

    Tried first with the kinks ignored, then held on the kinks that `u` is close to. A
    result farther than a tenth of the norm away, infeasible or with wrong signs is
    dropped.
    """
    z, gradients = program.switches(u)
    size = np.linalg.norm(gradients, axis=1) * np.linalg.norm(u)
    near = np.flatnonzero((np.abs(z) <= 1e-2 * size) & (size > 0))
    for kinks in (near[:0], near) if len(near) else (near,):
        # Of similar examples the farther may look active too: near ones first.
        for largest in (_CLEARLY_ACTIVE, _NEARLY_ACTIVE):
            found = _newton(program, u, kinks, largest)
            if found is not None:
                return found
    return u


def _newton(program, u, kinks, largest):
    c, jacobian = program.constraints_and_jacobian(u)
    candidates = np.flatnonzero(c <= largest)
    weights, _ = _nonnegative(jacobian[candidates].T, u)
    contribution = weights * np.linalg.norm(jacobian[candidates], axis=1)
    active = candidates[contribution > 1e-4 * np.linalg.norm(u)]
    for _ in range(10):
        solution = _solve(program, u, active, kinks)
        if solution is None:
            return None
        v, dual = solution
        wrong = active[dual[: len(active)] < -1e-9]
        missing = np.setdiff1d(np.flatnonzero(program.values(v) < 1 - 1e-9), active)
        if len(wrong) == 0 and len(missing) == 0:
            return v
        active = np.union1d(np.setdiff1d(active, wrong), missing)
    return None


def _solve(program, u, active, kinks):
    """Newton's method with these constraints tight and these switches zero."""
    v = u
    for _ in range(40):
        step, error, _ = _newton_step(program, v, active, kinks)
        if error <= 1e-13 * np.linalg.norm(v):
            break
        v = v - step
        if not np.all(np.isfinite(v)) or np.linalg.norm(v - u) > np.linalg.norm(u) / 10:
            return None
    _, error, dual = _newton_step(program, v, active, kinks)
    return None if error > 1e-9 * np.linalg.norm(v) else (v, dual)


def _newton_step(program, v, active, kinks):
    """The step in `v`, the size of the equations' error, and the multipliers."""
    c, jacobian = program.constraints_and_jacobian(v)
    z, normals = program.switches(v)
    rows = np.concatenate([jacobian[active], normals[kinks]])
    dual, *_ = np.linalg.lstsq(rows.T, v, rcond=1e-12)
    right = np.concatenate([v - rows.T @ dual, c[active] - 1, z[kinks]])
    multipliers, switch_weights = np.zeros(len(c)), np.zeros(len(z))
    multipliers[active] = dual[: len(active)]
    switch_weights[kinks] = dual[len(active) :]
    hessian = program.hessian(v, multipliers, switch_weights)
    zeros = np.zeros((len(rows), len(rows)))
    matrix = np.block([[hessian, -rows.T], [rows, zeros]])
    # Levenberg and Marquardt's damping, as large as the error: the solutions may form a
    # manifold, which this converges to quadratically, at a point nearby.
    error = np.linalg.norm(right)
    damped = np.vstack([matrix, np.sqrt(error) * np.eye(len(matrix))])
    step, *_ = np.linalg.lstsq(damped, np.append(right, np.zeros(len(matrix))), rcond=0)
    return step[: len(v)], error, dual
