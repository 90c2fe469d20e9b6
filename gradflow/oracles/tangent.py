"""The support vector machine with the tangent kernel at a model."""

from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Float, Int

from .._problem import Problem
from .._tangent_kernel import gram
from ..diagnostics.common import constraint_values, margin_gradients
from .linear import separate


class TangentSVM(eqx.Module):
    r"""Maximum margin in the features $\nabla p_i(\theta)$, compared with $\theta$.

    **Attributes:**

    - `cosine`: of $\theta$ and the solution $w = \sum_i q_i\nabla p_i$; one at a KKT
        point of the margin problem.
    - `angle`: the same in radians, accurate when small.
    - `relative_distance`: $\|w / \|w\| - \theta/\|\theta\|\,\|$.
    - `margin`: the largest $\min_i\langle u, \nabla p_i\rangle$ over unit $u$.
    - `multipliers`: $q \ge 0$, summing to one, shape `(n,)`, or `(n, classes)` with
        zeros at the labels. `support`: the examples where they are positive.
    """

    cosine: float
    angle: float
    relative_distance: float
    margin: float
    multipliers: Float[np.ndarray, "n ..."]
    support: Int[np.ndarray, " support"]


def tangent_svm(problem: Problem, model: Any, *, batch_size: int = 256) -> TangentSVM:
    r"""Hard-margin SVM (no bias) with the tangent kernel at `model`.

    Solves $\min\tfrac12\|w\|^2$ s.t. $\langle w, \nabla p_i(\theta)\rangle \ge 1$ in
    the kernel alone: features are a square root of $K = PP^\top$; only $w = P^\top q$
    is summed over rows of $P$, `batch_size` at a time. With several classes there is a
    row and a constraint for each example and wrong class, $p$ being the gaps
    $\Phi_{y_i} - \Phi_j$; the kernel has $(n (C - 1))^2$ entries.

    **Raises:** `ValueError` if the problem is not homogeneous, its model couples
    examples or is zero, or the features cannot be separated (they can wherever all
    margins are positive).

    **Source:** Lyu and Li, Corollary 4.5, Lemma C.13 and Appendix G.
    """
    if problem.degree is None:
        raise ValueError(
            "`problem` must be homogeneous: Corollary 4.5 needs its degree."
        )
    theta = problem.theta_of(model)
    if not np.any(theta):
        raise ValueError("`model` has no direction: all its parameters are zero.")
    gaps = np.asarray(constraint_values(problem, theta), np.float64)
    pairs = np.argwhere(np.isfinite(gaps))
    classes = pairs[:, 1] if gaps.ndim > 1 else np.zeros(len(pairs), int)

    def rows(part):
        return margin_gradients(problem, theta, pairs[part, 0], classes[part])

    kernel = np.asarray(gram(rows, len(pairs), batch_size), np.float64)
    values, vectors = np.linalg.eigh(kernel)
    keep = values > values[-1] * 1e-15 * len(pairs)
    features = vectors[:, keep] * np.sqrt(values[keep])
    size = float(np.max(np.linalg.norm(features, axis=1)))
    svm = separate(features / size, size)
    q = svm.multipliers
    rho = float(np.linalg.norm(theta))
    w = np.zeros(problem.k)
    for start in range(0, len(pairs), batch_size):
        part = slice(start, start + batch_size)
        w += q[part] @ rows(part)
    # By the cosine itself a distance below the root of rounding would be lost.
    between = w / np.linalg.norm(w) - np.asarray(theta, np.float64) / rho
    distance = float(np.linalg.norm(between))
    angle = 2 * float(np.arcsin(min(distance / 2, 1.0)))
    cosine = 1 - distance**2 / 2
    multipliers = np.zeros(gaps.shape)
    multipliers[np.isfinite(gaps)] = q
    support = np.unique(pairs[svm.support, 0])
    return TangentSVM(cosine, angle, distance, svm.margin, multipliers, support)
