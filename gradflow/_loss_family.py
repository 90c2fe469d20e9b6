"""Losses beyond the exponential, logistic and cross-entropy ones."""

import functools
from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from ._losses import AbstractLoss, Exponential, Logistic


class ExponentialTail(AbstractLoss):
    r"""$\ell(q) = e^{-f(q)}$: the general exponential-tailed loss.

    $f$ increases, and on $(b_f, \infty)$ so does $f'(q)\,q$. The smoothed margin is
    $\ell^{-1}(L) = g(-\ln L)$ with $g$ the inverse of $f$. Everything is evaluated
    through $f$ and $g$, hence in the log domain.

    **Arguments:**

    - `f`, `f_prime`: elementwise functions of an array, $f$ and $f'$.
    - `g`, `g_prime`: the inverse of $f$ on $[f(b_f), \infty)$ and its derivative.
    - `b_f`: not negative; the theory speaks of times with $L < \ell(b_f)$.

    `ExponentialTail.power(3)` is $e^{-q^3}$, `ExponentialTail.logistic_power(3)` is
    $\ln(1 + e^{-q^3})$. (Their derivative vanishes at $q = 0$: do not start there.)

    **Raises:** `ValueError` if `f_prime`, `g` or `g_prime` do not belong to `f`.

    **Source:** Lyu and Li, Appendix A.1, assumption (B3).
    """

    f: Callable = eqx.field(static=True)
    f_prime: Callable = eqx.field(static=True)
    g: Callable = eqx.field(static=True)
    g_prime: Callable = eqx.field(static=True)
    b_f: float | int = eqx.field(static=True, default=0.0)

    def __check_init__(self):
        if self.b_f < 0:
            raise ValueError(f"`b_f` must not be negative; got {self.b_f}.")
        q = self.b_f + jnp.array([0.5, 1.0, 2.0])
        value, slope = jax.jvp(self.f, (q,), (jnp.ones_like(q),))
        back, back_slope = jax.jvp(self.g, (value,), (jnp.ones_like(q),))
        for name, given, expected in (
            ("f_prime", self.f_prime(q), slope),
            ("g", back, q),
            ("g_prime", self.g_prime(value), back_slope),
        ):
            if not bool(jnp.allclose(given, expected, rtol=1e-3)):
                raise ValueError(
                    f"`{name}` does not belong to `f`: at q = {q.tolist()} it gives "
                    f"{given.tolist()}, but {expected.tolist()} was expected."
                )

    def log_loss(self, p):
        return _minus(self.f, self.f_prime, p)

    def log_slope(self, p):
        return self.f_prime(p)

    def inverse(self, log_risk):
        return self.g(-log_risk)

    @staticmethod
    @functools.cache
    def power(k: int = 3) -> "ExponentialTail":
        """exp(-q^k) for odd `k`."""
        return _of_power(Exponential(), k)

    @staticmethod
    @functools.cache
    def logistic_power(k: int = 3) -> "ExponentialTail":
        """ln(1 + exp(-q^k)) for odd `k`."""
        return _of_power(Logistic(), k)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _minus(f, f_prime, p):
    del f_prime
    return -f(p)


@_minus.defjvp
def _(f, f_prime, primals, tangents):
    return -f(primals[0]), -f_prime(primals[0]) * tangents[0]


def _of_power(base: AbstractLoss, k: int) -> ExponentialTail:
    """The loss of `q**k`, with `base` the loss of `q`."""
    if k < 1 or k % 2 == 0:
        raise ValueError(f"`k` must be odd and positive; got {k}.")

    def root(x):
        return jnp.sign(x) * jnp.abs(x) ** (1 / k)

    def f(q):
        return -base.log_loss(q**k)

    def f_prime(q):
        return k * q ** (k - 1) * base.log_slope(q**k)

    def g(x):
        return root(base.inverse(-x))

    def g_prime(x):
        return 1 / f_prime(g(x))

    return ExponentialTail(f, f_prime, g, g_prime)


class Squared(AbstractLoss):
    r"""$\ell(p) = (1 - p)^2$, which is $(y - \Phi)^2$ for labels $y = \pm1$.

    It is no exponential-type loss: the flow ends at a finite point where the network
    interpolates the labels, which it approaches as the log risk falls to $-\infty$; so
    $s = \ln(n/L)$ is the natural clock here too. `inverse` is the branch below one,
    $1 - \sqrt L$; `log_slope` is negative beyond $p = 1$.

    Residuals $1 - p$ are differences of numbers near one, and their rounding moves the
    log risk by a thousandth at about $2\ln(2\cdot10^3\epsilon)$: -57 in float64, -17
    in float32. That is as far as the flow of a linear model can be trusted; solvers of
    other flows amplify it, and certificates may fail from -45 on in float64.

    **Source:** Banburski et al., Theory III.
    """

    exponential_tail: ClassVar[bool] = False

    def log_loss(self, p):
        return _log_square(1 - p)

    def log_slope(self, p):
        return _inverse_residual(1 - p)

    def inverse(self, log_risk):
        return -jnp.expm1(log_risk / 2)

    def slope_at_risk(self, log_risk):
        return 2 * jnp.exp(-log_risk / 2)


@jax.custom_jvp
def _log_square(residual):
    smallest = jnp.finfo(residual.dtype).tiny
    return 2 * jnp.log(jnp.maximum(jnp.abs(residual), smallest))


def _inverse_residual(residual):
    # 2 / residual, zero (not infinite) where an example is fitted exactly.
    smallest = jnp.finfo(residual.dtype).tiny
    return 2 * jnp.sign(residual) / jnp.maximum(jnp.abs(residual), 2 * smallest)


@_log_square.defjvp
def _(primals, tangents):
    (residual,), (dresidual,) = primals, tangents
    return _log_square(residual), _inverse_residual(residual) * dresidual
