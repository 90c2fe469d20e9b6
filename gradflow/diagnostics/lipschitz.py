"""Lipschitz constants of margins in the examples."""

from typing import Any, NamedTuple

import numpy as np

from .._parameters import Fixed
from ..models.activations import (
    AbstractActivation,
    Identity,
    LeakyReLU,
    ReLU,
    SmoothAbs,
    SmoothLeakyReLU,
    SmoothReLU,
)
from ..models.dense import MLP, DeepLinear, Linear, TwoLayer

# Largest slope of the smoothed ReLU's value in its band.
_BUMP = 3 / 16


def lipschitz_bound(model: Any, *, missing: float | None = None) -> float:
    r"""A Lipschitz constant of the margin in $x$, by a product over the layers.

    For `Linear`, `DeepLinear`, and `MLP` and `TwoLayer` with `Identity`, `ReLU`,
    `LeakyReLU` or their smoothed forms. A layer $z = Wh$ counts with its spectral norm
    and the largest slope $m$ of its activation. In the band of a smoothed one, of
    half-width $r_i = \varepsilon\lVert w_i\rVert N(x)$, the output also depends on
    $r_i$, with a slope of at most $b = \tfrac{3}{16}|1 - \ell|$, $\ell$ the slope below
    zero. So a layer and its activation take a constant $a$ to

    $$a' = m\lVert W\rVert_2\,a
        + b\,\varepsilon\lVert W\rVert_F\sqrt{a^2 + \delta^2 c^2}$$

    where $c$ is the constant of the square root of the reference scale in $N$
    (`gf.models.SmoothReLU`). With several classes the last layer counts by its largest
    difference of two rows.

    **Raises:** `ValueError` for other models, unless `missing` says what to return.
    (Powers have no global constant.)
    """
    layers = _layers(model)
    if layers is None:
        if missing is not None:
            return missing
        raise ValueError(
            f"no Lipschitz bound is known for {type(model).__name__}: pass `lipschitz`."
        )
    matrices, biases, slopes, last = layers
    constant = reference = 1.0
    for matrix, bias in zip(matrices, biases):
        frobenius = np.sqrt(np.sum(matrix**2) + np.sum(bias**2))
        size = np.hypot(constant, slopes.delta * reference)
        smooth = _BUMP * slopes.spread * slopes.eps * frobenius * size
        constant = slopes.largest * float(np.linalg.norm(matrix, 2)) * constant + smooth
        reference = reference * frobenius / np.sqrt(matrix.shape[1])
    if len(last) > 1:
        gaps = last[:, None] - last[None]
        return float(np.max(np.linalg.norm(gaps, axis=2)) * constant)
    return float(np.linalg.norm(last) * constant)


class _Slopes(NamedTuple):
    largest: float
    spread: float = 0.0
    eps: float = 0.0
    delta: float = 0.0


def _slopes(activation: AbstractActivation) -> _Slopes | None:
    if isinstance(activation, Identity | ReLU):
        return _Slopes(1.0)
    if isinstance(activation, LeakyReLU):
        return _Slopes(max(1.0, abs(activation.slope)))
    if isinstance(activation, SmoothReLU):
        left = 0.0
    elif isinstance(activation, SmoothLeakyReLU):
        left = float(activation.slope)
    elif isinstance(activation, SmoothAbs):
        left = -1.0
    else:
        return None
    return _Slopes(max(1.0, abs(left)), abs(1 - left), activation.eps, activation.delta)


def _layers(model):
    """Matrices and biases before the last, their activation's slopes, the last."""
    if isinstance(model, Linear):
        return [], [], _Slopes(1.0), _rows(model.weight)
    if isinstance(model, TwoLayer):
        outer = model.outer.value if isinstance(model.outer, Fixed) else model.outer
        dense, activation = [model.inner], model.activation
        last = _rows(outer) / (len(outer) if model.mean_field else 1)
    elif isinstance(model, MLP | DeepLinear):
        activation = model.activation if isinstance(model, MLP) else Identity()
        dense, last = model.layers[:-1], _rows(model.layers[-1].weight)
    else:
        return None
    slopes = _slopes(activation)
    if slopes is None:
        return None
    matrices = [_rows(layer.weight) for layer in dense]
    biases = [_rows(0 if layer.bias is None else layer.bias) for layer in dense]
    return matrices, biases, slopes, last


def _rows(array) -> np.ndarray:
    return np.atleast_2d(np.asarray(array, np.float64))
