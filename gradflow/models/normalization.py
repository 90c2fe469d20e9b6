r"""Batch and weight normalisation: layers of degree zero in the weights before them."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .activations import Scale, safe_sqrt
from .convolution import Conv
from .layers import AbstractLayer, Dense, Signal


def _batch_mean(h):
    """Mean over positions, and over the examples mapped with axis name "batch"."""
    mean = jnp.mean(h, axis=tuple(range(h.ndim - 1)))
    return jax.lax.pmean(mean, "batch")


class BatchNorm(AbstractLayer):
    r"""$\gamma\,(h - \text{mean}) / \sqrt{\text{var} + \epsilon} + \beta$ by channel.

    Mean and variance are those of the whole batch (training form), so the model must be
    mapped by `jax.vmap(model, axis_name="batch")`, as `Problem` does, and without
    `batch_size`. With $\epsilon = 0$ the output is of degree 0 in all weights
    before (those that feed it alone), and of degree 1 in $(\gamma, \beta)$. A channel
    that is constant over the batch gives $\beta$.

    **Arguments:** `channels`; `eps`, $\epsilon$.

    **Attributes:** `weight` ($\gamma$, ones at first), `bias` ($\beta$, zeros).
    """

    weight: Float[Array, " channels"]
    bias: Float[Array, " channels"]
    eps: float | int = eqx.field(static=True)

    def __init__(self, channels: int, eps: float | int = 0.0):
        self.weight = jnp.ones(channels)
        self.bias = jnp.zeros(channels)
        self.eps = eps

    def __call__(self, signal):
        h = signal.value
        axes = tuple(range(h.ndim - 1))
        centred = h - jnp.expand_dims(_batch_mean(h), axes)
        variance = _batch_mean(centred**2) + self.eps
        positive = variance > 0
        inverse = jnp.where(positive, jnp.where(positive, variance, 1) ** -0.5, 0)
        value = centred * jnp.expand_dims(self.weight * inverse, axes)
        value = value + jnp.expand_dims(self.bias, axes)
        rows = self.weight**2 + self.bias**2
        one = jnp.ones((), h.dtype)
        scale = Scale(safe_sqrt(rows), jnp.ones(h.shape[:-1], h.dtype), one)
        return Signal(value, jnp.sum(rows), scale)


class WeightNorm(AbstractLayer):
    r"""A layer with weights $g_j\,v_j / \lVert v_j\rVert$ for neuron or channel $j$.

    Of degree 0 in each direction $v_j$ and of degree 1 in the gains $g$.

    **Arguments:** `layer`: a `Dense` or `Conv`; its weight becomes the direction $v$,
    and the gains start as its row norms, so that the function is the same.

    **Attributes:** `layer`, `gain` (shape `(outputs,)`).
    """

    layer: Dense | Conv
    gain: Float[Array, " outputs"]

    def __init__(self, layer: Dense | Conv):
        self.layer = layer
        self.gain = _row_norms(layer.weight)

    def __call__(self, signal):
        direction = self.layer.weight
        norms = _row_norms(direction)
        factor = self.gain / jnp.where(norms > 0, norms, 1)
        weight = direction * jnp.expand_dims(factor, tuple(range(1, direction.ndim)))
        return eqx.tree_at(lambda layer: layer.weight, self.layer, weight)(signal)


def _row_norms(weight):
    return safe_sqrt(jnp.sum(weight**2, axis=tuple(range(1, weight.ndim))))
