"""Choosing a solver."""

from typing import Any

import diffrax

from .flow import FlowRKC2
from .rosenbrock import Rodas5P

LARGEST_DENSE = 1500


def choose(k: int, solver: Any = None) -> diffrax.AbstractSolver:
    """The solver for `k` parameters.

    `None` gives `Rodas5P()` up to 1500 parameters, whose dense Jacobian is then cheap
    against the stability limit of anything explicit, and `FlowRKC2()` above. Any other
    solver is handed back.

    **Raises:** `ValueError` if `solver` is not a Diffrax solver.
    """
    if solver is None:
        return Rodas5P() if k <= LARGEST_DENSE else FlowRKC2()
    if not isinstance(solver, diffrax.AbstractSolver):
        raise ValueError(
            f"`solver` must be a Diffrax solver such as `gf.solvers.Rodas5P()`, or "
            f"`None` to have one chosen; got {solver!r}."
        )
    return solver
