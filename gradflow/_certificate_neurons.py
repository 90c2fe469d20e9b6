r"""Checks of a two-layer network against the margin program over its own neurons."""

import math

import numpy as np

from ._check import Check, at_least, at_most, eps_of
from ._problem import Problem
from .diagnostics.snapshot import Snapshot
from .oracles.neurons import neuron_program, primal

# Neurons times examples, or times parameters, that take seconds.
_ENTRIES = 2**19
# Shares from which a neuron counts as living, as in `neuron_program`.
_LIVING = 1e-3


def neuron_checks(traj, problem: Problem, snap: Snapshot, spread: float) -> list[Check]:
    r"""The least margin over the value of Proposition 4.3(1)'s program, on both sides.

    The shares $s_j = \lVert w_j\rVert^2/\rho^2$ of all neurons are a point of the
    program over all of them, whose value is thus at least $p_{\min}/\rho^2$.

    Over some neurons it is at most the largest of their $\sum_i q_i\varphi_{ij}$ for
    $q = w/\sum w$. With $u_j$ and $g_j$ the parts of $\theta/\rho$ and
    $G/\lVert G\rVert$ in neuron $j$, that is $\langle u_j, g_j\rangle/s_j \le
    1 + \sqrt{2(1 - \cos)/s_j}$ times $\rho^{-2}\sum_i q_i p_i/\cos$. `spread` is
    $\sum_i q_i p_i/p_{\min}$.
    """
    width = math.prod(problem.layout.shapes[0][:1])
    if problem.degree != 2 or width * max(problem.n, problem.k) > _ENTRIES:
        return []
    try:
        tiny = float(np.finfo(float).tiny)
        program = neuron_program(problem, problem.model(snap.theta), dead=tiny)
    except ValueError:
        return []  # Not a sum of neurons.
    margin = float(np.min(traj["margins"][-1])) / float(traj["rho"][-1]) ** 2
    tolerance = max(1e-7, eps_of(traj) ** 0.7)
    source = "Ji and Telgarsky, Proposition 4.3(1), by weak duality"
    above = at_most(
        "margin over the neuron program",
        margin / program.primal,
        1.0,
        source,
        tolerance=tolerance,
    )
    shares, misalignment = program.shares, traj["misalignment"][-1]
    living = (shares >= _LIVING) & np.any(program.features != 0, axis=0)
    off = np.sqrt(2 * misalignment / np.min(shares[living], initial=1.0))
    if not (off < 1 and living.any()):
        return [above]  # Too early: little follows.
    best, _ = primal(program.features[:, living])
    below = at_least(
        "margin reached by living neurons",
        margin / best,
        (1 - misalignment) / (spread * (1 + off)),
        source,
        tolerance=tolerance,
    )
    return [above, below]
