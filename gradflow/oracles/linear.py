"""Maximum-margin predictors for linear, deep linear and diagonal linear networks."""

import itertools
import math
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linprog, nnls

from .._problem import Problem

# Vertices tried when the l_p problem with p < 1 is solved by enumeration.
_MAX_VERTICES = 20_000


class MaxMargin(eqx.Module):
    r"""The hard-margin maximum-margin classifier through the origin.

    **Attributes:**

    - `direction`: $\bar u = \arg\max_{\|u\|=1} \min_i y_i\langle u, x_i\rangle$; with
        several classes a matrix $\bar U$ of Frobenius norm one, a row for each.
    - `margin`: $\gamma = \min_i y_i\langle\bar u, x_i\rangle > 0$, in units of `x`, or
        $\min_{i, j\ne y_i}\langle\bar u_{y_i} - \bar u_j, x_i\rangle$.
    - `support`: indices of the examples with a positive multiplier.
    - `multipliers`: $q \ge 0$ with $\sum_i q_i = 1$ and
        $\sum_i q_i y_i x_i = \gamma\bar u$; the nearest point of the convex hull of
        $y_i x_i$ to the origin. With several classes one for each wrong class, shape
        `(n, classes)`.
    """

    direction: Float[np.ndarray, "... d"]
    margin: float
    support: Int[np.ndarray, " support"]
    multipliers: Float[np.ndarray, "n ..."]


def max_margin(x: Any, y: Any) -> MaxMargin:
    r"""Hard-margin maximum-margin classifier without bias, by least squares.

    The dual of $\min \tfrac12\|w\|^2$ s.t. $y_i\langle w, x_i\rangle \ge 1$ is a
    least-distance program; with $Z$ the rows $y_i x_i$ and any $h > 0$ it is
    $\min_{u \ge 0} \|[Z^\top; h 1^\top] u - e_{d+1}\|$. It is solved twice, the second
    time with $h$ equal to the margin, for which the program is well scaled.

    With several classes the constraints are $\langle w_{y_i} - w_j, x_i\rangle \ge 1$
    for every wrong class $j$: rows $(e_{y_i} - e_j)\otimes x_i$ of the same program.

    **Arguments:** `x`, shape `(n, d)`; `y`, shape `(n,)`, holding -1 and +1, or
    classes 0, 1, ... as integers, 0 among them.

    **Returns:** a `MaxMargin`.

    **Raises:** `ValueError` if shapes or labels are wrong, or if no hyperplane through
    the origin separates the examples.

    **Source:** Lawson and Hanson, *Solving Least Squares Problems*, Chapter 23; for
    several classes Lyu and Li, Appendix G (Crammer and Singer 2001, without slack).
    """
    if np.issubdtype(np.asarray(y).dtype, np.integer) and np.min(y, initial=1) == 0:
        return _several_classes(x, np.asarray(y))
    z = signed_examples(x, y)
    size = float(np.max(np.linalg.norm(z, axis=1)))
    if size == 0:
        raise ValueError("`x` is zero in every example: nothing can be separated.")
    return separate(z / size, size)


def _several_classes(x, y) -> MaxMargin:
    x = signed_examples(x, np.ones(len(y)))
    n, (count, d) = len(x), (int(np.max(y)) + 1, x.shape[1])
    if count < 2:
        raise ValueError("`y` holds one class only: there is nothing to separate.")
    pairs = np.argwhere(np.arange(count)[None] != y[:, None])
    codes = np.eye(count)[y[pairs[:, 0]]] - np.eye(count)[pairs[:, 1]]
    z = (codes[:, :, None] * x[pairs[:, 0], None]).reshape(len(pairs), -1)
    size = float(np.max(np.linalg.norm(z, axis=1)))
    found = separate(z / (size or 1.0), size)
    multipliers = np.zeros((n, count))
    multipliers[tuple(pairs.T)] = found.multipliers
    support = np.flatnonzero(multipliers.any(axis=1))
    direction = found.direction.reshape(count, d)
    return MaxMargin(direction, found.margin, support, multipliers)


def separate(z: np.ndarray, size: float = 1.0) -> MaxMargin:
    """The classifier for constraints `z @ w >= 1`; margins are multiplied by `size`."""
    rough = float(np.linalg.norm(least_distance(z, 1.0) @ z))
    q = least_distance(z, max(rough, 1e-13))
    hull_point = q @ z
    margin = float(np.linalg.norm(hull_point))
    direction = hull_point / max(margin, 1e-300)
    worst = float(np.min(z @ direction))
    # Weak duality: the true margin lies between `worst` and `margin`.
    if margin <= 1e-13 or worst < margin * (1 - 1e-3):
        raise ValueError(
            "`x` and `y` cannot be separated by a hyperplane through the origin (best "
            f"margin found {worst * size:.2e}, upper bound {margin * size:.2e}): add a "
            "bias column, or drop the examples in conflict."
        )
    return MaxMargin(direction, worst * size, np.flatnonzero(q > 0), q)


def least_distance(z, h):
    """The weights of the point of the hull of rows `z` nearest to the origin, `(n,)`;
    `h` as in `max_margin`."""
    design = np.vstack([z.T, np.full((1, len(z)), h)])
    target = np.zeros(z.shape[1] + 1)
    target[-1] = 1.0
    u, _ = nnls(design, target, maxiter=100 * max(z.shape))
    total = float(np.sum(u))
    return u / total if total > 0 else np.full(len(z), 1 / len(z))


def signed_examples(x: Any, y: Any) -> np.ndarray:
    """Rows $y_i x_i$ in float64, shape `(n, d)`; checks shapes and labels."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.ndim != 2 or x.shape[0] == 0:
        raise ValueError(f"`x` has shape {x.shape}, expected (n, d): flatten each row.")
    if y.shape != (x.shape[0],):
        raise ValueError(f"`y` has shape {y.shape}, expected ({x.shape[0]},).")
    if not np.all(np.isfinite(x)):
        raise ValueError("`x` holds NaN or infinity: remove those examples.")
    if not np.all(np.abs(y) == 1):
        raise ValueError(f"`y` must hold -1 and +1; got {np.unique(y)[:5].tolist()}.")
    return y[:, None] * x


class DeepLinear(eqx.Module):
    r"""A deep linear network against the best one of its depth.

    **Attributes:**

    - `max_margin`: the `MaxMargin` of the data, margin $\gamma$.
    - `predictor`: $u$ with $\Phi(x) = \langle u, x\rangle$ for the model given.
    - `cosine`: of $u$ and the maximum-margin direction.
    - `normalized_margin`: $\min_i p_i / \|\theta\|^L$ of the model given.
    - `bound`: $\gamma L^{-L/2}$, the largest value it can take.
    """

    max_margin: MaxMargin
    predictor: Float[np.ndarray, " d"]
    cosine: float
    normalized_margin: float
    bound: float


def deep_linear(problem: Problem, model: Any) -> DeepLinear:
    r"""Margin of a deep linear network in predictor space and in parameter space.

    A product of $L$ matrices of Frobenius norms $a_j$ has norm at most
    $\prod_j a_j \le (\|\theta\|^2 / L)^{L/2}$, so no network of depth $L$ has a
    normalised margin above $\gamma L^{-L/2}$; gradient flow attains it.

    **Arguments:** `model`, a module, or flat parameters of shape `(k,)`.

    **Raises:** `ValueError` if the model is not linear in `x`, or not homogeneous, or
    its predictor is zero.

    **Source:** Ji and Telgarsky, Proposition 4.4; Vardi et al., Theorem 3.1.
    """
    if problem.degree is None or problem.x.ndim != 2:
        raise ValueError(
            "`problem` must have a homogeneous model and examples of shape (d,); got "
            f"degree {problem.degree} and `x` of shape {problem.x.shape}."
        )
    theta = problem.theta_of(model)
    margins = np.asarray(problem.margins(theta))
    network = problem.model(theta)
    predict = jax.vmap(lambda x: network(x).reshape(()))
    predictor = np.asarray(predict(np.eye(problem.x.shape[1], dtype=theta.dtype)))
    if not np.any(predictor):
        raise ValueError("`model` has no direction: its predictor is zero.")
    best = max_margin(problem.x, problem.y)
    z = signed_examples(problem.x, problem.y)
    scale = float(np.max(np.abs(margins)))
    if np.max(np.abs(z @ predictor - margins)) > 1e-5 * scale:
        raise ValueError("`model` is not linear in its input: no predictor exists.")
    rho, degree = float(np.linalg.norm(theta)), problem.degree
    return DeepLinear(
        best,
        predictor,
        float(predictor @ best.direction / np.linalg.norm(predictor)),
        float(np.min(margins)) / rho**degree,
        best.margin * degree ** (-degree / 2),
    )


class DiagonalMargin(eqx.Module):
    r"""The predictor of least $\ell_p$ (quasi-)norm with margins at least one.

    **Attributes:**

    - `predictor`: $\beta$, shape `(d,)`, with $\min_i y_i\langle\beta, x_i\rangle = 1$.
    - `power_sum`: $\sum_j |\beta_j|^p$ with $p = 2 / \text{depth}$.
    - `squared_norm`: the least $\|\theta\|^2 = \text{depth}\,\sum_j|\beta_j|^p$ of a
        diagonal network of that depth with margins at least one.
    - `exact`: whether the global optimum is guaranteed; for depth above two the problem
        is not convex, and exact only while all vertices can be enumerated.
    """

    predictor: Float[np.ndarray, " d"]
    power_sum: float
    squared_norm: float
    exact: bool


def diagonal_max_margin(x: Any, y: Any, depth: int = 2) -> DiagonalMargin:
    r"""$\min_\beta \sum_j |\beta_j|^{2/L}$ s.t. $y_i\langle\beta, x_i\rangle \ge 1$.

    Depth two is the $\ell_1$ problem, a linear program. For more layers the objective
    is concave on every orthant, so an optimum lies at a vertex of (polyhedron
    intersected with an orthant); these are enumerated when there are at most 20,000
    candidates, and otherwise searched by reweighted linear programs from several
    starts.

    **Arguments:** `x`, shape `(n, d)`; `y`, -1 and +1; `depth`, $L \ge 1$ layers (one
    layer is the ordinary $\ell_2$ maximum margin).

    **Raises:** `ValueError` for a depth below one or data that cannot be separated.

    **Source:** Gunasekar et al. 2018; Vardi et al., Section 2 and Remark 4.1.
    """
    if depth < 1:
        raise ValueError(f"`depth` must be at least 1; got {depth}.")
    z = signed_examples(x, y)
    if depth == 1:
        best = max_margin(x, y)
        return _diagonal(best.direction / best.margin, depth, True)
    # Tolerances are for features of size one.
    size = float(np.max(np.abs(z))) or 1.0
    beta, exact = _least_power_sum(z / size, depth)
    return _diagonal(beta / size, depth, exact)


def _least_power_sum(z, depth):
    first = _weighted_l1(z, np.ones(z.shape[1]))
    if depth == 2:
        return first, True
    n, d = z.shape
    candidates = sum(
        math.comb(d, size) * math.comb(n, size) for size in range(1, min(n, d) + 1)
    )
    if candidates <= _MAX_VERTICES:
        return _best([first, *_vertices(z)], depth), True
    rng = np.random.default_rng(0)
    starts = [np.ones(d), *rng.uniform(0.1, 10.0, (20, d))]
    return _best([_reweighted(z, w, 2 / depth) for w in starts], depth), False


def _diagonal(beta, depth, exact):
    total = float(np.sum(np.abs(beta) ** (2 / depth)))
    return DiagonalMargin(beta, total, depth * total, exact)


def _best(points, depth):
    return min(points, key=lambda beta: float(np.sum(np.abs(beta) ** (2 / depth))))


def _weighted_l1(z, weights):
    """Least weighted l1 norm with `z @ beta >= 1`, as a linear program in +-parts."""
    n, d = z.shape
    solution = linprog(
        np.concatenate([weights, weights]),
        A_ub=np.hstack([-z, z]),
        b_ub=-np.ones(n),
        bounds=(0, None),
        method="highs",
    )
    if not solution.success:
        raise ValueError(
            "`x` and `y` cannot be separated by a hyperplane through the origin: "
            f"{solution.message}"
        )
    return solution.x[:d] - solution.x[d:]


def _vertices(z):
    """Feasible points fixed by as many tight examples as non-zero coordinates."""
    n, d = z.shape
    for size in range(1, min(n, d) + 1):
        for rows in itertools.combinations(range(n), size):
            for columns in itertools.combinations(range(d), size):
                square = z[np.ix_(rows, columns)]
                if abs(np.linalg.det(square)) < 1e-12:
                    continue
                beta = np.zeros(d)
                beta[list(columns)] = np.linalg.solve(square, np.ones(size))
                if np.min(z @ beta) >= 1 - 1e-9:
                    yield beta


def _reweighted(z, weights, p):
    """Iteratively reweighted l1: each step lowers the concave objective."""
    beta = _weighted_l1(z, weights)
    for _ in range(50):
        size = np.abs(beta)
        new = _weighted_l1(z, (size + 1e-6 * size.max()) ** (p - 1))
        if np.allclose(new, beta, rtol=1e-10, atol=0):
            break
        beta = new
    return beta
