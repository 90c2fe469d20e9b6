"""Convolution and pooling of images, channels last."""

import functools
from collections.abc import Callable
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from .activations import Scale, check_smoothing, safe_sqrt, smooth_relu
from .layers import AbstractLayer, Signal, he_normal

Padding = int | Literal["SAME", "VALID"]


def convolve_natively(
    h: Float[Array, "rows columns inputs"],
    weight: Float[Array, "outputs size size inputs"],
    stride: int,
    padding: int,
) -> Float[Array, "new_rows new_columns outputs"]:
    """Cross-correlation by the compiler, the fastest way on accelerators."""
    return jax.lax.conv_general_dilated(
        h[None],
        weight,
        (stride, stride),
        [(padding, padding)] * 2,
        dimension_numbers=("NHWC", "OHWI", "NHWC"),
    )[0]


def convolve_patches(
    h: Float[Array, "rows columns inputs"],
    weight: Float[Array, "outputs size size inputs"],
    stride: int,
    padding: int,
) -> Float[Array, "new_rows new_columns outputs"]:
    """Cross-correlation as one matrix product with the patches of an image.

    On a CPU, XLA's convolution takes 15 times longer inside a loop than outside it
    (jax 0.10), and a flow is a loop; the matrix product does not.
    """
    join = functools.partial(jnp.concatenate, axis=-1)
    patches = over_windows(pad(h, padding, "constant"), join, weight.shape[1], stride)
    return patches @ weight.reshape(len(weight), -1).T


class Conv(AbstractLayer):
    """Cross-correlation of an image of shape `(height, width, channels)`.

    **Arguments:**

    - `inputs`, `outputs`: numbers of channels.
    - `size`: height and width of the filters.
    - `stride`, `padding`: numbers of rows and columns; "SAME" is half the size of
        the filters, "VALID" none.
    - `bias`: as for `Dense`.
    - `key`, `scale`: He initialisation times `scale`.

    **Attributes:** `weight`, shape `(outputs, size, size, inputs)`; `bias`.
    """

    weight: Float[Array, "outputs size size inputs"]
    bias: Float[Array, " outputs"] | None
    stride: int = eqx.field(static=True)
    padding: int = eqx.field(static=True)

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        *,
        key: PRNGKeyArray,
        stride: int = 1,
        padding: Padding = "VALID",
        scale: float | int = 1.0,
        bias: bool = False,
    ):
        self.weight = he_normal(key, (outputs, size, size, inputs), scale)
        self.bias = jnp.zeros(outputs) if bias else None
        self.stride = stride
        if padding == "SAME" and size % 2 == 0:
            raise ValueError(
                f'`padding="SAME"` needs filters of odd size; got size={size}.'
            )
        named = {"SAME": size // 2, "VALID": 0}
        self.padding = named[padding] if isinstance(padding, str) else padding

    def __call__(self, signal):
        h = signal.value
        if h.ndim != 3 or h.shape[2] != self.weight.shape[3]:
            raise ValueError(
                f"A convolution of {self.weight.shape[3]} channels was given shape "
                f"{h.shape}: expected (height, width, {self.weight.shape[3]})."
            )
        size = self.weight.shape[1]
        rows = jnp.sum(self.weight**2, axis=(1, 2, 3))
        cpu = jax.default_backend() == "cpu"
        convolve = convolve_patches if cpu else convolve_natively
        z = convolve(h, self.weight, self.stride, self.padding)
        square = pad(jnp.sum(h**2, axis=2), self.padding, "constant")
        inputs = over_windows(square, _sum, size, self.stride)
        reference = size**2 * signal.reference
        if self.bias is not None:
            z = z + self.bias[None, None]
            rows, inputs, reference = rows + self.bias**2, inputs + 1, reference + 1
        fan_in = self.weight[0].size
        scale = Scale(safe_sqrt(rows), inputs, reference)
        return Signal(z, reference * jnp.sum(rows) / fan_in, scale)


def pad(
    h: Float[Array, "rows columns *channels"],
    padding: int,
    mode: Literal["constant", "edge"],
) -> Float[Array, "more_rows more_columns *channels"]:
    """The image with `padding` rows and columns on each side: zeros, or its edges."""
    return jnp.pad(h, [(padding, padding)] * 2 + [(0, 0)] * (h.ndim - 2), mode)


def over_windows(
    images: PyTree[Array], combine: Callable[[list], PyTree], size: int, stride: int
) -> PyTree[Array]:
    """Combines the entries of each window: of each row's first, then those of rows.

    `combine` gets a list of `size` strided views. Taking all `size * size` at once
    means many more operations, and compiling takes much longer.
    """
    for axis in (1, 0):

        def view(image, i):
            length = (image.shape[axis] - size) // stride * stride + 1
            return jax.lax.slice_in_dim(image, i, i + length, stride, axis)

        images = combine(
            [jax.tree.map(lambda h, i=i: view(h, i), images) for i in range(size)]
        )
    return images


class MaxPool(AbstractLayer):
    r"""Largest entry of each window; smoothed where `eps` is positive.

    The smoothed maximum is a tournament of pairs, $\max_\varepsilon(a, b) =
    b + r\,\varphi((a - b)/r)$ with $r$ the band of `SmoothReLU`, in it the mean of both
    sides' $\lVert h\rVert^2$: symmetric in each pair, exact where they differ by more
    than $r$, homogeneous. Put it before the activation, with which it commutes when
    exact: a pair of equal entries is raised by $\tfrac{3}{16} r$, dead ones too.
    Padding repeats the edges of the image, which no exact maximum can tell from none.

    With `eps = 0`, entries that tie exactly share the derivative equally.

    **Arguments:** `size` of the windows, `stride` (`size` when not given), `padding`,
    `eps`, `delta`.
    """

    size: int = eqx.field(static=True, default=2)
    stride: int | None = eqx.field(static=True, default=None)
    padding: int = eqx.field(static=True, default=0)
    eps: float | int = eqx.field(static=True, default=0.0)
    delta: float | int = eqx.field(static=True, default=0.1)

    def __check_init__(self):
        check_smoothing(self.eps, self.delta)
        if not 0 <= self.padding < self.size:
            raise ValueError(
                f"`padding={self.padding}` must be less than `size={self.size}`, so "
                "that every window meets the image."
            )

    def __call__(self, signal):
        scale = signal.scale
        value = pad(signal.value, self.padding, "edge")
        if scale is None:
            if self.eps > 0:
                raise ValueError(
                    f"Smoothed pooling (eps={self.eps}) needs the scale of a layer "
                    "with weights before it: put a convolution there."
                )
            return Signal(self._best(value, jnp.maximum), signal.reference)
        inputs = pad(scale.inputs, self.padding, "edge")
        if self.eps == 0:
            value, size = self._best(value, jnp.maximum), self._best(inputs, _mean)
        else:

            def match(first, second):
                (a, a_size), (b, b_size) = first, second
                size = _mean(a_size, b_size)
                pair = Scale(scale.weight, size, scale.reference)
                return b + smooth_relu(a - b, pair.band(self.eps, self.delta)), size

            value, size = self._best((value, inputs), match)
        return Signal(
            value, signal.reference, Scale(scale.weight, size, scale.reference)
        )

    def _best(self, images, match):
        tournament = functools.partial(_tournament, match)
        return over_windows(images, tournament, self.size, self.stride or self.size)


def _sum(views):
    return functools.reduce(jnp.add, views)


def _mean(a, b):
    return (a + b) / 2


def _tournament(match, players):
    while len(players) > 1:
        pairs = zip(players[::2], players[1::2])
        odd = players[-1:] if len(players) % 2 else []
        players = [match(a, b) for a, b in pairs] + odd
    return players[0]


class AvgPool(AbstractLayer):
    """Mean of each window of `size` rows and columns; windows do not overlap."""

    size: int = eqx.field(static=True, default=2)

    def __call__(self, signal):
        def mean(h):
            return over_windows(h, _sum, self.size, self.size) / self.size**2

        scale = signal.scale
        if scale is not None:
            scale = Scale(scale.weight, mean(scale.inputs), scale.reference)
        return Signal(mean(signal.value), signal.reference, scale)


class GlobalAvgPool(AbstractLayer):
    """Mean over all positions, of shape `(channels,)`."""

    def __call__(self, signal):
        return Signal(jnp.mean(signal.value, axis=(0, 1)), signal.reference)
