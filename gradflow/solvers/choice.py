"""Choosing a solver."""

import diffrax

from .deflated import DeflatedRKC2
from .rosenbrock import Rodas5P

SMALL, LARGEST_DENSE = 128, 1500


def choose(k: int, to: float, rtol: float) -> diffrax.AbstractAdaptiveSolver:
    """The solver for `k` parameters, from here to log-risk time `to`, when the user
    names none.

    `Rodas5P()`, with its dense Jacobian, up to 128 parameters, and `DeflatedRKC2()`
    above 1500. In between the Jacobian is what a step costs, and `DeflatedRKC2()` is
    the cheaper while `to` is at most 1e4 and `rtol` at least 1e-6: further on its
    stages are too many, which grow like the root of a step, and at a tighter tolerance
    its steps.
    """
    far = to > 1e4 or rtol < 1e-6
    return Rodas5P() if k <= (LARGEST_DENSE if far else SMALL) else DeflatedRKC2()
