r"""Checks of single layers, whose limits Lemma E.1 of Ji and Telgarsky gives.

With $W_k$ and $G_k$ the parts of $\theta$ and $G$ in layer $k$, and $d_k$ the degree in
it, $\langle W_k, G_k\rangle = d_k\sum_i w_ip_i = (d_k/L)\langle\theta, G\rangle$.
"""

import numpy as np

from ._check import Check, at_most, eps_of, near
from .diagnostics.layers import chain, layers
from .models.dense import DeepLinear


def layer_balance(traj) -> Check | None:
    """d |W_k|^2 / dt is the degree in layer k times a factor common to all layers."""
    if "layer_norm" not in traj or not _has_degrees(traj):
        return None
    squares, degrees = traj["layer_norm"] ** 2, np.array(traj.config["layer_degrees"])
    first = np.argmax(degrees > 0)
    ratios = degrees / (degrees[first] or 1)
    gaps = squares - ratios * squares[:, first : first + 1]
    drift = np.max(np.abs(gaps - gaps[0])) / np.max(squares)
    bound = max(10 * traj.config["rtol"], 1e3 * eps_of(traj))
    source = "Du, Hu and Lee 2018; Theory III, Section 11.1.1"
    return near("balance of layers", drift, 0.0, bound, source)


def layer_shares(traj) -> Check | None:
    r"""$a_k^2 = \lVert W_k\rVert^2/\rho^2$ against $(d_k/L)\cos$, at the worst point.

    They differ by $\langle W_k/\rho, W_k/\rho - G_k/\lVert G\rVert\rangle$, at most
    $a_k\sqrt{2(1 - \cos)}$: as the flow aligns, the shares become those of the degrees.
    """
    names = {"layer_norm", "rho", "misalignment"}
    if not names <= set(traj) or not traj.config["degree"] or not _has_degrees(traj):
        return None
    moving = traj["rho"] > 0
    if not moving.any():
        return None
    misalignment = traj["misalignment"][moving, None]
    share = traj["layer_norm"][moving] / traj["rho"][moving, None]
    expected = _shares(traj) * (1 - misalignment)
    gap = np.abs(share**2 - expected)
    bound = share * np.sqrt(2 * misalignment)
    worst = np.unravel_index(np.argmax(gap - bound), gap.shape)
    source = "Ji and Telgarsky, Lemma E.1"
    return at_most(
        "shares of layers", gap[worst], bound[worst], source, tolerance=_rounding(traj)
    )


def layer_alignment(traj, final) -> Check | None:
    r"""$L\langle W_k, G_k\rangle/(d_k\rho\lVert G\rVert)$, anew, against the saved
    cosine, in the layer that is farthest off."""
    if not final.problem.degree or not _has_degrees(traj):
        return None
    if "misalignment" not in traj or final.stationary:
        return None
    found = layers(final.problem, final.snap.theta)
    inner = np.nan_to_num(found.shares * found.gradient_shares * found.alignment)
    shares, some = _shares(traj), _shares(traj) > 0
    ratio = inner[some] / shares[some]
    cosine = 1 - traj["misalignment"][-1]
    worst = ratio[np.argmax(np.abs(ratio - cosine))]
    tolerance = _rounding(traj) * (1 + abs(traj.s[-1])) / np.min(shares[some])
    source = "Ji and Telgarsky, Lemma E.1"
    return near("alignment of layers", worst, cosine, tolerance, source)


def chain_of_layers(traj, final) -> Check | None:
    r"""How far layers of a deep linear network are from a chain $v_jv_{j-1}^\top$.

    $G_j$ has rank one and its left vector is $(A_L\cdots A_{j+1})^\top$, the $v_j$ of
    `chain`. Of all matrices with that left vector the nearest to $A_j$ is
    $v_jv_j^\top A_j$, at a distance of $\lVert A_j\rVert r_j\sqrt{1 - r_j^2/4}$ with
    the residual $r_j$, so that the squares of these distances sum to at most the
    squared distance from $\theta$ to the line of $G$, which is $\rho^2\sin^2$.
    """
    problem, theta = final.problem, final.snap.theta
    names = {"misalignment", "rho"}
    linear = isinstance(problem.model(theta), DeepLinear)
    if not (linear and names <= set(traj)) or traj.config["classes"] != 2:
        return None
    try:
        found = chain(problem, theta)
    except ValueError:
        return None  # Not all layers are trained.
    if len(found.product) > 1:
        return None
    norms = np.array([np.linalg.norm(a) for a in problem.layout.split(theta)])
    square = norms**2 * found.residuals**2 * (1 - found.residuals**2 / 4)
    misalignment = traj["misalignment"][-1]
    return at_most(
        "distance from a chain of layers",
        np.sqrt(np.sum(square)) / traj["rho"][-1],
        np.sqrt(misalignment * (2 - misalignment)),
        "Ji and Telgarsky, Proposition 4.2",
        tolerance=_rounding(traj) * (1 + abs(traj.s[-1])),
    )


def _has_degrees(traj) -> bool:
    degrees = traj.config["layer_degrees"]
    return len(degrees) > 1 and None not in degrees


def _shares(traj) -> np.ndarray:
    return np.array(traj.config["layer_degrees"]) / traj.config["degree"]


def _rounding(traj) -> float:
    return 100 * eps_of(traj) * max(1, 1 / traj.config["degree"])
