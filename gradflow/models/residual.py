r"""ResNet-18 and DenseNet-121: skip connections, outside the theory's assumptions.

Both follow torchvision, which takes images of any size of at least 32x32; the layers'
names are torchvision's, so that its weights can be imported.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from equinox import Module
from jaxtyping import Array, Float, PRNGKeyArray

from .activations import AbstractActivation, ReLU, Scale, safe_sqrt
from .convolution import AvgPool, Conv, GlobalAvgPool, MaxPool
from .layers import AbstractLayer, Dense, Signal, apply, image, output
from .normalization import BatchNorm

_EPS = 1e-5  # of every batch normalisation in torchvision


def _norm(channels: int, norm: bool) -> BatchNorm | None:
    return BatchNorm(channels, _EPS) if norm else None


def _pass(signal: Signal, *layers: AbstractLayer | AbstractActivation | None) -> Signal:
    return apply([layer for layer in layers if layer is not None], signal)


def _add(a: Signal, b: Signal) -> Signal:
    scale = None
    if a.scale is not None and b.scale is not None:
        scale = Scale(
            safe_sqrt(a.scale.weight**2 + b.scale.weight**2),
            a.scale.inputs + b.scale.inputs,
            a.scale.reference + b.scale.reference,
        )
    return Signal(a.value + b.value, a.reference + b.reference, scale)


def _stack(a: Signal, b: Signal) -> Signal:
    scale = None
    if a.scale is not None and b.scale is not None:
        scale = Scale(
            jnp.concatenate([a.scale.weight, b.scale.weight]),
            (a.scale.inputs + b.scale.inputs) / 2,
            (a.scale.reference + b.scale.reference) / 2,
        )
    value = jnp.concatenate([a.value, b.value], axis=-1)
    return Signal(value, a.reference + b.reference, scale)


class BasicBlock(AbstractLayer):
    """Two 3x3 convolutions beside a skip connection, projected where shapes differ."""

    conv1: Conv
    bn1: BatchNorm | None
    conv2: Conv
    bn2: BatchNorm | None
    downsample: tuple[Conv, BatchNorm | None] | None
    activation: AbstractActivation

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        activation: AbstractActivation,
        *,
        norm: bool,
        key: PRNGKeyArray,
        scale: float | int,
    ):
        keys = jax.random.split(key, 3)
        self.conv1 = Conv(
            inputs, outputs, 3, stride=stride, padding=1, key=keys[0], scale=scale
        )
        self.conv2 = Conv(outputs, outputs, 3, padding=1, key=keys[1], scale=scale)
        self.bn1, self.bn2 = _norm(outputs, norm), _norm(outputs, norm)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            project = Conv(inputs, outputs, 1, stride=stride, key=keys[2], scale=scale)
            self.downsample = (project, _norm(outputs, norm))
        self.activation = activation

    def __call__(self, signal):
        inner = _pass(signal, self.conv1, self.bn1, self.activation)
        inner = _pass(inner, self.conv2, self.bn2)
        skip = _pass(signal, *self.downsample) if self.downsample else signal
        return apply((self.activation,), _add(inner, skip))


class ResNet18(Module):
    r"""torchvision's `resnet18(num_classes=10)`; not homogeneous.

    **Arguments:**

    - `activation`: between the layers; `pool`, behind the first, such as
        `MaxPool(3, 2, 1, eps=1e-2)`.
    - `norm`: batch normalisation in its training form over the whole batch, or none.
    - `widths`: channels of the four groups of two blocks.
    - `key`, `scale`: He initialisation times `scale`.

    **Attributes:** `conv1`, `bn1`, `blocks` (8 `BasicBlock`), `fc` (with bias).

    **Source:** Ji and Telgarsky, Appendix A (Figure 3).
    """

    conv1: Conv
    bn1: BatchNorm | None
    blocks: tuple[BasicBlock, ...]
    fc: Dense
    activation: AbstractActivation
    pool: MaxPool

    def __init__(
        self,
        activation: AbstractActivation = ReLU(),
        pool: MaxPool = MaxPool(3, 2, 1),
        *,
        norm: bool = True,
        widths: Sequence[int] = (64, 128, 256, 512),
        key: PRNGKeyArray,
        scale: float | int = 1.0,
    ):
        keys = iter(jax.random.split(key, 2 + 2 * len(widths)))
        self.conv1 = Conv(
            3, widths[0], 7, stride=2, padding=3, key=next(keys), scale=scale
        )
        self.bn1 = _norm(widths[0], norm)
        blocks, inputs = [], widths[0]
        for group, width in enumerate(widths):
            for stride in (1 if group == 0 else 2, 1):
                blocks.append(
                    BasicBlock(
                        inputs,
                        width,
                        stride,
                        activation,
                        norm=norm,
                        key=next(keys),
                        scale=scale,
                    )
                )
                inputs = width
        self.blocks = tuple(blocks)
        self.fc = Dense(inputs, 10, bias=True, key=next(keys), scale=scale)
        self.activation = activation
        self.pool = pool

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, " 10"]:
        """The ten outputs for one image, inside `jax.vmap(..., axis_name="batch")`."""
        stem = (self.conv1, self.bn1, self.activation, self.pool)
        signal = _pass(image(x, 3), *stem)
        return output(_pass(signal, *self.blocks, GlobalAvgPool(), self.fc))


class DenseLayer(AbstractLayer):
    """norm, activation, conv 1x1, norm, activation, conv 3x3; stacked on its input."""

    norm1: BatchNorm | None
    conv1: Conv
    norm2: BatchNorm | None
    conv2: Conv
    activation: AbstractActivation

    def __init__(
        self,
        inputs: int,
        growth: int,
        activation: AbstractActivation,
        *,
        norm: bool,
        key: PRNGKeyArray,
        scale: float | int,
    ):
        keys = jax.random.split(key)
        self.norm1, self.norm2 = _norm(inputs, norm), _norm(4 * growth, norm)
        self.conv1 = Conv(inputs, 4 * growth, 1, key=keys[0], scale=scale)
        self.conv2 = Conv(4 * growth, growth, 3, padding=1, key=keys[1], scale=scale)
        self.activation = activation

    def __call__(self, signal):
        inner = _pass(signal, self.norm1, self.activation, self.conv1)
        inner = _pass(inner, self.norm2, self.activation, self.conv2)
        return _stack(signal, inner)


class Transition(AbstractLayer):
    """norm, activation, conv 1x1 to half the channels, average pool."""

    norm: BatchNorm | None
    conv: Conv
    activation: AbstractActivation

    def __init__(
        self,
        inputs: int,
        activation: AbstractActivation,
        *,
        norm: bool,
        key: PRNGKeyArray,
        scale: float | int,
    ):
        self.norm = _norm(inputs, norm)
        self.conv = Conv(inputs, inputs // 2, 1, key=key, scale=scale)
        self.activation = activation

    def __call__(self, signal):
        return _pass(signal, self.norm, self.activation, self.conv, AvgPool(2))


class DenseNet121(Module):
    r"""torchvision's `densenet121(num_classes=10)`; not homogeneous.

    **Arguments:** as for `ResNet18`; `blocks`, the numbers of layers in the blocks, and
    `growth`, the channels that each layer adds.

    **Attributes:** `conv0`, `norm0`, `blocks` (tuples of `DenseLayer`), `transitions`,
    `norm5`, `classifier` (with bias).

    **Source:** Ji and Telgarsky, Appendix A (Figure 2b).
    """

    conv0: Conv
    norm0: BatchNorm | None
    blocks: tuple[tuple[DenseLayer, ...], ...]
    transitions: tuple[Transition, ...]
    norm5: BatchNorm | None
    classifier: Dense
    activation: AbstractActivation
    pool: MaxPool

    def __init__(
        self,
        activation: AbstractActivation = ReLU(),
        pool: MaxPool = MaxPool(3, 2, 1),
        *,
        norm: bool = True,
        blocks: Sequence[int] = (6, 12, 24, 16),
        growth: int = 32,
        key: PRNGKeyArray,
        scale: float | int = 1.0,
    ):
        keys = iter(jax.random.split(key, 1 + sum(blocks) + len(blocks)))
        width = 2 * growth
        self.conv0 = Conv(3, width, 7, stride=2, padding=3, key=next(keys), scale=scale)
        self.norm0 = _norm(width, norm)
        groups, transitions = [], []
        for index, count in enumerate(blocks):
            group = []
            for _ in range(count):
                group.append(
                    DenseLayer(
                        width,
                        growth,
                        activation,
                        norm=norm,
                        key=next(keys),
                        scale=scale,
                    )
                )
                width += growth
            groups.append(tuple(group))
            if index < len(blocks) - 1:
                transitions.append(
                    Transition(
                        width, activation, norm=norm, key=next(keys), scale=scale
                    )
                )
                width //= 2
        self.blocks, self.transitions = tuple(groups), tuple(transitions)
        self.norm5 = _norm(width, norm)
        self.classifier = Dense(width, 10, bias=True, key=next(keys), scale=scale)
        self.activation = activation
        self.pool = pool

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, " 10"]:
        """The ten outputs for one image, inside `jax.vmap(..., axis_name="batch")`."""
        stem = (self.conv0, self.norm0, self.activation, self.pool)
        signal = _pass(image(x, 3), *stem)
        for group, transition in zip(self.blocks, (*self.transitions, None)):
            signal = _pass(signal, *group, transition)
        head = (self.norm5, self.activation, GlobalAvgPool(), self.classifier)
        return output(_pass(signal, *head))
