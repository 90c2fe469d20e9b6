"""Models at the saved points of a flow, and what takes a model evaluated on them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from tqdm import tqdm

from .._problem import Problem
from .snapshot import Snapshot

T = TypeVar("T")


def parameters(snap: Snapshot) -> dict[str, Array]:
    r"""The flat parameters $\theta$ as `theta`, shape `(k,)`: what `along` reads.

    `gf.integrate` saves them, k numbers a point, with
    `diagnostics=[gf.diagnostics.standard, gf.diagnostics.parameters]`.
    """
    return {"theta": snap.theta}


def along(
    function: Callable[[Problem, Any], T],
    problem: Problem,
    traj: Mapping[str, Any],
    at: Sequence[int] | np.ndarray | None = None,
    *,
    progress: bool | None = None,
) -> list[T]:
    """Evaluates what is too dear for every saved point on the models of some.

    `gf.diagnostics.along(gf.diagnostics.robustness, problem, traj, [0, 50, -1])`.
    Nothing is interpolated: the models are those that were saved.

    **Arguments:**

    - `function`: called as `function(problem, model)`: `gf.diagnostics.spectrum`,
        `gf.oracles.local_optimality`, ...; `functools.partial` sets options.
    - `problem`: the problem that was integrated.
    - `traj`: its trajectory, with `parameters` among the diagnostics.
    - `at`: indices of saved points, negative ones from the end; all by default.
        They lie at `traj.s[at]`; `numpy.searchsorted(traj.s, s)` gives the first that
        are not before `s`.
    - `progress`: a progress bar; by default where standard error is a terminal.

    **Returns:** the results in the order of `at`; an exception in `function` and Ctrl-C
    pass through.

    **Raises:** `ValueError` for a trajectory without parameters or of another number of
    them than `problem`, and for an index that is no integer or out of range.
    """
    if "theta" not in traj:
        raise ValueError(
            f"`traj` holds {sorted(traj)}, but no parameters: integrate with "
            "`diagnostics=[gf.diagnostics.standard, gf.diagnostics.parameters]`."
        )
    thetas = np.asarray(traj["theta"])
    if thetas.shape[1:] != (problem.k,):
        raise ValueError(
            f"`traj` has parameters of shape {thetas.shape[1:]}, `problem` of "
            f"{(problem.k,)}: pass the problem that was integrated."
        )
    index = _indices(at, len(thetas))
    hidden = None if progress is None else not progress
    results = []
    with tqdm(index, unit="point", disable=hidden) as bar:
        for i in bar:
            bar.set_description(f"s = {float(traj['s'][i]):.6g}")
            results.append(function(problem, problem.model(jnp.asarray(thetas[i]))))
    return results


def _indices(at, count) -> list[int]:
    if at is None:
        return list(range(count))
    index = np.asarray(at)
    if index.ndim != 1 or index.size and index.dtype.kind not in "iu":
        raise ValueError(
            f"`at={at}` must be a list of indices of saved points; "
            "`numpy.searchsorted(traj.s, s)` gives those of values of s."
        )
    if np.any((index < -count) | (index >= count)):
        raise ValueError(f"`at={at}`: the trajectory has {count} saved points.")
    return [int(i) for i in index]
