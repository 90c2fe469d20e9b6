"""Checks and defaults of `integrate`'s arguments."""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import diffrax
import equinox as eqx
import jax.numpy as jnp
import numpy as np

from ._clocks import AbstractClock, chosen
from ._flow import term
from ._problem import Problem
from .diagnostics.common import all_outputs, coupled
from .diagnostics.standard import standard
from .solvers import DualRodas5P, choose
from .solvers.choice import is_linear

# Examples times parameters times s from which on leaving examples out saves more than
# compiling anew costs, and examples that are tried without the others.
_WORTH, _FEW = 5e10, 4


def checked_solver(
    solver: Any, problem: Problem, rtol: float | int, atol: float | int | None
) -> diffrax.AbstractSolver:
    """The solver to use, with tolerances where it solves equations inside a step."""
    if not (_is_number(rtol) and 0 < rtol <= 1):
        raise ValueError(f"`rtol` must lie in (0, 1]; got {rtol!r}.")
    if atol is not None and not (_is_number(atol) and atol >= 0):
        raise ValueError(f"`atol` must be a number from 0 on; got {atol!r}.")
    if solver is None:
        solver = choose(problem)
    if not isinstance(solver, diffrax.AbstractSolver):
        raise ValueError(
            f"`solver` must be a Diffrax solver such as `gf.solvers.Rodas5P()` or "
            f"`diffrax.Tsit5()`; got {solver!r}."
        )
    if not isinstance(solver, diffrax.AbstractAdaptiveSolver):
        raise ValueError(
            f"`solver={type(solver).__name__}()` has no error estimate, so steps "
            "cannot be chosen: use an adaptive solver such as `gf.solvers.Rodas5P()`."
        )
    structure = solver.term_structure
    if not (isinstance(structure, type) and isinstance(term(), structure)):
        raise ValueError(
            f"`solver={type(solver).__name__}()` is for systems of several terms, and "
            "the flow is one: use a solver such as `diffrax.Kvaerno5()` in place of an "
            "implicit-explicit one, or `gf.solvers.Rodas5P()`."
        )
    if isinstance(solver, DualRodas5P) and not is_linear(problem):
        raise ValueError(
            "`solver=DualRodas5P()` is for models that are linear in their parameters: "
            "use `gf.solvers.Rodas5P()`, or leave `solver` out."
        )
    return _with_tolerances(solver, rtol)


def _with_tolerances(solver: Any, rtol: float) -> diffrax.AbstractSolver:
    """With those of its root finder's tolerances set that are left to the controller,
    as `diffeqsolve` does it."""
    if isinstance(solver, diffrax.HalfSolver):
        wrapped = _with_tolerances(solver.solver, rtol)
        return eqx.tree_at(lambda s: s.solver, solver, wrapped)
    if not isinstance(solver, diffrax.AbstractImplicitSolver):
        return solver
    unset = diffrax.with_stepsize_controller_tols(diffrax.VeryChord)().rtol
    ours = {"rtol": rtol, "atol": rtol, "norm": _parameters_norm}
    names = [n for n in ours if getattr(solver.root_finder, n) is unset]
    return eqx.tree_at(
        lambda s: [getattr(s.root_finder, n) for n in names],
        solver,
        [ours[n] for n in names],
    )


def _parameters_norm(y):
    """Root-mean-square of the parameters' part; the quadratures follow from it."""
    theta, _ = y
    return jnp.sqrt(jnp.mean(theta**2))


def checked_saves(saveat: Any, s0: float, to: Any) -> np.ndarray:
    """The s-values to save at, from the start to `to`, both included."""
    if not (_is_number(to) and math.isfinite(to)):
        raise ValueError(f"`to` must be a finite number; got {to!r}.")
    to = float(to)
    if not to > s0:
        raise ValueError(
            f"`to={to:g}` is not beyond the start, which has ln(n/L) = {s0:.6g}: ask "
            "for a larger log-risk time."
        )
    if isinstance(saveat, int | np.integer) and not isinstance(saveat, bool):
        if saveat < 2:
            raise ValueError(f"`saveat={saveat}`: at least 2 points are saved.")
        if to <= 1e4:
            return np.linspace(s0, to, saveat)
        # Even in ln s: a shift makes the start positive, whatever s0 is.
        shift = 1.0 - s0
        points = np.geomspace(1.0, to + shift, saveat) - shift
        # Both ends exactly: nothing would be saved until s is beyond the first.
        points[0], points[-1] = s0, to
        return points
    points = np.asarray(saveat)
    kind = np.issubdtype(points.dtype, np.number) or not points.size
    finite = kind and bool(np.all(np.isfinite(points)))
    if not finite or points.ndim != 1 or not np.all(np.diff(points) > 0):
        raise ValueError(
            "`saveat` must be a whole number, how many points are to be saved, or "
            f"increasing finite s-values; got {saveat!r}."
        )
    points = points.astype(float)
    if points.size and (points[0] < s0 or points[-1] > to):
        raise ValueError(
            f"`saveat` spans [{points[0]:g}, {points[-1]:g}], outside the flow's range "
            f"[{s0:.6g}, {to:g}]."
        )
    return np.unique(np.concatenate([[s0], points, [to]]))


def checked_limits(**limits: Any) -> dict[str, Any]:
    """The limits by name, with one that nothing reaches for `None`."""
    for name, value in limits.items():
        if value is not None and not (_is_number(value) and value >= 0):
            raise ValueError(
                f"`{name}` must be a number from 0 on, or None for no limit; got "
                f"{value!r}."
            )
        if value is None or name == "max_seconds" or np.isinf(value):
            continue
        if not float(value).is_integer():
            raise ValueError(f"`{name}` must be a whole number; got {value!r}.")
    none = np.iinfo(np.int32).max
    return {name: none if v is None else v for name, v in limits.items()}


def _is_number(value: Any) -> bool:
    kind = np.asarray(value).dtype
    real = np.issubdtype(kind, np.floating) or np.issubdtype(kind, np.integer)
    return np.ndim(value) == 0 and real


def checked_clock(clock: Any, problem: Problem) -> AbstractClock:
    """The clock to use."""
    if clock is None:
        return chosen(problem)
    if not isinstance(clock, AbstractClock):
        raise ValueError(
            "`clock` must be a gradflow clock such as `gf.LogRiskTime()`; got "
            f"{clock!r}."
        )
    return clock


def checked_diagnostics(diagnostics: Any) -> tuple[Callable, ...]:
    """The functions to evaluate at saved points."""
    if diagnostics is None:
        return (standard,)
    if not (isinstance(diagnostics, Sequence) and all(map(callable, diagnostics))):
        raise ValueError(
            "`diagnostics` must be a sequence of functions of a `Snapshot`, such as "
            f"`(gf.diagnostics.standard,)`; got {diagnostics!r}."
        )
    return tuple(diagnostics)


def checked_neglect(
    neglect: Any, problem: Problem, to: float | int, solver: Any
) -> float:
    """The share of the risk that steps may leave out."""
    if neglect is not None and not (_is_number(neglect) and 0 <= neglect < 1):
        raise ValueError(f"`neglect` must lie in [0, 1); got {neglect!r}.")
    if isinstance(solver, DualRodas5P):
        return 0.0
    if neglect is None:
        if problem.n * problem.k * to < _WORTH or not _separate(problem):
            return 0.0
        return float(jnp.finfo(problem.theta.dtype).eps)
    if neglect > 0 and not _separate(problem):
        raise ValueError(
            f"`neglect={neglect:g}` would leave examples out, but the model couples "
            "the examples of a batch (batch normalisation does): leave `neglect` out."
        )
    return float(neglect)


def _separate(problem: Problem) -> bool:
    """Whether the outputs for a few examples are the same without the others."""
    few = np.arange(min(_FEW, problem.n))
    alone = np.asarray(all_outputs(problem.on(few), problem.theta))
    return not coupled(problem, problem.theta, few, alone, problem.rounding)


def warn_about_precision(problem: Problem, to: float | int):
    """Warns where rounding alone moves the weights by more than a thousandth."""
    eps, dtype = problem.rounding, problem.theta.dtype
    margin = float(to)
    rounding = float(problem.clock_rounding(margin))
    if rounding <= 1e-3:
        return
    if not problem.loss.exponential_tail:
        margin = float(problem.loss.inverse(jnp.log(problem.n) - margin))
    if eps > float(jnp.finfo(dtype).eps):
        where = f"With a network rounded to {eps:.1e} by `gf.models.InPrecision`"
        remedy = "Use a higher precision there, or leave it out."
    else:
        where = f"In {dtype}"
        remedy = (
            "Use float64 parameters (`jax.config.update('jax_enable_x64', True)` "
            "before building the model)."
        )
    warnings.warn(
        f"{where} margins near {margin:g} are rounded to {eps * abs(margin):.1e}, and "
        f"the examples' weights to a relative error of {rounding:.1e}: results beyond "
        f"log-risk time {_trusted(problem, to):.4g} are not to be trusted. {remedy}",
        stacklevel=3,
    )


def _trusted(problem: Problem, to: float | int) -> float:
    """Up to where below `to` rounding moves s by less than a thousandth."""
    s = np.linspace(0, float(to), 100_001)
    good = np.asarray(problem.clock_rounding(jnp.asarray(s))) <= 1e-3
    return float(np.max(s[good], initial=0.0))
