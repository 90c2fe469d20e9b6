"""The best two-layer network of infinite width (Ji and Telgarsky, Prop. 4.3(2)).

Numbered 4.6 in the full version of the paper.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize
from scipy.spatial import ConvexHull

from .._problem import Problem
from .linear import least_distance, signed_examples
from .neurons import dual, neuron_masks, primal


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

    **Raises:** `ValueError` if shapes or labels are wrong.

    **Source:** Ji and Telgarsky, Proposition 4.3(2); Chizat and Bach 2020, eq. (5).
    """
    signed_examples(x, y)  # Raises where shapes or labels are wrong.
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    # Tolerances are for examples of size one.
    size = float(np.max(np.abs(x))) or 1.0
    x = x / size
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
    upper = max(best, value) * size**2
    return InfiniteWidth(value * size**2, upper, atoms[keep], weights[keep], q)


def _signed_program(atoms, x, y):
    features = _features(atoms, x, y)
    features = np.hstack([features, -features])
    value, s = primal(features)
    return value, s, dual(features)[1]


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
    r"""The guarantee of Proposition 4.3(2) for one flow, as stated and sharpened.

    **Attributes:**

    - `infinite_width`: the `InfiniteWidth` optimum, margin $V$, measure $\nu$.
    - `margin`: $\min_i p_i/\|\theta\|^2$ of the limit.
    - `epsilon`: the covering radius: the larger of the neurons' total movement of
        direction and of the largest hole left by either sign's neurons on the sphere.
    - `stated_bound`: $V - 4\epsilon\max_i\|x_i\|^2$ (the paper has $\|x_i\| \le 1$).
    - `cover_loss`, `movement_loss`: what takes the place of the $2\epsilon$ each, see
        `covering_bound`. `bound`: $V$ minus both; never below `stated_bound`.
    - `holds`: whether `margin >= bound`.
    """

    infinite_width: InfiniteWidth
    margin: float
    epsilon: float
    stated_bound: float
    cover_loss: float
    movement_loss: float
    bound: float
    holds: bool


def covering_bound(problem: Problem, start: Any, limit: Any) -> CoveringBound:
    r"""Margin guarantee from how well the neurons at `start` cover the sphere.

    The paper covers the whole sphere to $\epsilon$ and bounds every difference of
    features $\varphi_i$ by $2\epsilon$, which is vacuous ($\epsilon > 1$) at ordinary
    widths. Its proof needs the cover only where the best measure $\nu$ of infinite
    width has its few atoms $\theta'_k$: with $j = j(k)$ any neuron of the atom's sign,

    $$\lim_t\min_i\frac{p_i}{\|\theta\|^2}
    \ge \min_i\sum_k|\nu_k|\varphi_{ij}(\bar\theta_j)
    \ge V - \max_i\sum_k|\nu_k|\bigl(|\varphi_i(\theta'_k) - \varphi_{ij}(\theta_j)|
    + |\varphi_{ij}(\theta_j) - \varphi_{ij}(\bar\theta_j)|\bigr),$$

    with $\theta_j$ its direction at `start` and $\bar\theta_j$ at `limit`. The first
    step is the proposition's first part, as the limit solves the linear program over
    $\bar\theta$. The neuron taken is the one that costs least (or none, which
    costs $\varphi_i(\theta'_k)$); the two sums at the worst example are `cover_loss`
    and `movement_loss`. A neuron that vanishes keeps its last direction here, where the
    paper sets $\bar\theta_j = 0$: its share falls only if it has no place in the
    program.

    The hole left by a set of directions is exact: its deepest point is the normal of a
    facet of their convex hull, or opposite to the hull's nearest point to the origin
    where that is outside (in up to about eight dimensions; time grows quickly).

    **Arguments:** `problem`: two-layer squared ReLU with fixed signs
    (`gf.models.TwoLayer`); `start` and `limit`: the model at time $t_0$ and at the end.

    **Raises:** `ValueError` if the model has another form.

    **Source:** Ji and Telgarsky, Proposition 4.3(2) and its proof in Appendix E (4.6
    in the full version).
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
    x = np.asarray(problem.x, np.float64)
    if first.ndim != 2 or first.shape[1] != x.shape[-1]:
        raise ValueError(
            f"`start` has weights of shape {first.shape}, expected (m, d)."
        )
    first, last = _directions(first), _directions(last)
    signs = _output_signs(problem, first)
    hole = max(covering_radius(first[signs > 0]), covering_radius(first[signs < 0]))
    epsilon = max(hole, float(np.max(np.linalg.norm(first - last, axis=1))))
    theta = problem.theta_of(limit)
    margin = float(np.min(problem.margins(theta))) / float(theta @ theta)
    wide = infinite_width_margin(x, problem.y)
    cover, movement = _transport(wide, x, first, last, signs)
    bound = wide.margin - cover - movement
    radius = float(np.max(np.sum(x**2, axis=1)))
    stated = wide.margin - 4 * epsilon * radius
    return CoveringBound(
        wide, margin, epsilon, stated, cover, movement, bound, margin >= bound
    )


def _directions(weights):
    size = np.linalg.norm(weights, axis=1, keepdims=True)
    return np.where(size > 0, weights / np.where(size > 0, size, 1), 0)


def _transport(wide, x, first, last, signs) -> tuple[float, float]:
    """What each atom's neuron costs by its distance and its movement, summed over the
    atoms, at the example where the sum of both is largest."""

    def features(directions):
        return np.maximum(x @ directions.T, 0) ** 2

    # No neuron, with features zero, comes last: it may serve either sign.
    before, after = (np.pad(features(d), ((0, 0), (0, 1))) for d in (first, last))
    signs = np.append(signs, np.nan)
    movement = np.abs(after - before)
    lost = np.zeros((2, len(x)))
    for atom, weight in zip(features(wide.directions).T, wide.weights):
        cover = np.abs(before - atom[:, None])
        cost = np.where(signs == -np.sign(weight), np.inf, np.max(cover + movement, 0))
        j = np.argmin(cost)
        lost += abs(weight) * np.stack([cover[:, j], movement[:, j]])
    worst = lost[:, np.argmax(lost.sum(axis=0))]
    return float(worst[0]), float(worst[1])


def _output_signs(problem, directions):
    """The fixed sign of each neuron, seen at the input equal to its own direction."""
    masks = neuron_masks(problem)
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
    if d == 1:
        heights = np.array([directions.max(), -directions.min()])
    else:
        heights = -ConvexHull(directions).equations[:, -1]
    if np.min(heights) < 0:  # The origin is outside: opposite its nearest point.
        gap = np.linalg.norm(least_distance(directions, 1.0) @ directions)
        return float(np.sqrt(2 + 2 * gap))
    return float(np.sqrt(np.max(2 - 2 * heights)))
