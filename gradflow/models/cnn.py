r"""The convolutional networks of the papers' experiments.

All take images channels last (a missing channel axis is added) and are homogeneous
without biases, or with biases in the first layer only, where the bias counts as the
weight of a constant input.
"""

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from .activations import AbstractActivation, ReLU
from .convolution import Conv, MaxPool
from .layers import Dense, Flatten, apply, image, output


def _biases(bias, count):
    options = {
        "first": [True] + [False] * (count - 1),
        "all": [True] * count,
        "none": [False] * count,
    }
    if bias not in options:
        raise ValueError(f"`bias` must be one of {list(options)}; got {bias!r}.")
    return options[bias]


class HAlexNet(eqx.Module):
    r"""The PyTorch tutorial's CIFAR network without biases; homogeneous of degree 5.

    conv-6 5x5, pool, conv-16 5x5, pool, fc-120, fc-84, fc-10 on 32x32x3 images, ReLU
    between the layers. Pooling comes before the activation, with which it commutes.

    **Arguments:** `activation`; `pool`, such as `MaxPool(2, eps=1e-2)`; `widths` of the
    four hidden layers; `key`, `scale`: He initialisation times `scale`.

    **Attributes:** `convs` (2 `Conv`), `dense` (3 `Dense`), `activation`, `pool`.

    **Source:** Ji and Telgarsky, Appendix A (Figure 2a).
    """

    convs: tuple[Conv, ...]
    dense: tuple[Dense, ...]
    activation: AbstractActivation
    pool: MaxPool

    def __init__(
        self,
        activation: AbstractActivation = ReLU(),
        pool: MaxPool = MaxPool(2),
        *,
        widths: tuple[int, int, int, int] = (6, 16, 120, 84),
        key: PRNGKeyArray,
        scale: float | int = 1.0,
    ):
        keys, (a, b, c, d) = jax.random.split(key, 5), widths
        self.convs = (
            Conv(3, a, 5, key=keys[0], scale=scale),
            Conv(a, b, 5, key=keys[1], scale=scale),
        )
        self.dense = (
            Dense(5 * 5 * b, c, key=keys[2], scale=scale),
            Dense(c, d, key=keys[3], scale=scale),
            Dense(d, 10, key=keys[4], scale=scale),
        )
        self.activation = activation
        self.pool = pool

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, " 10"]:
        """The ten outputs for one image."""
        signal = image(x, 3)
        for conv in self.convs:
            signal = apply((conv, self.pool, self.activation), signal)
        signal = apply((Flatten(), self.dense[0]), signal)
        for dense in self.dense[1:]:
            signal = apply((self.activation, dense), signal)
        return output(signal)


class LyuLiCNN(eqx.Module):
    r"""Lyu and Li's MNIST network; homogeneous of degree 4 unless `bias="all"`.

    conv-32 5x5, pool, conv-64 3x3, pool, fc-1024, fc-10 on 28x28 images, padded so
    that a convolution keeps the size.

    **Arguments:**

    - `bias`: in the `"first"` layer only (which keeps the network homogeneous, the
        paper's "CNN without bias"), in `"all"` layers, or in `"none"`.
    - `activation`; `pool`, such as `MaxPool(2, eps=1e-2)`.
    - `widths`: of the three hidden layers.
    - `key`, `scale`: He initialisation times `scale`; biases start at zero.

    **Attributes:** `convs` (2 `Conv`), `dense` (2 `Dense`), `activation`, `pool`.

    **Source:** Lyu and Li, Appendix K.
    """

    convs: tuple[Conv, ...]
    dense: tuple[Dense, ...]
    activation: AbstractActivation
    pool: MaxPool

    def __init__(
        self,
        activation: AbstractActivation = ReLU(),
        pool: MaxPool = MaxPool(2),
        *,
        bias: str = "first",
        widths: tuple[int, int, int] = (32, 64, 1024),
        key: PRNGKeyArray,
        scale: float | int = 1.0,
    ):
        keys = jax.random.split(key, 4)
        b, (first, second, dense) = _biases(bias, 4), widths
        self.convs = (
            Conv(1, first, 5, padding="SAME", bias=b[0], key=keys[0], scale=scale),
            Conv(first, second, 3, padding="SAME", bias=b[1], key=keys[1], scale=scale),
        )
        self.dense = (
            Dense(7 * 7 * second, dense, bias=b[2], key=keys[2], scale=scale),
            Dense(dense, 10, bias=b[3], key=keys[3], scale=scale),
        )
        self.activation = activation
        self.pool = pool

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, " 10"]:
        """The ten outputs for one image."""
        signal = image(x, 1)
        for conv in self.convs:
            signal = apply((conv, self.pool, self.activation), signal)
        first, second = self.dense
        return output(apply((Flatten(), first, self.activation, second), signal))


class VGG16(eqx.Module):
    r"""Lyu and Li's VGGNet-16; homogeneous of degree 14 unless `bias="all"`.

    conv-64 twice, conv-128 twice, conv-256, conv-512 and conv-512 three times each, all
    3x3, with a pool after each group, and fc-10, on 32x32x3 images.

    **Arguments:** as for `LyuLiCNN`, but `widths` are the channels of the five groups,
    and `repeats` their numbers of convolutions ((1, 1, 2, 2, 2) makes VGGNet-11).

    **Attributes:** `groups` (tuples of `Conv`), `dense`, `activation`, `pool`.

    **Source:** Lyu and Li, Appendix K.
    """

    groups: tuple[tuple[Conv, ...], ...]
    dense: Dense
    activation: AbstractActivation
    pool: MaxPool

    def __init__(
        self,
        activation: AbstractActivation = ReLU(),
        pool: MaxPool = MaxPool(2),
        *,
        bias: str = "first",
        widths: tuple[int, int, int, int, int] = (64, 128, 256, 512, 512),
        repeats: tuple[int, int, int, int, int] = (2, 2, 3, 3, 3),
        key: PRNGKeyArray,
        scale: float | int = 1.0,
    ):
        depth = sum(repeats) + 1
        keys = iter(jax.random.split(key, depth))
        biases = iter(_biases(bias, depth))
        groups, inputs = [], 3
        for width, count in zip(widths, repeats):
            group = []
            for _ in range(count):
                group.append(
                    Conv(
                        inputs,
                        width,
                        3,
                        padding="SAME",
                        bias=next(biases),
                        key=next(keys),
                        scale=scale,
                    )
                )
                inputs = width
            groups.append(tuple(group))
        self.groups = tuple(groups)
        self.dense = Dense(inputs, 10, bias=next(biases), key=next(keys), scale=scale)
        self.activation = activation
        self.pool = pool

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, " 10"]:
        """The ten outputs for one image."""
        signal = image(x, 3)
        for group in self.groups:
            for conv in group[:-1]:
                signal = apply((conv, self.activation), signal)
            signal = apply((group[-1], self.pool, self.activation), signal)
        return output(apply((Flatten(), self.dense), signal))
