r"""How nearly a point satisfies the KKT conditions of the margin problem.

Problem (P) of Lyu and Li is $\min\tfrac12\lVert\theta\rVert^2$ subject to
$p_i(\theta) \ge 1$. Everything here speaks of the point of a ray that is just feasible,
$\hat\theta = \theta / p_{\min}(\theta)^{1/L}$.
"""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Bool, Float, Int
from scipy.optimize import nnls

from .._compile import jitted
from .._problem import Problem
from .common import (
    constraint_values,
    margin_gradients,
    need_degree,
    point,
)
from .snapshot import Snapshot, weights

_SLACK_WEIGHT = 1e-3


class Multipliers(eqx.Module):
    r"""Multipliers $\lambda$ and their residuals.

    **Attributes:**

    - `multipliers`: $\lambda \ge 0$, one per constraint: shape `(n,)`, or
        `(n, classes)` with zeros at the labels.
    - `epsilon`: $\lVert\hat\theta - \sum\lambda\nabla p(\hat\theta)\rVert$.
    - `delta`: $\max\lambda_i (p_i(\hat\theta) - 1)$.
    """

    multipliers: Float[np.ndarray, "n ..."]
    epsilon: float
    delta: float


class KKT(eqx.Module):
    r"""How nearly a point is a KKT point; see `kkt`.

    **Attributes:**

    - `multipliers`, `epsilon`, `delta`: the best ones, as in `Multipliers`. The point
        $\hat\theta$ is an $(\varepsilon, \delta)$-KKT point in Lyu and Li's sense
        (Definition C.6).
    - `explicit`: the same for Lyu and Li's explicit multipliers, without any choice.
    - `norm`: $\lVert\hat\theta\rVert$ (with several blocks, the norm of the objective's
        gradient), which `epsilon` is to be compared with.
    - `point`: $\hat\theta$, flat, shape `(k,)`.
    - `slack`: $p_i(\hat\theta) - 1 \ge 0$, shape of `multipliers`, infinite at labels.
    - `candidates`: which constraints could get a multiplier at all.
    - `neglected_weight`: share of the loss weights that lies outside `candidates`.
    """

    multipliers: Float[np.ndarray, "n ..."]
    epsilon: float
    delta: float
    explicit: Multipliers
    norm: float
    point: Float[np.ndarray, " k"]
    slack: Float[np.ndarray, "n ..."]
    candidates: Bool[np.ndarray, "n ..."]
    neglected_weight: float

    @property
    def relative_epsilon(self) -> float:
        """`epsilon / norm`, which does not depend on the data's units."""
        return self.epsilon / self.norm

    @property
    def support(self) -> Int[np.ndarray, " m"]:
        """Examples with a positive multiplier."""
        positive = self.multipliers > 0
        return np.flatnonzero(positive.reshape(len(positive), -1).any(axis=1))


def kkt(
    problem: Problem,
    model: Any,
    *,
    multi_homogeneous: bool = False,
    threshold: float = 1e-12,
    max_rows: int = 4000,
) -> KKT:
    r"""$(\varepsilon, \delta)$-residuals of the KKT conditions of the margin problem.

    For two classes the problem is (P), $\min\tfrac12\lVert\theta\rVert^2$ with
    $p_i(\theta) \ge 1$; for several (Appendix G) the constraints are $s_{ij} =
    \Phi_{y_i} - \Phi_j \ge 1$ for all $j \ne y_i$. The point is
    $\hat\theta = \theta/p_{\min}^{1/L}$ and, with $w_i = -\ell'(p_i)/L$ and
    $G = \sum w_i\nabla p_i$, the explicit multipliers are

    $$\lambda_i = p_{\min}^{1 - 2/L}\,\lVert\theta\rVert\,w_i/\lVert G\rVert,$$

    for which $\varepsilon^2 = 2 p_{\min}^{-2/L}\lVert\theta\rVert^2(1 - \cos)$, with
    the cosine of $\theta$ and $G$. The best multipliers minimise, by non-negative
    least squares over `candidates`,

    $$\varepsilon^2 + 10^{-6}\sum_i\bigl(\lambda_i(p_i(\hat\theta) - 1)\bigr)^2
    / \lVert\hat\theta\rVert^2,$$

    where the small second term decides between multipliers that serve $\varepsilon$
    equally well in favour of a small $\delta$.

    With `multi_homogeneous` the margin is normalised by $\prod\rho_b^{k_b}$ over the
    layers of the problem (Appendix H), so the problem is to minimise
    $\tfrac12\prod\lVert v_b\rVert^{2k_b/L}$ under the same constraints. It does not
    depend on how the norm is shared; the point $\hat\theta$ shares it equally. For one
    layer it is (P).

    **Arguments:**

    - `model`: a module, or flat parameters of shape `(k,)`.
    - `threshold`: constraints of smaller relative loss weight are no candidates.
    - `max_rows`: at most so many candidates, those of largest weight; the matrix of
        least squares has `max_rows * k` entries.

    **Raises:** `ValueError` for a model without degree, for one that does not classify
    all examples correctly (no multiple of it is feasible), or that couples examples.

    **Source:** Lyu and Li, Definition C.6, Lemma C.8, Appendices G and H.
    """
    need_degree(problem, "kkt")
    theta = problem.theta_of(model)
    snap = point(problem, theta)
    gaps = constraint_values(problem, theta)
    values = np.asarray(gaps, np.float64)
    weight = np.asarray(_loss_weight(snap, gaps), np.float64)
    smallest = float(np.min(values))
    if not smallest > 0:
        raise ValueError(
            f"`model` has margin {smallest:.3g} on its worst example, so no multiple "
            "of it is feasible: use a model that classifies all examples correctly."
        )
    geometry = _geometry(problem, theta, smallest, multi_homogeneous)
    slack = values / smallest - 1
    pull = np.asarray(snap.direction, np.float64) * geometry.pull
    unit = np.linalg.norm(geometry.target) / np.linalg.norm(pull)
    explicit = Multipliers(
        weight * unit,
        float(np.linalg.norm(geometry.target - pull * unit)),
        _delta(weight * unit, slack),
    )
    candidates = _candidates(weight, threshold, max_rows)
    multipliers, epsilon = _best(problem, geometry, candidates, slack)
    return KKT(
        multipliers=multipliers,
        epsilon=epsilon,
        delta=_delta(multipliers, slack),
        explicit=explicit,
        norm=float(np.linalg.norm(geometry.target)),
        point=geometry.point,
        slack=slack,
        candidates=candidates,
        neglected_weight=float(np.sum(weight[~candidates]) / np.sum(weight)),
    )


@jitted
def _loss_weight(
    snap: Snapshot, values: Float[Array, "n ..."]
) -> Float[Array, "n ..."]:
    """Each constraint's loss weight; `values` are infinite at the labels."""
    weight = weights(snap)
    if values.ndim > 1:
        # The gradient of the soft margin -ln sum e^-s is a softmax of theirs.
        share = jnp.exp(-values - logsumexp(-values, axis=1, keepdims=True))
        weight = weight[:, None] * share
    return weight


class _Geometry(NamedTuple):
    point: Float[np.ndarray, " k"]
    target: Float[np.ndarray, " k"]
    pull: Float[np.ndarray, " k"]


def _geometry(problem, theta, smallest, multi_homogeneous) -> _Geometry:
    """The just feasible point, the gradient of the objective there, and the factor
    that turns the direction G at `theta` into sum w grad p at the point."""
    theta = np.asarray(theta, np.float64)
    total = need_degree(problem, "kkt")
    degrees = [total]
    parts = [np.arange(problem.k)]
    if multi_homogeneous:
        parts = [np.asarray(p) for p in problem.split_layers(jnp.arange(problem.k))]
        degrees = problem.layer_degrees
    norms = [float(np.linalg.norm(theta[part])) for part in parts]
    if min(norms) == 0:
        raise ValueError("`model` has a layer that is all zero.")
    # The margin at unit layer norms, whose power gives the common norm.
    unit_margin = smallest * math.prod(r**-k for r, k in zip(norms, degrees))
    common = unit_margin ** (-1 / total)
    scale, share = np.empty_like(theta), np.empty_like(theta)
    for part, norm, degree in zip(parts, norms, degrees):
        scale[part] = common / norm
        share[part] = degree / total
    at = theta * scale
    return _Geometry(at, at * share, 1 / (smallest * scale))


def _candidates(weight, threshold, max_rows):
    flat = weight.ravel()
    keep = flat > threshold * np.max(flat)
    if np.sum(keep) > max_rows:
        keep = np.zeros_like(keep)
        keep[np.argsort(flat)[-max_rows:]] = True
    return keep.reshape(weight.shape)


def _best(problem, geometry, candidates, slack):
    index = np.argwhere(candidates)
    classes = index[:, 1] if index.shape[1] > 1 else np.zeros(len(index), int)
    at = jnp.asarray(geometry.point, problem.theta.dtype)
    rows = margin_gradients(problem, at, index[:, 0], classes).astype(np.float64)
    norm = float(np.linalg.norm(geometry.target))
    found = nonnegative_combination(
        rows, geometry.target, _SLACK_WEIGHT / norm * slack[candidates]
    )
    multipliers = np.zeros(candidates.shape)
    multipliers[candidates] = found
    return multipliers, float(np.linalg.norm(geometry.target - found @ rows))


def nonnegative_combination(
    rows: Float[np.ndarray, "m k"],
    target: Float[np.ndarray, " k"],
    penalty: Float[np.ndarray, " m"],
) -> Float[np.ndarray, " m"]:
    r"""$\lambda\ge0$ that minimises $\lVert\text{target} -
    \lambda^\top\text{rows}\rVert^2 + \sum(\text{penalty}_i\lambda_i)^2$.

    By Lawson and Hanson's algorithm, on rows of unit length and after a QR
    decomposition where there are fewer rows than columns.
    """
    lengths = np.linalg.norm(rows, axis=1)
    lengths = np.where(lengths > 0, lengths, 1)
    matrix = (rows / lengths[:, None]).T
    if matrix.shape[0] > matrix.shape[1]:
        basis, matrix = np.linalg.qr(matrix)
        target = basis.T @ target
    matrix = np.concatenate([matrix, np.diag(penalty / lengths)])
    target = np.concatenate([target, np.zeros(len(rows))])
    found, _ = nnls(matrix, target, maxiter=30 * len(rows))
    return found / lengths


def _delta(multipliers, slack):
    # At a label the slack is infinite and the multiplier zero.
    product = np.where(multipliers > 0, multipliers, 0) * np.where(
        np.isfinite(slack), slack, 0
    )
    return float(np.max(product))
