"""The check of distances to the decision boundary, at the end of a trajectory."""

import numpy as np

from ._check import Check, at_most, eps_of
from .diagnostics.robustness import lipschitz_bound, robustness

# The examples of least margin, where a search takes a second or two.
_EXAMPLES = 4
_LARGEST = 2**12


def boundary_distance(traj, final) -> Check | None:
    """Saved margins over the Lipschitz constant and a distance found by a search.

    The distance is that of a misclassified point, at which the margin is not positive.
    Absent where no Lipschitz constant is known, or no such point was found.
    """
    problem, theta = final.problem, final.snap.theta
    if "margins" not in traj or max(problem.n, problem.k) > _LARGEST:
        return None
    margins = traj["margins"][-1]
    constant = lipschitz_bound(problem.model(theta), missing=float("nan"))
    chosen = np.argsort(margins)[:_EXAMPLES]
    if not (constant > 0 and margins[chosen[0]] > 0):
        return None
    x, y = problem.x[chosen], problem.y[chosen]
    found = robustness(problem, theta, x, y, lipschitz=constant)
    near = np.isfinite(found.distances) & (found.distances > 0)
    if not near.any():
        return None
    share = margins[chosen[near]] / (constant * found.distances[near])
    return at_most(
        "Lipschitz margin over distance",
        np.max(share),
        1.0,
        "Lyu and Li, Appendix K.2",
        tolerance=max(1e-6, eps_of(traj) ** 0.5),
    )
