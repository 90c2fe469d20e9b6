r"""Checks of a final network against programs solved without a flow.

Every bound is weak duality, with $q_i = w_i/\sum w$ as the dual point: the maximum of
a margin program is at most the norm of $\sum_i q_i$ times its $i$-th feature.
"""

import numpy as np

from ._certificate_neurons import neuron_checks
from ._check import Check, at_least, at_most, eps_of
from ._losses import CrossEntropy, Exponential, Logistic
from ._problem import Problem
from .diagnostics.kkt import KKT
from .diagnostics.snapshot import Snapshot
from .models.activations import Identity
from .models.dense import DeepLinear
from .models.sparse import Diagonal
from .oracles.linear import diagonal_max_margin, max_margin
from .oracles.tangent import tangent_svm

# Above this share of weight outside the candidates, no program over them is the whole.
_NEGLECTED = 1e-9
# Constraints of the largest program: beyond, least squares take minutes.
_CONSTRAINTS = 1000


def oracle_checks(
    traj, problem: Problem, snap: Snapshot, kkt: KKT | None
) -> list[Check]:
    """The rows that a separating network of a known kind has."""
    names = {"margins", "rho", "misalignment", "log_radial_gradient"}
    known = isinstance(problem.loss, Exponential | Logistic | CrossEntropy)
    if kkt is None or not known or not names <= set(traj):
        return []
    spread = _spread(kkt)
    found = [_tangent(traj, problem, snap, kkt, spread)]
    if isinstance(problem.loss, CrossEntropy):
        return [row for row in found if row is not None]
    found += neuron_checks(traj, problem, snap, spread)
    model = problem.model(snap.theta)
    if problem.x.ndim == 2 and isinstance(model, DeepLinear):
        best = max_margin(problem.x, problem.y).margin
        found.append(_deep_linear(traj, model, best, spread))
        found.append(_deep_linear_norm(traj, problem, best))
    if isinstance(model, Diagonal) and isinstance(model.activation, Identity):
        found.append(_diagonal(traj, problem))
    return [row for row in found if row is not None]


def _spread(kkt: KKT) -> float:
    r"""$\sum_i q_i p_i / \min_i p_i \ge 1$ over all constraints."""
    q = kkt.explicit.multipliers
    slack = np.where(q > 0, kkt.slack, 0.0)
    return 1 + float(np.sum(q * slack) / np.sum(q))


def _tangent(traj, problem, snap, kkt, spread):
    r"""Distance of $\theta/\rho$ from the SVM $\hat w$ in the features $\nabla p_i$.

    With $\gamma$ its margin, $\lVert\theta/\rho - \hat w\rVert^2 \le
    2(1 - Lp_{\min}/(\rho\gamma))$ and $\gamma \le \lVert\sum_i q_i\nabla p_i\rVert$, so
    the share is at least the cosine of $\theta$ and $G$ (as saved), over
    $\sum_i q_i p_i/p_{\min}$. It tends to 1, and $\theta$ to the SVM. With several
    classes $p$ are the gaps of Appendix G.
    """
    chosen = np.flatnonzero(kkt.candidates.reshape(problem.n, -1).any(axis=1))
    constraints = len(chosen) * (traj.config["classes"] - 1)
    if kkt.neglected_weight > _NEGLECTED or constraints > _CONSTRAINTS:
        return None
    try:
        svm = tangent_svm(problem.on(chosen), problem.model(snap.theta))
    except ValueError:
        return None  # Kinks: gradients of single examples need not separate.
    share = (1 - traj["misalignment"][-1]) / spread
    return at_most(
        "distance to the tangent SVM",
        svm.relative_distance,
        np.sqrt(2 * max(1 - share, 0.0)),
        "Lyu and Li, Corollary 4.5, by weak duality",
        tolerance=max(eps_of(traj) ** 0.4, 1e-5),
    )


def _deep_linear(traj, model, best, spread):
    r"""The margin of the predictor $u = A_1^\top v$, $v^\top = A_L\cdots A_2$, over
    $\gamma\lVert u\rVert$, which Proposition 4.4 has tend to 1.

    $G$ has $vz^\top$, $z = \sum w_i y_i x_i$, for its part in $A_1$, and differs from
    $\theta$ in direction by $\epsilon = \sqrt{2(1 - \cos)}$. So $u$ is a multiple of
    $z$ up to $\rho\epsilon\lVert v\rVert$, which bounds the sine of their angle, and
    $\gamma \le \lVert z\rVert/\sum w$ gives a share of at least the cosine over
    $\sum_i q_i p_i/p_{\min}$.
    """
    first, *others = (np.asarray(layer.weight, np.float64) for layer in model.layers)
    v = np.ones(1)
    for matrix in reversed(others):
        v = v @ matrix
    norm = float(np.linalg.norm(v @ first))
    sine = np.sqrt(2 * traj["misalignment"][-1]) * np.linalg.norm(v) / norm
    sine = float(sine * traj["rho"][-1])
    if not sine < 1:
        return None  # Too early: nothing follows.
    return at_least(
        "margin reached by the product",
        float(np.min(traj["margins"][-1])) / (best * norm),
        np.sqrt(1 - sine**2) / spread,
        "Ji and Telgarsky, Proposition 4.4, by weak duality",
        tolerance=max(1e-9, eps_of(traj) ** 0.7),
    )


def _deep_linear_norm(traj, problem, best):
    r"""$p_{\min}/\rho^L$ over its maximum $\gamma L^{-L/2}$, which the flow attains."""
    depth = problem.degree
    margin = float(np.min(traj["margins"][-1])) / traj["rho"][-1] ** depth
    return at_most(
        "margin over the deep linear maximum",
        margin * depth ** (depth / 2) / best,
        1.0,
        "Vardi et al., Theorem 3.1, by least squares",
        tolerance=max(1e-9, eps_of(traj) ** 0.7),
    )


def _diagonal(traj, problem):
    r"""$p_{\min}/\rho^L$ over its maximum $(L\sum_j|\beta_j|^{2/L})^{-L/2}$.

    A KKT point need not be a local maximum here (Vardi et al., Theorem 4.1), so that
    there is no lower bound.
    """
    depth = int(problem.degree)
    best = diagonal_max_margin(problem.x, problem.y, depth)
    if not best.exact:
        return None
    margin = float(np.min(traj["margins"][-1])) / traj["rho"][-1] ** depth
    return at_most(
        "margin over the diagonal maximum",
        margin * best.squared_norm ** (depth / 2),
        1.0,
        "Vardi et al., Section 2, by linear programs",
        tolerance=max(1e-7, eps_of(traj) ** 0.7),
    )
