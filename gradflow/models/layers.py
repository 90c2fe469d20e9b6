r"""Layers, and the one way in which they are combined.

A layer is an Equinox module that maps a `Signal` to a `Signal`. Beside the
activations a signal carries, for smoothed activations and pooling, the reference scale
of the example and the natural size of the preactivations. What a network does not
read, the compiler removes.
"""

import abc
import math
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .activations import AbstractActivation, Scale, safe_sqrt


class Signal(eqx.Module):
    r"""What flows between layers, for one example.

    **Attributes:**

    - `value`: the activations $h$, channels last.
    - `reference`: one number, about $\lVert h\rVert^2$ at one position had no
        activation cut it (see `Scale`).
    - `scale`: natural size of `value` if it comes from a layer with weights.
    """

    value: Float[Array, "..."]
    reference: Float[Array, ""]
    scale: Scale | None = None

    @staticmethod
    def of(x: Float[Array, "..."]) -> "Signal":
        """The signal that enters a network: a vector, or an image, channels last."""
        return Signal(x, jnp.sum(x**2) / math.prod(x.shape[:-1]))


class AbstractLayer(eqx.Module):
    """A map from `Signal` to `Signal`."""

    @abc.abstractmethod
    def __call__(self, signal: Signal) -> Signal:
        """The signal behind this layer."""


def apply(layers: Sequence[Any], signal: Signal) -> Signal:
    """Passes a signal through layers and activations, first to last.

    **Raises:** `ValueError` for one that is neither.
    """
    for layer in layers:
        if isinstance(layer, AbstractActivation):
            signal = _activate(layer, signal)
        elif isinstance(layer, AbstractLayer):
            signal = layer(signal)
        else:
            raise ValueError(
                "Layers and activations must be those of `gf.models`, such as "
                f"`gf.models.ReLU()`, or subclasses of them; got {layer!r}."
            )
    return signal


def _activate(activation, signal):
    value = activation(signal.value, signal.scale)
    k = activation.degree
    if k == 1:
        return Signal(value, signal.reference, signal.scale)
    return Signal(value, signal.reference**k, None)


class Sequential(eqx.Module):
    """Layers and activations one after another, called on one example.

    A last axis of length one is dropped, so that a network with one output returns a
    number.
    """

    layers: tuple[AbstractLayer | AbstractActivation, ...]

    def __init__(self, layers: Sequence[AbstractLayer | AbstractActivation]):
        self.layers = tuple(layers)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The network's output for one example."""
        return output(apply(self.layers, Signal.of(x)))


def image(x: Float[Array, "..."], channels: int) -> Signal:
    """The signal of an image, channels last; a single channel may be left out."""
    x = x[..., None] if x.ndim == 2 else x
    if x.ndim != 3 or x.shape[2] != channels:
        raise ValueError(
            f"`x` has shape {x.shape}: expected (height, width, {channels}), channels "
            "last."
        )
    return Signal.of(x)


def output(signal: Signal) -> Float[Array, "..."]:
    """The network's output: its last signal, a number where that has one entry."""
    value = signal.value
    return jnp.reshape(value, ()) if value.shape == (1,) else value


def he_normal(
    key: PRNGKeyArray, shape: tuple[int, ...], scale: float | int
) -> Float[Array, "..."]:
    r"""Normal weights of variance $2\,\text{scale}^2/\text{fan-in}$ (He et al. 2015).

    The fan-in is the product of all axes but the first.
    """
    return scale * math.sqrt(2 / math.prod(shape[1:])) * jax.random.normal(key, shape)


class Dense(AbstractLayer):
    """`weight @ h`, plus a bias if there is one.

    **Arguments:**

    - `inputs`, `outputs`: the widths.
    - `bias`: whether to add a bias, zero at first. In the first layer this keeps the
        network homogeneous: the bias counts as the weight of a constant input 1.
    - `key`, `scale`: He initialisation times `scale`.
    """

    weight: Float[Array, "outputs inputs"]
    bias: Float[Array, " outputs"] | None

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        key: PRNGKeyArray,
        scale: float | int = 1.0,
        bias: bool = False,
    ):
        self.weight = he_normal(key, (outputs, inputs), scale)
        self.bias = jnp.zeros(outputs) if bias else None

    def __call__(self, signal):
        return multiply(self.weight, signal, self.bias)


def multiply(
    weight: Float[Array, "outputs inputs"],
    signal: Signal,
    bias: Float[Array, " outputs"] | None = None,
) -> Signal:
    """The signal behind a matrix: `weight @ h + bias` with its natural size."""
    h = signal.value
    if h.shape != weight.shape[1:]:
        raise ValueError(
            f"A dense layer for {weight.shape[1]} inputs was given shape {h.shape}: "
            "match the widths, or put `Flatten()` before it."
        )
    z, rows = h @ weight.T, jnp.sum(weight**2, axis=1)
    inputs, reference = jnp.sum(h**2), signal.reference
    if bias is not None:
        z = z + bias
        rows, inputs, reference = rows + bias**2, inputs + 1, reference + 1
    scale = Scale(safe_sqrt(rows), inputs, reference)
    return Signal(z, reference * jnp.sum(rows) / h.size, scale)


class Flatten(AbstractLayer):
    """All axes in one, in row-major order (rows, columns, channels)."""

    def __call__(self, signal):
        positions = math.prod(signal.value.shape[:-1])
        return Signal(jnp.ravel(signal.value), positions * signal.reference)
