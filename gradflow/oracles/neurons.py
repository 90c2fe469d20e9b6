"""Margin programs over a two-layer network's neurons (Ji and Telgarsky, Prop. 4.3(1)).

Numbered 4.6 in the full version of the paper.
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy.optimize import linprog

from .._compile import jitted
from .._problem import Problem


class NeuronProgram(eqx.Module):
    r"""The saddle-point problem over the directions of a network's neurons.

    **Attributes:**

    - `primal`: $\max_{s\in\Delta_m}\min_i\sum_j s_j\varphi_{ij}(\bar\theta_j)$.
    - `dual`: $\min_{q\in\Delta_n}\max_j\sum_i q_i\varphi_{ij}(\bar\theta_j)$, solved on
        its own. `gap`: dual - primal, zero up to the programs' tolerance.
    - `margin`: $\min_i p_i/\|\theta\|^2$ of the model; equal to `primal` in the limit.
    - `weights`: the optimal $s$. `shares`: the model's own $\|w_j\|^2/\|\theta\|^2$.
    - `multipliers`: the optimal $q$.
    - `features`: $\varphi_{ij}$, shape `(n, m)`; zero for neurons that died.
    """

    primal: float
    dual: float
    gap: float
    margin: float
    weights: Float[np.ndarray, " m"]
    shares: Float[np.ndarray, " m"]
    multipliers: Float[np.ndarray, " n"]
    features: Float[np.ndarray, "n m"]


def neuron_program(
    problem: Problem, model: Any, *, dead: float = 1e-3
) -> NeuronProgram:
    r"""Linear program of Proposition 4.3(1) at the neuron directions of `model`.

    A neuron is a row of the only trained matrix (signs fixed), or a row of the first
    and the matching weight of the second of two trained arrays. Its feature is
    $\varphi_{ij} = p_i(\text{neuron } j \text{ alone}) / \|w_j\|^2$.

    **Arguments:** `problem`, homogeneous of degree 2 with labels -1 and +1; `model`, a
    two-layer module built like the problem's; `dead`: neurons with
    $\|w_j\|^2 < \text{dead}\,\|\theta\|^2$ count as vanished, $\bar\theta_j = 0$.

    **Raises:** `ValueError` if the degree is not 2, or the margins are not the sum of
    the neurons' own.

    **Source:** Ji and Telgarsky, Proposition 4.3(1) (4.6 in the full version).
    """
    if problem.degree != 2:
        raise ValueError(
            "`problem` must be homogeneous of degree 2 (squared ReLU with fixed signs, "
            f"or two trained layers); its degree is {problem.degree}."
        )
    theta = problem.theta_of(model)
    masks = neuron_masks(problem)
    alone = np.asarray(_margins_alone(problem, theta, masks), np.float64).T
    margins = np.asarray(problem.margins(theta), np.float64)
    scale = float(np.max(np.abs(alone).sum(axis=1)))
    if np.max(np.abs(alone.sum(axis=1) - margins)) > 1e-5 * scale:
        raise ValueError(
            "`model` is not a sum of neurons: its margins are not the sum of those of "
            "each row of its first trained array alone."
        )
    squares = np.asarray(masks @ theta**2, np.float64)
    shares = squares / squares.sum()
    alive = shares >= dead
    features = np.where(alive, alone / np.where(alive, squares, 1.0), 0.0)
    best, s = primal(features)
    least, q = dual(features)
    margin = float(np.min(margins)) / float(squares.sum())
    return NeuronProgram(best, least, least - best, margin, s, shares, q, features)


@jitted
def _margins_alone(problem, theta, masks):
    return jax.lax.map(lambda mask: problem.margins(theta * mask), masks)


def neuron_masks(problem):
    """One mask over the flat parameters per neuron, shape `(m, k)`."""
    layout, rows = problem.layout, problem.layout.shapes[0]
    width = rows[0] if rows else 0
    owner = np.full(problem.k, -1)
    if len(rows) == 2:
        owner[: math.prod(rows)] = np.repeat(np.arange(width), rows[1])
    if len(layout.shapes) == 2 and math.prod(layout.shapes[1]) == width:
        owner[layout.offsets[1] :] = np.arange(width)
    if np.any(owner < 0):
        raise ValueError(
            "`problem` must train one matrix of neurons, or one and a weight for each; "
            f"it trains {dict(zip(layout.names, layout.shapes))}."
        )
    masks = owner == np.arange(width)[:, None]
    return jnp.asarray(masks, problem.theta.dtype)


def primal(features):
    r"""$\max_{s\in\Delta_m}\min_i\sum_j s_j\varphi_{ij}$, and its $s$, shape `(m,)`."""
    n, m = features.shape
    size = _size(features)
    solution = linprog(
        np.append(np.zeros(m), -1.0),
        A_ub=np.hstack([-features / size, np.ones((n, 1))]),
        b_ub=np.zeros(n),
        A_eq=np.append(np.ones(m), 0.0)[None],
        b_eq=[1.0],
        bounds=[(0, None)] * m + [(None, None)],
        method="highs",
    )
    return -float(solution.fun) * size, solution.x[:m]


def dual(features):
    r"""$\min_{q\in\Delta_n}\max_j\sum_i q_i\varphi_{ij}$, and its $q$, shape `(n,)`."""
    n, m = features.shape
    size = _size(features)
    solution = linprog(
        np.append(np.zeros(n), 1.0),
        A_ub=np.hstack([features.T / size, -np.ones((m, 1))]),
        b_ub=np.zeros(m),
        A_eq=np.append(np.ones(n), 0.0)[None],
        b_eq=[1.0],
        bounds=[(0, None)] * n + [(None, None)],
        method="highs",
    )
    return float(solution.fun) * size, solution.x[:n]


def _size(features):
    # The solver takes coefficients below 1e-9 for zero.
    return float(np.max(np.abs(features))) or 1.0
