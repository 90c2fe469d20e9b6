r"""Does the path length of $\theta/\rho$ converge?

Along the flow $d\zeta/d\ln\rho = \tan\angle(\theta, -\nabla L)$, so the length is
finite if the tangent, over $x = \ln(\rho/\rho_1)$ since separation, falls faster than
$1/x$, and infinite if it falls more slowly. For definable models it is finite.
"""

import numpy as np

from ._check import Check, after_separation, eps_of
from .diagnostics.rates import power

_NAME = "path length to come"
_SOURCE = "Ji and Telgarsky, Theorem 3.1 (definable models)"
# The norm's growth since separation from which a slow fall is held against a flow: by
# then parts of theta that stopped moving, a share of 1/rho, have a power of 2.
_LONG = 2.0


def path_check(traj) -> Check | None:
    r"""The tail of the path length, infinite (and failed) if it does not converge.

    With the tangent falling like $\rho^{-a}$ over the last decade of $\rho^L$, the
    tail is $\tan/a$, and the local power of $1/x$ is $ax$: the length converges if the
    whole interval of $ax$ lies above 1, and does not if it lies below. Between the
    two, or before $x = 2$, nothing can be said, and there is no row. Speeds can change
    after the end of any run, so this is said of the run, not of what follows it.
    """
    names = {"rho", "smoothed_margin", "log_radial_gradient", "log_spherical_gradient"}
    late = np.flatnonzero(after_separation(traj))
    degree = traj.config["degree"]
    if not degree or not names <= set(traj) or not len(late):
        return None
    x = np.log(traj["rho"][late] / traj["rho"][late[0]])
    log_tan = traj["log_spherical_gradient"][late] - traj["log_radial_gradient"][late]
    if log_tan[-1] <= np.log(1e3 * eps_of(traj)):
        return Check(_NAME, 0.0, "finite", 0.0, True, _SOURCE)  # Rounding alone moves.
    # Of a small degree, where rho grew by two decades and rho^L did not, the power of
    # 1/x is fitted itself.
    small = degree * x[-1] < 2 * np.log(10) < x[-1]
    try:
        found = power(x if small else np.exp(degree * x), log_tan)
    except ValueError:
        return None  # Too few saved points.
    slow, best, fast = -np.array(
        [found.interval[1], found.exponent, found.interval[0]]
    ) * (1 if small else degree * x[-1])
    if slow > 1:
        # Of a tangent like x^-p, or like e^(-p x / x_1).
        low, tail, high = (
            np.exp(log_tan[-1]) * x[-1] / (np.array([fast, best, slow]) - small)
        )
        return Check(_NAME, tail, "finite", (high - low) / 2, True, _SOURCE)
    if x[-1] < _LONG or fast >= 1:
        return None
    return Check(_NAME, np.inf, "finite", 0.0, False, _SOURCE)
