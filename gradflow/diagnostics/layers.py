"""Layers and neurons: norms, balance, rank and alignment."""

from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Float

from .._problem import Problem
from .common import point


class Layers(eqx.Module):
    r"""Each layer of a model by itself; see `layers`.

    **Attributes:** all tuples and axes run over the problem's layers, `names`.

    - `degrees`: degree of homogeneity in each layer alone, or `None`.
    - `norms`: $\lVert W_k\rVert$ (Frobenius).
    - `shares`: $\lVert W_k\rVert/\rho$; `gradient_shares`: $\lVert G_k\rVert/\lVert
        G\rVert$. Their limits agree (Lemma E.1).
    - `alignment`: $\langle W_k, G_k\rangle/(\lVert W_k\rVert\lVert G_k\rVert)$, which
        tends to 1 where the share does not vanish (Lemma E.1).
    - `misalignment`: one minus that, without cancellation.
    - `balance`: $\lVert W_k\rVert^2/d_k$, NaN where there is no degree $d_k$;
        differences between layers are constant along the flow.
    - `balance_drift`: largest change of such a difference since `initial`, NaN without.
    - `singular_values`: of each layer that is one matrix, `None` for others.
    - `rank_one_residual`: $(\sum_{i\ge2}\sigma_i^2)^{1/2}/\lVert W_k\rVert$, NaN for
        others.
    """

    names: tuple[str, ...]
    degrees: tuple[float | None, ...]
    norms: Float[np.ndarray, " layers"]
    shares: Float[np.ndarray, " layers"]
    gradient_shares: Float[np.ndarray, " layers"]
    alignment: Float[np.ndarray, " layers"]
    misalignment: Float[np.ndarray, " layers"]
    balance: Float[np.ndarray, " layers"]
    balance_drift: float
    singular_values: tuple[np.ndarray | None, ...]
    rank_one_residual: Float[np.ndarray, " layers"]


def layers(problem: Problem, model: Any, *, initial: Any = None) -> Layers:
    r"""Norms, balance, rank and alignment of each layer.

    If the margins are homogeneous of degree $d_k$ in $W_k$ alone, then
    $\tfrac{d}{dt}\lVert W_k\rVert^2 = 2 d_k \sum_i -\ell'(p_i)p_i$, whose sum does not
    depend on $k$, so $\lVert W_k\rVert^2/d_k - \lVert W_j\rVert^2/d_j$ is constant.

    **Arguments:**

    - `model`: a module, or flat parameters of shape `(k,)`.
    - `initial`: the same at the beginning of the flow, for `balance_drift`.

    **Source:** Ji and Telgarsky, Lemma E.1; Lyu and Li, Theorem
    B.4 block by block.
    """
    theta = problem.theta_of(model)
    snap = point(problem, theta)
    parts = _layers(problem, theta)
    gradients = _layers(problem, snap.direction)
    norms = np.array([np.linalg.norm(a) for a in parts])
    gradient_norms = np.array([np.linalg.norm(g) for g in gradients])
    inner = np.array([np.vdot(a, g) for a, g in zip(parts, gradients)])
    with np.errstate(invalid="ignore", divide="ignore"):
        alignment = inner / (norms * gradient_norms)
        apart = [
            np.linalg.norm(a / r - g / c)
            for a, g, r, c in zip(parts, gradients, norms, gradient_norms)
        ]
    arrays = _arrays(problem, theta)
    matrices = [arrays[j[0]] if len(j) == 1 else np.zeros(0) for j in problem.layers]
    singular = tuple(
        np.linalg.svd(a, compute_uv=False) if a.ndim == 2 else None for a in matrices
    )
    return Layers(
        names=problem.layer_names,
        degrees=problem.layer_degrees,
        norms=norms,
        shares=norms / np.linalg.norm(norms),
        gradient_shares=gradient_norms / np.linalg.norm(gradient_norms),
        alignment=alignment,
        # For unit vectors 1 - <u, v> = |u - v|^2 / 2.
        misalignment=np.array(apart) ** 2 / 2,
        balance=_balance(problem, parts),
        balance_drift=_balance_drift(problem, parts, initial),
        singular_values=singular,
        rank_one_residual=np.array([_rank_one_residual(v) for v in singular]),
    )


class Chain(eqx.Module):
    r"""The layers $A_1, \dots, A_L$ of a deep linear network; see `chain`.

    **Attributes:**

    - `vectors`: $v_0, \dots, v_L$, unit vectors.
    - `residuals`: $\lVert A_j/\lVert A_j\rVert - v_j v_{j-1}^\top\rVert$ for
        $j = 1, \dots, L$; zero in the limit.
    - `product`: $A_L\cdots A_1$ over its norm, shape `(outputs, inputs)`.
    - `product_residual`: $\lVert\text{product} - v_L v_0^\top\rVert$.
    - `balance_drift`: $\max_j\lVert\Delta(A_{j+1}^\top A_{j+1} - A_jA_j^\top)\rVert$
        since `initial`, which is zero for gradient flow; NaN without `initial`.
    """

    vectors: tuple[np.ndarray, ...]
    residuals: Float[np.ndarray, " layers"]
    product: Float[np.ndarray, "outputs inputs"]
    product_residual: float
    balance_drift: float


def chain(problem: Problem, model: Any, *, initial: Any = None) -> Chain:
    r"""How nearly a deep linear network's layers form the chain
    $A_j/\lVert A_j\rVert \to v_jv_{j-1}^\top$.

    As in the proof, $v_L$ comes from the last layer (its left singular vector, 1 for
    one output) and $v_{j-1} = A_j^\top v_j/\lVert A_j^\top v_j\rVert$ downwards, so
    that neighbours share their vector and residuals measure rank and alignment
    together.

    **Raises:** `ValueError` if the trained arrays are not matrices that can be
    multiplied in their order.

    **Source:** Ji and Telgarsky, Proposition 4.2 (4.4 in the full version).
    """
    matrices = _matrices(problem, problem.theta_of(model))
    v = np.linalg.svd(matrices[-1])[0][:, 0]
    # A singular vector's sign is arbitrary; with one output v_L = 1.
    vectors = [v if len(v) > 1 else np.ones(1)]
    residuals = []
    for a in reversed(matrices):
        right = a.T @ vectors[0]
        right = right / np.linalg.norm(right)
        gap = a / np.linalg.norm(a) - np.outer(vectors[0], right)
        residuals.insert(0, float(np.linalg.norm(gap)))
        vectors.insert(0, right)
    product = matrices[0]
    for a in matrices[1:]:
        product = a @ product
    product = product / np.linalg.norm(product)
    outer = np.outer(vectors[-1], vectors[0])
    drift = float("nan")
    if initial is not None:
        start = _gram_differences(_matrices(problem, problem.theta_of(initial)))
        now = _gram_differences(matrices)
        drift = max(
            (float(np.linalg.norm(b - a)) for a, b in zip(start, now)), default=0.0
        )
    return Chain(
        vectors=tuple(vectors),
        residuals=np.array(residuals),
        product=product,
        product_residual=float(np.linalg.norm(product - outer)),
        balance_drift=drift,
    )


class Neurons(eqx.Module):
    r"""The rows of one matrix, each a neuron; see `neurons`.

    **Attributes:** axes run over neurons.

    - `norms`: $\lVert w_j\rVert$; `shares`: $\lVert w_j\rVert^2/\rho^2$ (the $s_j$ of
        Proposition 4.3).
    - `directions`: $\theta_j = w_j/\lVert w_j\rVert$, zero where $w_j = 0$.
    - `alignment`: cosine of $w_j$ and its part of $G$; NaN where either vanishes.
    """

    norms: Float[np.ndarray, " width"]
    shares: Float[np.ndarray, " width"]
    directions: Float[np.ndarray, "width inputs"]
    alignment: Float[np.ndarray, " width"]


def neurons(problem: Problem, model: Any, *, layer: int = 0) -> Neurons:
    """Norms and directions of the neurons of a layer.

    **Arguments:**

    - `model`: a module, or flat parameters of shape `(k,)`.
    - `layer`: which trained matrix, counted in the order of `problem.layout.names`
        among the two-dimensional ones; its rows are the neurons.

    **Source:** Ji and Telgarsky, Proposition 4.3 (4.6 in the full version).
    """
    theta = problem.theta_of(model)
    which = [i for i, s in enumerate(problem.layout.shapes) if len(s) == 2]
    if not -len(which) <= layer < len(which):
        raise ValueError(
            f"`layer={layer}`, but the model has {len(which)} trained matrices."
        )
    rows = _arrays(problem, theta)[which[layer]]
    pull = _arrays(problem, point(problem, theta).direction)[which[layer]]
    norms = np.linalg.norm(rows, axis=1)
    safe = np.where(norms > 0, norms, 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = np.sum(rows * pull, axis=1) / (norms * np.linalg.norm(pull, axis=1))
    return Neurons(
        norms=norms,
        shares=norms**2 / float(np.sum(np.asarray(theta, np.float64) ** 2)),
        directions=rows / safe[:, None],
        alignment=cosine,
    )


def _arrays(problem, theta) -> list[np.ndarray]:
    return [np.asarray(a, np.float64) for a in problem.layout.split(theta)]


def _layers(problem, theta) -> list[np.ndarray]:
    return [np.asarray(a, np.float64) for a in problem.split_layers(theta)]


def _matrices(problem, theta):
    arrays = _arrays(problem, theta)
    shapes = [a.shape for a in arrays]
    fits = all(len(s) == 2 for s in shapes) and all(
        b[1] == a[0] for a, b in zip(shapes, shapes[1:])
    )
    if not fits:
        raise ValueError(
            f"`chain` needs a deep linear network; the trained arrays have shapes "
            f"{shapes}, which cannot be multiplied in their order."
        )
    return arrays


def _gram_differences(matrices):
    return [b.T @ b - a @ a.T for a, b in zip(matrices, matrices[1:])]


def _balance(problem, parts):
    degrees = np.array([np.nan if d is None else d for d in problem.layer_degrees])
    with np.errstate(divide="ignore", invalid="ignore"):
        balance = np.array([np.sum(a**2) for a in parts]) / degrees
    return np.where(np.isfinite(balance), balance, np.nan)


def _balance_drift(problem, parts, initial):
    if initial is None:
        return float("nan")
    start = _balance(problem, _layers(problem, problem.theta_of(initial)))
    change = _balance(problem, parts) - start
    change = change[np.isfinite(change)]
    return float(np.ptp(change)) if len(change) else float("nan")


def _rank_one_residual(singular_values):
    if singular_values is None:
        return float("nan")
    tail = float(np.linalg.norm(singular_values[1:]))
    norm = float(np.linalg.norm(singular_values))
    return tail / norm if norm > 0 else float("nan")
