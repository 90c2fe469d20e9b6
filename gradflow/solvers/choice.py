"""Choosing a solver."""

import diffrax

from .deflated import DeflatedRKC2
from .rosenbrock import Rodas5P

LARGEST_DENSE = 1500


def choose(k: int) -> diffrax.AbstractAdaptiveSolver:
    """The solver for `k` parameters when the user names none.

    `Rodas5P()` up to 1500 parameters, whose dense Jacobian is then cheap against the
    stability limit of anything explicit, and `DeflatedRKC2()` above.
    """
    return Rodas5P() if k <= LARGEST_DENSE else DeflatedRKC2()
