"""Fully connected networks without biases."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from .._parameters import Fixed
from .activations import AbstractActivation, Identity, PowerReLU, ReLU
from .layers import Dense, Signal, apply, output


def _check_widths(widths):
    several = np.ndim(widths) == 1 and len(widths) >= 2
    whole = several and all(isinstance(w, int | np.integer) for w in widths)
    if not whole or min(widths) < 1:
        raise ValueError(
            f"`widths` must hold at least two positive whole numbers, from the input "
            f"to the output; got {widths}."
        )


# Numbers of features that products with matrices take fastest are multiples of this.
_UNIT = 8


class Linear(eqx.Module):
    """`weight @ x`: homogeneous of degree 1.

    **Arguments:**

    - `d`: number of features.
    - `classes`: number of outputs; with one the output is a number.
    - `key`: for normal weights of variance `scale**2 / d`; all zero without.

    **Attributes:** `weight`, shape `(classes, d)`.
    """

    weight: Float[Array, "classes d"]

    def __init__(
        self,
        d: int,
        classes: int = 1,
        *,
        key: PRNGKeyArray | None = None,
        scale: float | int = 1.0,
    ):
        _check_widths((d, classes))
        if key is None:
            self.weight = jnp.zeros((classes, d))
        else:
            self.weight = scale * d**-0.5 * jax.random.normal(key, (classes, d))

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, "..."]:
        """The output for one example, shape `()` or `(classes,)`."""
        # Among a flow's products is one that sums over examples for each feature; of
        # 31 features it takes a CPU twice as long as of 32.
        fill = -x.shape[-1] % _UNIT
        weight = jnp.pad(self.weight, ((0, 0), (0, fill)))
        z = jnp.pad(x, (0, fill)) @ weight.T
        return z[0] if len(z) == 1 else z


class MLP(eqx.Module):
    """A fully connected network without biases, homogeneous of degree its depth.

    (With `PowerReLU(k)` of degree 1 + k + k^2 + ...; in each layer alone of degree
    k to the number of activations after it.)

    **Arguments:**

    - `widths`: from input to output, as (65, 64, 32, 1). With a last width of one the
        output is a number.
    - `activation`: between the layers.
    - `key`, `scale`: He initialisation times `scale`.

    **Attributes:** `layers` (`Dense`, with `weight` of shape `(outputs, inputs)`),
    `activation`.
    """

    layers: tuple[Dense, ...]
    activation: AbstractActivation

    def __init__(
        self,
        widths: Sequence[int],
        activation: AbstractActivation = ReLU(),
        *,
        key: PRNGKeyArray,
        scale: float | int = 1.0,
    ):
        _check_widths(widths)
        keys = jax.random.split(key, len(widths) - 1)
        self.layers = tuple(
            Dense(a, b, key=k, scale=scale) for a, b, k in zip(widths, widths[1:], keys)
        )
        self.activation = activation

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, "..."]:
        """The output for one example, shape `()` or `(classes,)`."""
        signal = self.layers[0](Signal.of(x))
        for layer in self.layers[1:]:
            signal = apply((self.activation, layer), signal)
        return output(signal)


class DeepLinear(eqx.Module):
    """A product of matrices: `MLP` without activations, `layers` as there."""

    layers: tuple[Dense, ...]

    def __init__(
        self, widths: Sequence[int], *, key: PRNGKeyArray, scale: float | int = 1.0
    ):
        self.layers = MLP(widths, Identity(), key=key, scale=scale).layers

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, "..."]:
        """The output for one example, shape `()` or `(classes,)`."""
        return output(apply(self.layers, Signal.of(x)))


class TwoLayer(eqx.Module):
    r"""$\sum_j a_j\,\sigma(\langle w_j, x\rangle)$, with $a_j = \pm1$ not trained.

    The squared-ReLU network of Ji and Telgarsky, Appendix A: homogeneous of degree
    `activation.degree`, one more where the outer weights are trained.

    **Arguments:**

    - `d`, `width`: numbers of features and of neurons.
    - `activation`: $\sigma$.
    - `key`, `scale`: He initialisation times `scale` for $w$; random signs for $a$.
    - `train_outer`: train $a$ too, which then also starts as signs times `scale`.
    - `mean_field`: divide the output by `width`.

    **Attributes:** `inner` (`Dense`, weight of shape `(width, d)`), `outer` (shape
    `(width,)`, inside `gf.Fixed` unless trained), `activation`, `mean_field`.
    """

    inner: Dense
    outer: Fixed | Float[Array, " width"]
    activation: AbstractActivation
    mean_field: bool = eqx.field(static=True)

    def __init__(
        self,
        d: int,
        width: int,
        activation: AbstractActivation = PowerReLU(2),
        *,
        key: PRNGKeyArray,
        scale: float | int = 1.0,
        train_outer: bool = False,
        mean_field: bool = False,
    ):
        _check_widths((d, width))
        inner_key, outer_key = jax.random.split(key)
        self.inner = Dense(d, width, key=inner_key, scale=scale)
        signs = jax.random.rademacher(outer_key, (width,), self.inner.weight.dtype)
        self.outer = scale * signs if train_outer else Fixed(signs)
        self.activation = activation
        self.mean_field = mean_field

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """The output for one example, a number."""
        h = apply((self.inner, self.activation), Signal.of(x)).value
        outer = self.outer.value if isinstance(self.outer, Fixed) else self.outer
        total = jnp.vdot(outer, h)
        return total / len(h) if self.mean_field else total
