"""Margin programs over the neurons of two-layer networks (Ji and Telgarsky, Prop. 4.3).

Numbered 4.6 in the full version of the paper.
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy.optimize import linprog, minimize
from scipy.spatial import ConvexHull

from .._problem import Problem


class NeuronProgram(eqx.Module):
    r"""The saddle-point problem over the directions of a network's neurons.

    **Attributes:**

    - `primal`: $\max_{s\in\Delta_m}\min_i\sum_j s_j\varphi_{ij}(\bar\theta_j)$.
    - `dual`: $\min_{q\in\Delta_n}\max_j\sum_i q_i\varphi_{ij}(\bar\theta_j)$, solved on
        its own. `gap`: dual - primal, zero up to the programs' tolerance.
    - `margin`: $\min_i p_i/\|\theta\|^2$ of the model; equal to `primal` in the limit.
    - `weights`: the optimal $s$. `shares`: the model's own $\|w_j\|^2/\|\theta\|^2$.
    - `multipliers`: the optimal $q$.
    - `features`: $\varphi_{ij}$, shape `(n, m)`; zero for neurons that died.
    """

    primal: float
    dual: float
    gap: float
    margin: float
    weights: Float[np.ndarray, " m"]
    shares: Float[np.ndarray, " m"]
    multipliers: Float[np.ndarray, " n"]
    features: Float[np.ndarray, "n m"]


def neuron_program(
    problem: Problem, model: Any, *, dead: float = 1e-3
) -> NeuronProgram:
    r"""Linear program of Proposition 4.3(1) at the neuron directions of `model`.

    A neuron is a row of the only trained matrix (signs fixed), or a row of the first
    and the matching weight of the second of two trained arrays. Its feature is
    $\varphi_{ij} = p_i(\text{neuron } j \text{ alone}) / \|w_j\|^2$.

    **Arguments:** `problem`, homogeneous of degree 2 with labels -1 and +1; `model`, a
    two-layer module built like the problem's; `dead`: neurons with
    $\|w_j\|^2 < \text{dead}\,\|\theta\|^2$ count as vanished, $\bar\theta_j = 0$.

    **Raises:** `ValueError` if the degree is not 2, or the margins are not the sum of
    the neurons' own.

    **Source:** Ji and Telgarsky, Proposition 4.3(1) (4.6 in the full version).
    """
    if problem.degree != 2:
        raise ValueError(
            "`problem` must be homogeneous of degree 2 (squared ReLU with fixed signs, "
            f"or two trained layers); its degree is {problem.degree}."
        )
    theta = problem.theta_of(model)
    masks = _neuron_masks(problem)
    alone = np.asarray(
        jax.lax.map(lambda mask: problem.margins(theta * mask), masks), np.float64
    ).T
    margins = np.asarray(problem.margins(theta), np.float64)
    scale = float(np.max(np.abs(alone).sum(axis=1)))
    if np.max(np.abs(alone.sum(axis=1) - margins)) > 1e-5 * scale:
        raise ValueError(
            "`model` is not a sum of neurons: its margins are not the sum of those of "
            "each row of its first trained array alone."
        )
    squares = np.asarray(masks @ theta**2, np.float64)
    shares = squares / squares.sum()
    alive = shares >= dead
    features = np.where(alive, alone / np.where(alive, squares, 1.0), 0.0)
    primal, s = _primal(features)
    dual, q = _dual(features)
    margin = float(np.min(margins)) / float(squares.sum())
    return NeuronProgram(primal, dual, dual - primal, margin, s, shares, q, features)


def _neuron_masks(problem):
    """One mask over the flat parameters per neuron, shape `(m, k)`."""
    layout, rows = problem.layout, problem.layout.shapes[0]
    width = rows[0]
    owner = np.full(problem.k, -1)
    if len(rows) == 2:
        owner[: math.prod(rows)] = np.repeat(np.arange(width), rows[1])
    if len(layout.shapes) == 2 and math.prod(layout.shapes[1]) == width:
        owner[layout.offsets[1] :] = np.arange(width)
    if np.any(owner < 0):
        raise ValueError(
            "`problem` must train one matrix of neurons, or one and a weight for each; "
            f"it trains {dict(zip(layout.names, layout.shapes))}."
        )
    masks = owner == np.arange(width)[:, None]
    return jnp.asarray(masks, problem.theta.dtype)


def _primal(features):
    n, m = features.shape
    solution = linprog(
        np.append(np.zeros(m), -1.0),
        A_ub=np.hstack([-features, np.ones((n, 1))]),
        b_ub=np.zeros(n),
        A_eq=np.append(np.ones(m), 0.0)[None],
        b_eq=[1.0],
        bounds=[(0, None)] * m + [(None, None)],
        method="highs",
    )
    return -float(solution.fun), solution.x[:m]


def _dual(features):
    n, m = features.shape
    solution = linprog(
        np.append(np.zeros(n), 1.0),
        A_ub=np.hstack([features.T, -np.ones((m, 1))]),
        b_ub=np.zeros(m),
        A_eq=np.append(np.ones(n), 0.0)[None],
        b_eq=[1.0],
        bounds=[(0, None)] * n + [(None, None)],
        method="highs",
    )
    return float(solution.fun), solution.x[:n]


class InfiniteWidth(eqx.Module):
    r"""$\max_\nu\min_i y_i\int\max\{0,\langle x_i,\theta\rangle\}^2\,d\nu(\theta)$.

    Over signed measures $\nu$ of mass at most one on the sphere.

    **Attributes:** `margin`, attained by the atoms found, a lower bound of the value;
    `upper`, $\max_\theta|\sum_i q_i\varphi_i(\theta)|$ for the dual weights found, an
    upper bound as far as the maximum over the sphere is found (densely scanned in the
    plane, by many local searches beyond); `directions`, `weights` (signed): the atoms;
    `multipliers`, $q$.
    """

    margin: float
    upper: float
    directions: Float[np.ndarray, "atoms d"]
    weights: Float[np.ndarray, " atoms"]
    multipliers: Float[np.ndarray, " n"]


def infinite_width_margin(x: Any, y: Any, *, rounds: int = 30) -> InfiniteWidth:
    r"""Best margin of a squared-ReLU network of infinite width, by column generation.

    Starting from a cover of the sphere, each round solves the linear program over the
    directions so far and adds those where $|\sum_i q_i\varphi_i|$ is largest, until no
    direction improves by more than 1e-9 relative.

    **Arguments:** `x`, shape `(n, d)`; `y`, -1 and +1; `rounds`, at most so many.

    **Source:** Ji and Telgarsky, Proposition 4.3(2); Chizat and Bach 2020, eq. (5).
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    directions = _scan(x.shape[1])
    atoms = directions[:: len(directions) // 300]
    value, s, q = _signed_program(atoms, x, y)
    best, found = _steepest(q, x, y, directions)
    for _ in range(rounds):
        if best <= value + 1e-9 * abs(value):
            break
        atoms = np.vstack([atoms, found])
        value, s, q = _signed_program(atoms, x, y)
        best, found = _steepest(q, x, y, directions)
    weights = s[: len(atoms)] - s[len(atoms) :]
    keep = np.abs(weights) > 1e-12
    return InfiniteWidth(value, max(best, value), atoms[keep], weights[keep], q)


def _signed_program(atoms, x, y):
    features = _features(atoms, x, y)
    features = np.hstack([features, -features])
    value, s = _primal(features)
    return value, s, _dual(features)[1]


def _features(directions, x, y):
    r"""$\varphi_i(\theta) = y_i\max(0, \langle x_i, \theta\rangle)^2$, `(n, m)`."""
    return y[:, None] * np.maximum(x @ directions.T, 0) ** 2


def _scan(d):
    if d == 2:
        angle = np.linspace(0, 2 * np.pi, 20_000, endpoint=False)
        return np.stack([np.cos(angle), np.sin(angle)], axis=1)
    points = np.random.default_rng(0).standard_normal((4000, d))
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def _steepest(q, x, y, directions):
    """The largest $|\\sum_i q_i\\varphi_i|$ found, and local maximisers near it."""
    values = np.abs(q @ _features(directions, x, y))

    def negative(w, sign):
        u = w / np.linalg.norm(w)
        z = np.maximum(x @ u, 0)
        grad = 2 * sign * (q * y * z) @ x
        grad = (grad - u * (u @ grad)) / np.linalg.norm(w)
        return -sign * float(q @ (y * z**2)), -grad

    found, best = [], 0.0
    for index in np.argsort(values)[-20:]:
        start = directions[index]
        sign = float(np.sign(q @ _features(start[None], x, y)[:, 0]))
        result = minimize(negative, start, (sign,), jac=True, method="BFGS", tol=1e-12)
        found.append(result.x / np.linalg.norm(result.x))
        best = max(best, -float(result.fun))
    return best, np.array(found)


class CoveringBound(eqx.Module):
    r"""The guarantee of Proposition 4.3(2) for one flow.

    **Attributes:**

    - `epsilon`: the covering radius: the larger of the neurons' total movement of
        direction and of the largest hole left by either sign's neurons on the sphere.
    - `infinite_width`: the `InfiniteWidth` optimum.
    - `margin`: $\min_i p_i/\|\theta\|^2$ of the limit.
    - `bound`: infinite-width margin $- 4\epsilon\max_i\|x_i\|^2$ (the paper has
        $\|x_i\| \le 1$); vacuous while negative.
    - `holds`: whether `margin >= bound`.
    """

    epsilon: float
    infinite_width: InfiniteWidth
    margin: float
    bound: float
    holds: bool


def covering_bound(problem: Problem, start: Any, limit: Any) -> CoveringBound:
    r"""Margin guarantee from how well the neurons at `start` cover the sphere.

    The hole left by a set of directions is exact: its deepest point is the normal of a
    facet of their convex hull (in up to about eight dimensions; time grows quickly).

    **Arguments:** `problem`: two-layer squared ReLU with fixed signs
    (`gf.models.TwoLayer`); `start` and `limit`: the model at time $t_0$ and at the end.

    **Raises:** `ValueError` if the model has another form.

    **Source:** Ji and Telgarsky, Proposition 4.3(2) (4.6 in the full version).
    """
    if problem.degree != 2 or len(problem.layout.shapes) != 1:
        raise ValueError(
            "`problem` must be a two-layer squared-ReLU network with fixed signs; it "
            f"has degree {problem.degree} and trains {problem.layout.names}."
        )
    first, last = (
        np.asarray(problem.layout.split(problem.theta_of(m))[0], np.float64)
        for m in (start, limit)
    )
    if first.ndim != 2 or first.shape[1] != problem.x.shape[-1]:
        raise ValueError(
            f"`start` has weights of shape {first.shape}, expected (m, d)."
        )
    first = first / np.linalg.norm(first, axis=1, keepdims=True)
    size = np.linalg.norm(last, axis=1, keepdims=True)
    last = np.where(size > 0, last / np.where(size > 0, size, 1), 0)
    signs = _output_signs(problem, first)
    hole = max(covering_radius(first[signs > 0]), covering_radius(first[signs < 0]))
    epsilon = max(hole, float(np.max(np.linalg.norm(first - last, axis=1))))
    theta = problem.theta_of(limit)
    margin = float(np.min(problem.margins(theta))) / float(theta @ theta)
    wide = infinite_width_margin(problem.x, problem.y)
    radius = float(np.max(np.sum(np.asarray(problem.x) ** 2, axis=1)))
    bound = wide.margin - 4 * epsilon * radius
    return CoveringBound(epsilon, wide, margin, bound, margin >= bound)


def _output_signs(problem, directions):
    """The fixed sign of each neuron, seen at the input equal to its own direction."""
    masks = _neuron_masks(problem)
    theta = jnp.asarray(directions, problem.theta.dtype).ravel()

    def own(mask, x):
        return problem.model(theta * mask)(x).reshape(())

    return np.sign(np.asarray(jax.vmap(own)(masks, theta.reshape(directions.shape))))


def covering_radius(directions: Float[np.ndarray, "m d"]) -> float:
    """Largest Euclidean distance of a point of the sphere from these unit vectors.

    Two, the diameter, if there are too few of them to span the space.
    """
    m, d = directions.shape
    if m < d + 1 or np.linalg.matrix_rank(directions - directions.mean(axis=0)) < d:
        return 2.0
    # A facet `n @ x + c <= 0` sees no vertex beyond height -c on its own side.
    heights = -ConvexHull(directions).equations[:, -1]
    return float(np.sqrt(np.max(2 - 2 * heights)))
