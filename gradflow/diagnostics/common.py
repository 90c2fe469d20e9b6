"""What the diagnostics of one point share: the point itself, and rows of gradients."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from .._compile import jitted
from .._problem import Problem
from .snapshot import Snapshot, snapshot

_ROW_ENTRIES = 2**22  # Entries of the Jacobian computed at a time: 32 MiB in float64.


def need_degree(problem: Problem, what: str) -> float:
    """The degree of homogeneity; `ValueError` where there is none."""
    if not problem.degree:
        raise ValueError(
            f"`{what}` needs a homogeneous model of positive degree; this problem has "
            f"`degree={problem.degree}`."
        )
    return problem.degree


@jitted
def point(problem: Problem, theta: Float[Array, " k"]) -> Snapshot:
    """The snapshot at `theta`, compiled."""
    return snapshot(problem, theta)


@jitted
def all_outputs(problem: Problem, theta: Float[Array, " k"]) -> Float[Array, "n ..."]:
    """`problem.outputs`, compiled."""
    return problem.outputs(theta)


def is_multiclass(outputs: Float[Array | np.ndarray, "n ..."]) -> bool:
    """Whether there is one output for each of several classes."""
    return outputs.ndim == 2 and outputs.shape[1] > 1


def constraint_values(
    problem: Problem, theta: Float[Array, " k"]
) -> Float[Array, "n ..."]:
    r"""The constraints of the margin problem: $p_i$, shape `(n,)`, or with several
    classes $s_{ij} = \Phi_{y_i} - \Phi_j$, shape `(n, classes)`, infinite at labels.

    **Source:** Lyu and Li, problem (P) and Appendix G.
    """
    return _gaps(all_outputs(problem, theta), problem.y)


@jax.jit
def _gaps(outputs, y):
    if not is_multiclass(outputs):
        return y * jnp.reshape(outputs, (-1,))
    own = jnp.take_along_axis(outputs, y[:, None], axis=1)
    classes = jnp.arange(outputs.shape[1], dtype=y.dtype)
    return jnp.where(classes[None] == y[:, None], jnp.inf, own - outputs)


def margin_gradients(
    problem: Problem,
    theta: Float[Array, " k"],
    examples: Int[np.ndarray, " m"],
    classes: Int[np.ndarray, " m"],
) -> Float[np.ndarray, "m k"]:
    r"""Rows $\nabla_\theta p_i$, or $\nabla_\theta s_{ij}$ for pairs (example, class).

    $s_{ij} = \Phi_{y_i} - \Phi_j$ (Lyu and Li, Appendix G); for two classes `classes`
    is ignored. Computed in batches of bounded memory, and only for the rows asked for.

    **Raises:** `ValueError` for a model that couples examples (batch normalisation):
    the gradient of one example's margin alone is then not defined by that example.
    """
    size = max(1, min(len(examples), _ROW_ENTRIES // problem.k))
    rows = []
    for start in range(0, len(examples), size):
        stop = min(start + size, len(examples))
        index = np.resize(examples[start:stop], size)
        chosen = np.resize(classes[start:stop], size)
        values, block = _gradient_rows(problem, theta, index, chosen)
        _check_uncoupled(problem, theta, index, np.asarray(values))
        rows.append(np.asarray(block)[: stop - start])
    return np.concatenate(rows) if rows else np.zeros((0, problem.k))


@jitted
def _gradient_rows(problem, theta, index, classes):
    def gap(theta, x, y, j):
        out = problem.outputs(theta, x[None])[0]
        if out.ndim == 1 and out.shape[0] > 1:
            return out[y] - out[j], out
        return y * jnp.reshape(out, ()), out

    grads, outputs = jax.vmap(jax.grad(gap, has_aux=True), in_axes=(None, 0, 0, 0))(
        theta, problem.x[index], problem.y[index], classes
    )
    return outputs, grads


def coupled(
    problem: Problem,
    theta: Float[Array, " k"],
    index: Int[np.ndarray, " m"],
    alone: Float[np.ndarray, "m ..."],
    rounding: float,
) -> bool:
    """Whether outputs that examples `index` have alone, or among few, differ from what
    they have among all by more than the root of `rounding`."""
    among = np.asarray(all_outputs(problem, theta))[index].reshape(alone.shape)
    tolerance = math.sqrt(rounding) * max(np.max(np.abs(among)), 1e-300)
    return bool(np.max(np.abs(alone - among)) > tolerance)


def refuse_coupled(
    problem: Problem, theta: Float[Array, " k"], index: Int[np.ndarray, " m"]
):
    """`ValueError` if outputs that examples `index` have alone are not those among
    all."""
    alone = np.asarray(_outputs_alone(problem, theta, index))
    _check_uncoupled(problem, theta, index, alone)


@jitted
def _outputs_alone(problem, theta, index):
    return jax.vmap(lambda x: problem.outputs(theta, x[None])[0])(problem.x[index])


def _check_uncoupled(problem, theta, index, values):
    if coupled(problem, theta, index, values, problem.rounding):
        raise ValueError(
            "`model` couples the examples of a batch (batch normalisation does), so "
            "one example alone has neither a margin nor a gradient of its own."
        )
