"""The record of what decides the numbers of a run."""

import functools
import hashlib
from importlib.metadata import version
from typing import Any

import equinox as eqx
import jax
import numpy as np

from ._problem import Problem


def describe(settings, **numbers: float) -> dict[str, Any]:
    """Everything that decides the numbers of a run, and when it is given up, as JSON
    values; `numbers` are those that `settings` do not hold, or in another precision."""
    problem = settings.flow.problem
    return {
        **numbers,
        "neglect": settings.neglect,
        "patience": int(settings.patience),
        "saves": np.asarray(settings.saves).tolist(),
        "solver": _text(settings.solver),
        "clock": _text(settings.flow.clock),
        "loss": _text(problem.loss),
        "diagnostics": [
            getattr(d, "__qualname__", type(d).__name__) for d in settings.diagnostics
        ],
        "n": problem.n,
        "k": problem.k,
        "classes": _classes(problem),
        "degree": problem.degree,
        "layers": list(problem.layer_names),
        "layer_degrees": list(problem.layer_degrees),
        "dtype": str(problem.theta.dtype),
        "rounding": problem.rounding,
        **_clock_rounding(problem, settings.saves),
        "batch_size": problem.batch_size,
        "data": digest(problem),
        "gradflow": _version(),
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
    }


@functools.cache
def _version() -> str:
    return version("gradflow-jax")


def _clock_rounding(problem, saves) -> dict[str, Any]:
    """By how much s is rounded at the points to be saved, where not in proportion."""
    if problem.loss.exponential_tail:
        return {}
    return {"clock_rounding": np.asarray(problem.clock_rounding(saves)).tolist()}


def _classes(problem) -> int:
    shape = problem.output_shape
    return 2 if shape[:1] in ((), (1,)) else shape[0]


def _text(module) -> str:
    return " ".join(eqx.tree_pformat(module, width=10_000, short_arrays=False).split())


def digest(problem: Problem) -> str:
    """Tells data, initial parameters and constants of one problem from another's."""
    made = hashlib.sha256()
    for leaf in jax.tree.leaves((problem.x, problem.y, problem.theta, problem.frozen)):
        if eqx.is_array(leaf):
            made.update(np.asarray(leaf).tobytes())
            made.update(str((leaf.shape, leaf.dtype)).encode())
    return made.hexdigest()[:16]
