"""Stiff solvers, usable in `diffrax.diffeqsolve` on any ordinary differential equation
(`DualRodas5P` in `gf.integrate` only).

Beyond Diffrax's interface each has `counts(solver_state)`, the work done so far, and
`rejected(before, after, error)`, the solver state to go on with after a rejected step
whose error was so many times what is acceptable.
"""

from .chebyshev import RKC2 as RKC2
from .choice import choose as choose
from .deflated import DeflatedRKC2 as DeflatedRKC2
from .dual import DualRodas5P as DualRodas5P
from .rosenbrock import Rodas5P as Rodas5P
