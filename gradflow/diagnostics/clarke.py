r"""Minimum-norm Clarke subgradients of two-layer ReLU networks, and a flow that slides.

The gradient flow of a ReLU network is the differential inclusion $\dot\theta \in
-\partial^\circ L(\theta)$, which moves along minus the element of smallest norm. Away
from kinks that is the gradient; where flows from both sides of a kink meet, it
slides along it.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Bool, Float
from scipy.optimize import lsq_linear

from .._losses import Exponential
from .._parameters import Fixed
from .._problem import Problem
from ..models import MLP, ReLU, SmoothReLU, TwoLayer


class ClarkeDirection(NamedTuple):
    r"""The element of $-\partial^\circ \ln L(\theta)$ of smallest norm.

    **Attributes:**

    - `direction`: shape `(k,)`; the flow's velocity is $L$ times it.
    - `slopes`: shape `(n, width)`, $\lambda_{ij} \in [0, 1]$, the derivative of ReLU
        chosen for example $i$ at neuron $j$.
    - `kinks`: shape `(n, width)`, where preactivations vanish.
    - `exact`: whether each neuron's kinks have linearly independent inputs. If not,
        the set searched may exceed the subdifferential, and the norm is a lower bound.
    """

    direction: Float[np.ndarray, " k"]
    slopes: Float[np.ndarray, "n width"]
    kinks: Bool[np.ndarray, "n width"]
    exact: bool


def clarke_direction(
    problem: Problem, model: Any, *, tol: float = 1e-9
) -> ClarkeDirection:
    r"""The steepest ascent direction of $-\ln L$ at a point that may lie on kinks.

    With $\delta_{ij} = -\partial \ln L/\partial h_{ij}$, the derivative along the
    output of neuron $j$, every element has neuron parts $\sum_i \lambda_{ij}
    \delta_{ij} x_i$, with $\lambda_{ij}$ free in $[0, 1]$ exactly on the kinks. Neurons
    separate; each is a least-squares problem with bounds (`scipy.optimize.lsq_linear`).
    Of a first layer with a bias, that is the weight of one more feature, 1.

    **Arguments:**

    - `problem`: its model is a `TwoLayer`, or an `MLP` with one hidden layer, with
        `ReLU` activation.
    - `model`: where to; a module, or its flat parameters, `(k,)`.
    - `tol`: example $i$ is on the kink of neuron $j$ if $|\langle w_j, x_i\rangle| \le
        \text{tol} \lVert w_j\rVert \lVert x_i\rVert$.

    **Raises:** `ValueError` for other models.

    **Source:** Lyu and Li, Appendix I (the chain rule); Ji and Telgarsky, Section 2.
    """
    theta = problem.theta_of(model)
    model = problem.model(theta)
    layer, outer = _inner(model), _outer(model)
    x, inner = np.asarray(problem.x, np.float64), np.asarray(layer.weight, np.float64)
    d = x.shape[1]
    if layer.bias is not None:
        x = np.column_stack([x, np.ones(len(x))])
        inner = np.column_stack([inner, layer.bias])
    z = x @ inner.T
    size = np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(inner, axis=1)[None]
    kinks = np.abs(z) <= tol * size
    slopes = np.where(kinks, 0.0, z > 0)

    outputs = jax.grad(problem.loss.log_risk)(problem.outputs(theta), problem.y)
    delta = -np.asarray(outputs, np.float64).reshape(len(x), -1) @ np.asarray(outer)
    exact = True
    for j in np.flatnonzero(kinks.any(axis=0)):
        at = kinks[:, j]
        exact &= int(np.linalg.matrix_rank(x[at])) == int(at.sum())
        slopes[at, j] = _box_least_squares(
            (delta[at, j, None] * x[at]).T, (slopes[:, j] * delta[:, j]) @ x
        )
    gradient = (slopes * delta).T @ x
    # The outer weights' part is an ordinary gradient.
    smooth = -jax.grad(problem.log_risk)(theta)
    moved = problem.model(smooth)
    inner = jnp.asarray(gradient, layer.weight.dtype)
    moved = eqx.tree_at(lambda m: _inner(m).weight, moved, inner[:, :d])
    if layer.bias is not None:
        moved = eqx.tree_at(lambda m: _inner(m).bias, moved, inner[:, d])
    direction = np.asarray(problem.theta_of(moved))
    return ClarkeDirection(direction, slopes, kinks, exact)


def _inner(model):
    """The layer before the kinks."""
    two_layer = isinstance(model, TwoLayer)
    mlp = isinstance(model, MLP) and len(model.layers) == 2
    if (two_layer or mlp) and isinstance(model.activation, ReLU):
        return model.inner if isinstance(model, TwoLayer) else model.layers[0]
    raise ValueError(
        "`problem` must hold a `TwoLayer`, or an `MLP` with one hidden layer, with "
        f"activation `ReLU()`; got {model!r}."
    )


def _outer(model):
    """The outer weights, shape `(outputs, width)`."""
    if isinstance(model, MLP):
        return model.layers[1].weight
    outer = model.outer.value if isinstance(model.outer, Fixed) else model.outer
    return outer[None] / (len(outer) if model.mean_field else 1)


def _box_least_squares(columns, offset):
    """The coefficients in [0, 1] that make `columns @ c + offset` smallest."""
    scale = max(np.abs(columns).max(), np.abs(offset).max())
    if scale == 0:
        return np.zeros(columns.shape[1])
    result = lsq_linear(columns / scale, -offset / scale, (0, 1), method="bvls")
    return result.x


class SlidingExample(eqx.Module):
    r"""A two-neuron network whose flow slides along kinks, with its closed form.

    $f(x) = \max(0, \langle w_1, x\rangle) - \max(0, \langle w_2, x\rangle)$,
    exponential loss, unit inputs with $\langle x_1, x_2\rangle = c \in (0, 1)$ and
    labels $+1, -1$. At first $\langle w_1, x_1\rangle = \langle w_2, x_2\rangle = s_0$
    and $\langle w_1, x_2\rangle = \langle w_2, x_1\rangle = -b$. Both margins are then
    $s = \ln(n/L)$, and $w_1$ moves by $x_1\,ds$ until $\langle w_1, x_2\rangle = 0$ at
    $s = s_0 + b/c$. There the flow pushes back from both sides; the element of
    smallest norm takes the slope $\lambda = c$, and $w_1$ slides along
    $(x_1 - c x_2)\,ds/(1 - c^2)$, $w_2$ likewise.

    **Arguments:** `cosine` $c$, `s0`, `gap` $b$.

    **Attributes:** `x`, `y`.
    """

    cosine: float = eqx.field(static=True, default=0.5)
    s0: float = eqx.field(static=True, default=0.5)
    gap: float = eqx.field(static=True, default=0.25)

    def __check_init__(self):
        if not (0 < self.cosine < 1 and self.gap > 0):
            raise ValueError(
                "`cosine` must lie between 0 and 1 and `gap` be positive; got "
                f"cosine={self.cosine}, gap={self.gap}."
            )

    @property
    def x(self) -> Float[np.ndarray, "2 2"]:
        """The two inputs."""
        half = np.arccos(self.cosine) / 2
        return np.array([[np.cos(half), np.sin(half)], [np.cos(half), -np.sin(half)]])

    @property
    def y(self) -> Float[np.ndarray, "2"]:
        """Their labels."""
        return np.array([1.0, -1.0])

    def problem(self, eps: float = 0.0) -> Problem:
        """The problem at its start, with `ReLU()` or `SmoothReLU(eps)`."""
        activation = SmoothReLU(eps) if eps > 0 else ReLU()
        model = TwoLayer(2, 2, activation, key=jax.random.key(0))
        start = self.solution(self.s0).reshape(2, 2)
        model = eqx.tree_at(
            lambda m: (m.inner.weight, m.outer.value),
            model,
            (jnp.asarray(start), jnp.asarray(self.y)),
        )
        return Problem(model, self.x, self.y, loss=Exponential())

    def solution(self, s: ArrayLike) -> Float[np.ndarray, "*shape 4"]:
        """The exact flow at log-risk times `s` >= `s0`, as flat parameters."""
        s = np.asarray(s, float)[..., None, None]
        c, corner = self.cosine, self.s0 + self.gap / self.cosine
        own, other = self.x, self.x[::-1]
        # In the basis dual to the inputs: coefficients s and -b at the start.
        start = (self.s0 + c * self.gap) * own - (self.gap + c * self.s0) * other
        theta = start / (1 - c**2) + (np.minimum(s, corner) - self.s0) * own
        theta = theta + np.maximum(s - corner, 0) * (own - c * other) / (1 - c**2)
        return theta.reshape(*theta.shape[:-2], 4)
