r"""Activations: positively homogeneous functions of one number, exact and smoothed.

An activation is called as `activation(z, scale)`, with `z` the preactivations of a
layer and `scale` their natural size (`gf.models.Scale`); only the smoothed ones read
it. All of them also work alone, as `gf.models.ReLU()(z)`.
"""

import abc
import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def safe_sqrt(x: Float[Array, "..."]) -> Float[Array, "..."]:
    r"""$\sqrt x$ for $x \ge 0$, with derivative zero (not infinite) at zero."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), 0)


class Scale(eqx.Module):
    r"""The natural size of preactivations, homogeneous in the weights as they are.

    A neuron with weights $w$ that reads $h$ has $|\langle w, h\rangle| \le
    \lVert w\rVert \lVert h\rVert$. Convolutions have one $h$ for each position, and
    channels last.

    **Attributes:**

    - `weight`: $\lVert w\rVert$, shape `(channels,)`.
    - `inputs`: $\lVert h\rVert^2$, shape `positions`: `()` for a dense layer.
    - `reference`: $\lVert x\rVert^2 \prod_l \lVert W_l\rVert^2 / \text{fan-in}_l$
        over the layers before: about what $\lVert h\rVert^2$ would be if the
        activations before had not cut it. It is positive also where $h$ vanishes
        because every neuron before is off.
    """

    weight: Float[Array, " channels"]
    inputs: Float[Array, "*positions"]
    reference: Float[Array, "..."]

    def band(
        self, eps: float | int, delta: float | int
    ) -> Float[Array, "*positions channels"]:
        r"""$\varepsilon\lVert w\rVert
        \sqrt{\lVert h\rVert^2 + \delta^2\,\text{reference}}$, as preactivations."""
        norm = safe_sqrt(self.inputs + delta**2 * self.reference)
        if norm.ndim > 0:
            return jnp.multiply.outer(norm, eps * self.weight)
        # A matrix product over all examples, since its derivatives are too: the sums
        # that a broadcast product leads to cost more than a dense layer's activation.
        # With positions besides, it is the matrix product that costs more.
        return norm[None] @ (eps * self.weight)[None]


@jax.custom_jvp
def smooth_relu(z: Float[Array, "..."], r: Float[Array, "..."]) -> Float[Array, "..."]:
    r"""$r\,\varphi(z/r)$: ReLU outside $[-r, r]$, twice differentiable everywhere.

    $\varphi(u) = (1 + u)^3 (3 - u) / 16$ on $[-1, 1]$, the primitive of the
    primitive of $\tfrac34 (1 - u^2)$; it exceeds ReLU by at most $3/16$, at $u = 0$.
    Homogeneous of degree one in $(z, r)$ together. With $u$ clipped to $[-1, 1]$ the
    partial derivatives are $\varphi'(u) = \tfrac12 + \tfrac34 u - \tfrac14 u^3$ and
    $\varphi - u\varphi' = \tfrac3{16}(1 - u^2)^2$, and by Euler's identity they give
    the value as well. At $r = 0$ it is ReLU, with derivative $1/2$ at $z = 0$.
    """
    slope, bump = _partials(z, r)
    return z * slope + r * bump


@jax.custom_jvp
def _partials(z, r):
    u = _band_coordinate(z, r)
    square = u * u
    return 0.5 + u * (0.75 - 0.25 * square), 0.1875 * (1 - square) ** 2


@_partials.defjvp
def _(primals, tangents):
    z, r = primals
    dz, dr = tangents
    u = _band_coordinate(z, r)
    curvature = jnp.where(r > 0, 0.75 * (1 - u * u) / jnp.where(r > 0, r, 1), 0)
    dslope = curvature * (dz - u * dr)
    return _partials(z, r), (dslope, -u * dslope)


def _band_coordinate(z, r):
    # z / r clipped to [-1, 1]; the sign of z where r = 0.
    return jnp.clip(z / jnp.maximum(r, jnp.finfo(r.dtype).tiny), -1, 1)


@smooth_relu.defjvp
def _(primals, tangents):
    z, r = primals
    dz, dr = tangents
    slope, bump = _partials(z, r)
    return z * slope + r * bump, slope * dz + bump * dr


def _two_slopes(z, scale, eps, delta, left):
    # left * z below zero and z above, with the kink at zero rounded off.
    if eps == 0:
        return jnp.where(z > 0, z, left * z)
    if scale is None:
        raise ValueError(
            f"A smoothed activation (eps={eps}) needs `scale`: put it behind a layer "
            "with weights, or call it with a `gf.models.Scale`."
        )
    relu = smooth_relu(z, scale.band(eps, delta))
    return relu if left == 0 else left * z + (1 - left) * relu


def check_smoothing(eps: float, delta: float) -> None:
    """Raises `ValueError` unless `eps` lies in [0, 1] and `delta` is not negative."""
    if not 0 <= eps <= 1:
        raise ValueError(f"`eps` must lie in [0, 1]; got {eps}.")
    if delta < 0:
        raise ValueError(f"`delta` must not be negative; got {delta}.")


class AbstractActivation(eqx.Module):
    """A positively homogeneous function, applied elementwise."""

    @abc.abstractmethod
    def __call__(
        self, z: Float[Array, "..."], scale: Scale | None = None
    ) -> Float[Array, "..."]:
        """The activations for preactivations `z` of natural size `scale`."""

    @property
    @abc.abstractmethod
    def degree(self) -> float | int:
        """Degree of homogeneity."""


class Identity(AbstractActivation):
    """No activation."""

    def __call__(self, z, scale=None):
        del scale
        return z

    @property
    def degree(self):
        return 1


class ReLU(AbstractActivation):
    """max(0, z), with derivative 0 at z = 0."""

    def __call__(self, z, scale=None):
        del scale
        return jnp.where(z > 0, z, 0)

    @property
    def degree(self):
        return 1


class LeakyReLU(AbstractActivation):
    """z above zero, `slope * z` below and at zero (where the derivative is `slope`)."""

    slope: float | int = eqx.field(static=True, default=0.01)

    def __call__(self, z, scale=None):
        del scale
        return jnp.where(z > 0, z, self.slope * z)

    @property
    def degree(self):
        return 1


class PowerReLU(AbstractActivation):
    """max(0, z) to the power `k` >= 1; `k = 2` has locally Lipschitz gradients."""

    k: float | int = eqx.field(static=True, default=2)

    def __check_init__(self):
        if not (self.k >= 1 and math.isfinite(self.k)):
            raise ValueError(f"`k` must be at least 1; got {self.k}.")

    def __call__(self, z, scale=None):
        del scale
        if self.k == int(self.k):
            return jnp.where(z > 0, z, 0) ** int(self.k)
        return jnp.where(z > 0, jnp.where(z > 0, z, 1) ** self.k, 0)

    @property
    def degree(self):
        return self.k


class Power(AbstractActivation):
    """z to the integer power `k` >= 1; `Power(2)` is the quadratic activation."""

    k: float | int = eqx.field(static=True, default=2)

    def __check_init__(self):
        if not (self.k >= 1 and self.k == int(self.k)):
            raise ValueError(f"`k` must be a positive whole number; got {self.k}.")

    def __call__(self, z, scale=None):
        del scale
        return z ** int(self.k)

    @property
    def degree(self):
        return self.k


class SmoothReLU(AbstractActivation):
    r"""ReLU with its kink rounded off, still homogeneous: $r\,\varphi(z/r)$.

    The half-width of the rounded band is $r = \varepsilon\lVert w\rVert
    \sqrt{\lVert h\rVert^2 + \delta^2 \lVert x\rVert^2 \prod_l \lVert W_l\rVert^2 /
    \text{fan-in}_l}$, with `w` the neuron's weights, `h` its input and the product
    over the layers before it. $r$ scales as the preactivation does, in all
    parameters together and in each layer alone, so the network keeps its degrees. The
    `delta` term leaves no kink where an example's hidden layer is all zero.

    It differs from ReLU by at most $\tfrac{3}{16} r$; `eps = 0` is ReLU.
    """

    eps: float | int = eqx.field(static=True)
    delta: float | int = eqx.field(static=True, default=0.1)

    def __check_init__(self):
        check_smoothing(self.eps, self.delta)

    def __call__(self, z, scale=None):
        return _two_slopes(z, scale, self.eps, self.delta, 0)

    @property
    def degree(self):
        return 1


class SmoothLeakyReLU(AbstractActivation):
    """LeakyReLU smoothed as in `SmoothReLU`; `eps = 0` is LeakyReLU."""

    eps: float | int = eqx.field(static=True)
    slope: float | int = eqx.field(static=True, default=0.01)
    delta: float | int = eqx.field(static=True, default=0.1)

    def __check_init__(self):
        check_smoothing(self.eps, self.delta)

    def __call__(self, z, scale=None):
        return _two_slopes(z, scale, self.eps, self.delta, self.slope)

    @property
    def degree(self):
        return 1


class SmoothAbs(AbstractActivation):
    """|z| smoothed as in `SmoothReLU`; `eps = 0` is |z|, with derivative -1 at 0."""

    eps: float | int = eqx.field(static=True)
    delta: float | int = eqx.field(static=True, default=0.1)

    def __check_init__(self):
        check_smoothing(self.eps, self.delta)

    def __call__(self, z, scale=None):
        return _two_slopes(z, scale, self.eps, self.delta, -1)

    @property
    def degree(self):
        return 1
