r"""Margins given by formulas, and the smallest network outside the assumptions."""

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float


class Homogeneous(eqx.Module):
    r"""Any function made homogeneous: $\rho^L f(\theta/\rho, x)$ with $\rho$ the norm.

    A function that is homogeneous of degree $L$ already is returned as it is.

    **Arguments:**

    - `function`: called as `function(theta, x)` with `theta` of unit norm, for one
        example; returns a number, or one for each class.
    - `degree`: $L$, positive.
    - `theta`: the initial parameters, shape `(k,)`, not zero.
    """

    function: Callable = eqx.field(static=True)
    degree: float | int = eqx.field(static=True)
    theta: Float[Array, " k"]

    def __check_init__(self):
        if self.degree <= 0:
            raise ValueError(f"`degree` must be positive; got {self.degree}.")

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The output for one example."""
        rho = jnp.linalg.norm(self.theta)
        return rho**self.degree * self.function(self.theta / rho, x)


class MexicanHat(eqx.Module):
    r"""The homogeneous Mexican hat: a margin whose direction circles for ever.

    With $(u, v, w) = \theta/\lVert\theta\rVert$, $(r, \varphi)$ the polar coordinates
    of $(u, v)$ and $\psi = \varphi - 1/(1 - r^2)$,

    $$q = \lVert\theta\rVert^L (1 - f), \quad
    f = e^{-1/(1 - r^2)} (1 - C(r) \sin\psi), \quad
    C(r) = \frac{4 r^4}{4 r^4 + (1 - r^2)^3}$$

    ($f = 0$ at $r = 1$). If $\psi = 0$ at first then it stays zero, $r \to 1$ and
    $\varphi \to \infty$ like $\ln\ln\lVert\theta\rVert$. The exponent 3 in $C$ is what
    makes $\psi = 0$ invariant on the sphere; 4 is that of Absil et al. in the plane.

    The path is unstable: a deviation from $\psi = 0$ grows about like $e^{\varphi^4}$,
    so that in float64 a flow keeps to it for about a quarter of a turn, up to
    $\varphi \approx 2.7$; it then falls into the valley $\psi = -3\pi/2$, which winds
    for ever too, and is stable. Time along the valley goes like $L e^\varphi
    \varphi^5$ in $\ln\rho$, so a full turn takes a small degree: `degree=1e-7` makes
    1.2 turns by $\ln\rho = 300$.

    The model is not definable, and its path length is infinite: its certificate fails
    in the row "path length to come" once the tangent's power can be told.

    **Arguments:**

    - `degree`: $L$, positive.
    - `r`: start on $\psi = 0$ at this radius, between 0 and 1.
    - `rho`: the initial norm.

    **Attributes:** `theta`, shape `(3,)`. Every example has the margin $q$.

    **Source:** Lyu and Li, Appendix J.
    """

    theta: Float[Array, "3"]
    degree: float | int = eqx.field(static=True)

    def __init__(
        self, degree: float | int = 1.0, *, r: float = 0.5, rho: float | int = 1.0
    ):
        if degree <= 0 or not 0 < r < 1 or rho <= 0:
            raise ValueError(
                "`degree` and `rho` must be positive and `r` between 0 and 1; got "
                f"degree={degree}, r={r}, rho={rho}."
            )
        phi = 1 / (1 - r**2)
        position = jnp.array([jnp.cos(phi), jnp.sin(phi)])
        self.theta = rho * jnp.append(r * position, (1 - r**2) ** 0.5)
        self.degree = degree

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, ""]:
        """The margin $q$, whatever the example is."""
        del x
        rho = jnp.linalg.norm(self.theta)
        u, v, w = self.theta / rho
        # 1 - r^2 as w^2, which loses no digits where r is close to one.
        gap = jnp.where(w != 0, w**2, 1)
        square = u**2 + v**2
        c = 4 * square**2 / (4 * square**2 + gap**3)
        psi = jnp.arctan2(v, u) - 1 / gap
        hat = jnp.where(w != 0, jnp.exp(-1 / gap) * (1 - c * jnp.sin(psi)), 0)
        return rho**self.degree * (1 - hat)


class SkipScalar(eqx.Module):
    r"""$v w x + u x$: a linear network of width one with a skip connection.

    Not homogeneous. From $w = v = u = 2$ on the single example $(1, 1)$ its margin at
    $\theta/\lVert\theta\rVert$ falls monotonically from $4/12 + 2/\sqrt{12} > 0.9$ to
    $1/2$ while the loss vanishes.

    **Arguments:** `start`: the initial value of `w`, `v` and `u`.

    **Source:** Vardi, Shamir and Srebro, Theorem 6.1.
    """

    w: Float[Array, ""]
    v: Float[Array, ""]
    u: Float[Array, ""]

    def __init__(self, start: float | int = 2.0):
        self.w = self.v = self.u = jnp.array(float(start))

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, ""]:
        """The output for one example, a number or an array of one number."""
        return (self.v * self.w + self.u) * jnp.reshape(x, ())
