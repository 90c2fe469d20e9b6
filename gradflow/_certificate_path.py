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
    names = {"rho", "log_radial_gradient", "log_spherical_gradient"}
    late = np.flatnonzero(after_separation(traj))
    degree = traj.config["degree"]
    if not degree or not names <= set(traj) or not len(late):
        return None
    x = np.log(traj["rho"][late] / traj["rho"][late[0]])
    log_tan = traj["log_spherical_gradient"][late] - traj["log_radial_gradient"][late]
    if log_tan[-1] <= np.log(1e3 * eps_of(traj)):
        return Check(_NAME, 0.0, "finite", 0.0, True, _SOURCE)  # Rounding alone moves.
    try:
        found = power(np.exp(degree * x), log_tan)
    except ValueError:
        return None  # Too few saved points.
    slow, best, fast = -degree * np.array(
        [found.interval[1], found.exponent, found.interval[0]]
    )
    if slow * x[-1] > 1:
        tangent = np.exp(log_tan[-1])
        half = float(tangent / slow - tangent / fast) / 2
        return Check(_NAME, float(tangent / best), "finite", half, True, _SOURCE)
    if x[-1] < _LONG or fast * x[-1] >= 1:
        return None
    return Check(_NAME, np.inf, "finite", 0.0, False, _SOURCE)
