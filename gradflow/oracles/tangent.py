"""The support vector machine with the tangent kernel at a model."""

from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Float, Int

from .._losses import CrossEntropy
from .._problem import Problem
from .._tangent_kernel import tangent_kernel
from .linear import separate


class TangentSVM(eqx.Module):
    r"""Maximum margin in the features $\nabla p_i(\theta)$, compared with $\theta$.

    **Attributes:**

    - `cosine`: of $\theta$ and the solution $w = \sum_i q_i\nabla p_i$; one at a KKT
        point of the margin problem.
    - `angle`: the same in radians, accurate when small.
    - `relative_distance`: $\|w / \|w\| - \theta/\|\theta\|\,\|$.
    - `margin`: the largest $\min_i\langle u, \nabla p_i\rangle$ over unit $u$.
    - `multipliers`: $q \ge 0$, summing to one. `support`: where they are positive.
    """

    cosine: float
    angle: float
    relative_distance: float
    margin: float
    multipliers: Float[np.ndarray, " n"]
    support: Int[np.ndarray, " support"]


def tangent_svm(problem: Problem, model: Any, *, batch_size: int = 256) -> TangentSVM:
    r"""Hard-margin SVM (no bias) with the tangent kernel at `model`.

    Solves $\min\tfrac12\|w\|^2$ s.t. $\langle w, \nabla p_i(\theta)\rangle \ge 1$ in
    the kernel alone: features are a square root of $K = PP^\top$, and with Euler's
    identity $P\theta = L p$ the cosine with $\theta$ is
    $L\langle q, p\rangle / (\|\theta\|\sqrt{q^\top K q})$.

    **Raises:** `ValueError` if the problem is not homogeneous or has more than two
    classes, or the features cannot be separated (they can wherever all margins are
    positive).

    **Source:** Lyu and Li, Corollary 4.5 and Lemma C.13.
    """
    if problem.degree is None:
        raise ValueError(
            "`problem` must be homogeneous: Corollary 4.5 needs its degree."
        )
    if isinstance(problem.loss, CrossEntropy):
        raise ValueError(
            "`problem` must have labels -1 and +1: with several classes an example has "
            "a constraint for each wrong class, of which the margin is the least."
        )
    theta = problem.theta_of(model)
    p = np.asarray(problem.margins(theta), np.float64)
    kernel = np.asarray(
        tangent_kernel(problem, model, batch_size=batch_size), np.float64
    )
    values, vectors = np.linalg.eigh(kernel)
    keep = values > values[-1] * 1e-15 * len(p)
    features = vectors[:, keep] * np.sqrt(values[keep])
    size = float(np.max(np.linalg.norm(features, axis=1)))
    svm = separate(features / size, size)
    q = svm.multipliers
    rho = float(np.linalg.norm(theta))
    norm = float(np.linalg.norm(q @ features))
    cosine = problem.degree * float(q @ p) / (rho * norm)
    distance = float(np.sqrt(max(2 - 2 * cosine, 0.0)))
    angle = 2 * float(np.arcsin(min(distance / 2, 1.0)))
    return TangentSVM(cosine, angle, distance, svm.margin, q, svm.support)
