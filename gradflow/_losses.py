"""Exponential-type losses, evaluated in the log domain.

A loss sees the network's output for one example, reduces it to a *margin*, and gives
`ln l(margin)`. The risk itself is never formed: at margin 800 it is zero in float64,
while its logarithm and the logarithm's derivative keep full precision.
"""

import abc
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, Integer


class AbstractLoss(eqx.Module):
    r"""A decreasing loss $\ell(p)$ of the margin $p$, given through its logarithm.

    A new loss implements these methods; everything else (risk, weights, smoothed
    margin, dual variables) follows from them.

    `exponential_tail`: whether the theory of the smoothed margin applies; without it
    the quantities and checks that rest on that theory are left out.
    """

    exponential_tail: ClassVar[bool] = True

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        names = ("log_slope", "inverse", "log_size", "scaled", "slope_at_risk")
        defined = {name: _owner(cls, name) for name in ("log_loss", *names)}
        stale = [name for name in names if defined[name] not in (AbstractLoss, cls)]
        if defined["log_loss"] is cls and stale:
            raise ValueError(
                f"The loss `{cls.__name__}` changes `log_loss` but inherits {stale} of "
                "another: define them too, or derive it from `gf.AbstractLoss`."
            )

    @abc.abstractmethod
    def log_loss(self, p: Float[Array, "..."]) -> Float[Array, "..."]:
        r"""$\ln\ell(p)$, elementwise; differentiable twice without cancellation."""

    @abc.abstractmethod
    def log_slope(self, p: Float[Array, "..."]) -> Float[Array, "..."]:
        r"""$-\tfrac{d}{dp}\ln\ell(p) = -\ell'(p)/\ell(p) > 0$, elementwise."""

    @abc.abstractmethod
    def inverse(self, log_risk: Float[Array, "..."]) -> Float[Array, "..."]:
        r"""The smoothed margin $\alpha = \ell^{-1}(e^{\text{log\_risk}})$."""

    def slope_at_risk(self, log_risk: Float[Array, "..."]) -> Float[Array, "..."]:
        r"""`log_slope` at the smoothed margin: $\lVert\nabla\ln L\rVert$ over
        $\lVert\nabla\alpha\rVert$."""
        return self.log_slope(self.inverse(log_risk))

    def log_size(self, p: Float[Array, "..."]) -> Float[Array, "..."]:
        r"""$\ln\ell(p)$, elementwise, or what costs less and is off by so little that
        the quotient of both neither overflows nor becomes small."""
        return self.log_loss(p)

    def scaled(
        self, p: Float[Array, "..."], log_scale: Float[Array, "..."]
    ) -> Float[Array, "..."]:
        r"""$\ell(p)\,e^{-\text{log\_scale}}$, elementwise; differentiable twice in `p`
        without cancellation. The scale is at least `log_size`, and constant."""
        return jnp.exp(self.log_loss(p) - log_scale)

    def margin(
        self, output: Float[Array, "..."], label: Float[Array, ""] | Integer[Array, ""]
    ) -> Float[Array, ""]:
        r"""The hard margin of one example, of label -1 or +1; homogeneous wherever the
        output is."""
        # XLA's product of so little with labels takes a CPU ten times as long.
        output = jnp.reshape(output, ())
        return jnp.where(label > 0, output, -output)

    def soft_margin(
        self, output: Float[Array, "..."], label: Float[Array, ""] | Integer[Array, ""]
    ) -> Float[Array, ""]:
        r"""The margin that enters $\ell$; the hard one except for several classes."""
        return self.margin(output, label)

    def log_risk(
        self,
        outputs: Float[Array, "n ..."],
        y: Float[Array, " n"] | Integer[Array, " n"],
    ) -> Float[Array, ""]:
        r"""$\ln L$ of a network's outputs for all examples."""
        return self.log_total(jax.vmap(self.soft_margin)(outputs, y))

    def log_total(
        self, p: Float[Array, " n"], log_weights: Float[Array, "..."] | float = 0.0
    ) -> Float[Array, ""]:
        r"""$\ln\sum_i e^{v_i}\ell(p_i)$ with $v$ the `log_weights`, which are constants
        and may be $-\infty$, though not all of them."""
        return _log_total(p, self, log_weights)

    def labels(self, y: Array, output_shape: tuple[int, ...], dtype) -> Array:
        r"""Checks labels and output shape for this loss; returns labels as stored."""
        return binary_labels(y, output_shape, type(self).__name__, dtype)


def _owner(cls, name):
    return next(base for base in cls.__mro__ if name in vars(base))


# JAX would differentiate the logarithm of a sum twice by a dozen passes over as many
# columns as a Jacobian has; by these rules it takes two.
@eqx.filter_custom_jvp
def _log_total(p, loss, log_weights):
    largest, log_scale = _scales(p, loss, log_weights)
    return largest + jnp.log(jnp.sum(loss.scaled(p, log_scale)))


@_log_total.def_jvp
def _(primals, tangents):
    return _log_total(*primals), -_dot(_pull(*primals), tangents[0])


@eqx.filter_custom_jvp
def _pull(p, loss, log_weights):
    # Each example's share of the risk times its slope: -d ln L / dp.
    _, log_scale = _scales(p, loss, log_weights)
    losses, slopes = _with_slope(lambda p: loss.scaled(p, log_scale), p)
    return -slopes / jnp.sum(losses)


@_pull.def_jvp
def _(primals, tangents):
    p, loss, log_weights = primals
    dp, *_ = tangents
    _, log_scale = _scales(p, loss, log_weights)

    def losses_and_slopes(p):
        return _with_slope(lambda p: loss.scaled(p, log_scale), p)

    (losses, slopes), (_, bends) = _with_slope(losses_and_slopes, p)
    total = jnp.sum(losses)
    pull = -slopes / total
    return pull, (-bends / total) * dp + pull * _dot(pull, dp)


def _dot(a, b):
    # For a Jacobian's columns a product of matrices, several times as fast as sums.
    return jnp.dot(a, b, precision=jax.lax.Precision.HIGHEST)


def _with_slope(function, p):
    return jax.jvp(function, (p,), (jnp.ones_like(p),))


def _scales(p, loss, log_weights):
    # The log of the largest weighted loss, or nearly, and what each loss is divided by.
    p = jax.lax.stop_gradient(p)
    largest = jnp.max(loss.log_size(p) + log_weights)
    return largest, largest - log_weights


def binary_labels(y: Array, output_shape: tuple[int, ...], name: str, dtype) -> Array:
    """Checks that `y` holds -1 and +1 and that the output is one number."""
    if output_shape not in ((), (1,)):
        raise ValueError(
            f"`model` returns shape {output_shape} for one example, but `{name}()` "
            "needs one number, shape () or (1,). For several classes pass integer "
            "labels and `loss=CrossEntropy()`."
        )
    values = set(np.unique(np.asarray(y)).tolist())
    if values <= {0, 1} and 0 in values:
        raise ValueError(
            f"`y` holds {sorted(values)}, but a binary loss needs labels -1 and +1: "
            "pass `2 * y - 1`, or a model with one output per class for cross-entropy."
        )
    if not values <= {-1, 1}:
        raise ValueError(
            f"`y` holds {sorted(values)[:5]}, but `{name}()` needs labels -1 and +1."
        )
    return jnp.asarray(y, dtype)


class Exponential(AbstractLoss):
    r"""$\ell(p) = e^{-p}$. Source: Ji and Telgarsky, Section 2."""

    def log_loss(self, p):
        return -p

    def log_slope(self, p):
        return jnp.ones_like(p)

    def inverse(self, log_risk):
        return -log_risk


# artanh(z)/z = 1 + z^2 P(z^2) on [0, 1/3] to a relative 5e-18: the minimax polynomial
# P, highest power first (by mpmath's `chebyfit`).
_ARTANH = (
    0.08082022805971766,
    0.04400369243072337,
    0.06000536404795356,
    0.06657072104827468,
    0.07692785032479312,
    0.09090894718066429,
    0.11111111358713932,
    0.1428571428355438,
    0.20000000000007292,
    0.3333333333333333,
)


def _log1p_over(e):
    # q = ln(1 + e) / e on [0, 1], and 1 - q, both to rounding, by
    # ln(1 + e) = 2 artanh(z) with z = e / (2 + e) <= 1/3. On a CPU, XLA takes
    # logarithms one by one, and a division costs as much as six terms.
    inverse = 1 / (2 + e)
    square = (e * inverse) ** 2
    tail = _ARTANH[0]
    for coefficient in _ARTANH[1:]:
        tail = coefficient + square * tail
    tail = square * tail
    return 2 * inverse * (1 + tail), inverse * (e - 2 * tail)


@jax.jit  # Traced once, not for each of a flow's two dozen uses.
def _softplus_neg(p):
    # e = exp(-|p|); ln(1 + e^-p) for p <= 0, its quotient by e^-p for p > 0; and one
    # minus that quotient for p > 0, one minus e^p ln(1 + e^-p) for p <= 0. Each branch
    # sees only its own side, so that neither poisons the derivative; at zero, where
    # every network with zero weights starts, `maximum` or `abs` would change it.
    e = jnp.exp(jnp.where(p > 0, -p, p))
    q, rest = _log1p_over(e)
    softplus = jnp.where(p > 0, q, e * q - p)
    return e, softplus, jnp.where(p > 0, rest, 1 - e * softplus)


def _log_size(p):
    return jnp.where(p > 0, -p, 0)


@jax.custom_jvp
def _log_softplus_neg(p):
    # For p > 0 that of e^-p ln(1 + e)/e with e = e^-p.
    return jnp.log(_softplus_neg(p)[1]) + _log_size(p)


@jax.custom_jvp
def _logistic_log_slope(p):
    # sigmoid(-p) / softplus(-p), of both of which e^-p is divided out for p > 0.
    e, softplus, _ = _softplus_neg(p)
    return 1 / ((1 + e) * softplus)


@_logistic_log_slope.defjvp
def _(primals, tangents):
    # With a the slope, a' = a (a - sigmoid(p)). The rule keeps the Jacobian's columns
    # from repeating these functions.
    (p,), (dp,) = primals, tangents
    e, softplus, rest = _softplus_neg(p)
    slope = 1 / ((1 + e) * softplus)
    return slope, slope * (slope * rest) * dp


@_log_softplus_neg.defjvp
def _(primals, tangents):
    (p,), (dp,) = primals, tangents
    return _log_softplus_neg(p), -_logistic_log_slope(p) * dp


def _scaled_exponentials(p, log_scale):
    # e^-|p|, and the scaled loss over ln(1 + e^-p)/e^-p for p > 0, over ln(1 + e^-p)
    # for p <= 0. Exponentials are a tenth of a small flow's time, so that one does for
    # both: a scale for all is at most one, and one where any p <= 0.
    magnitude = jnp.where(p > 0, p, -p)
    scaled = jnp.exp(-magnitude - log_scale)
    if jnp.ndim(log_scale) == 0:
        return scaled * jnp.exp(log_scale), jnp.where(p > 0, scaled, 1)
    return jnp.exp(-magnitude), jnp.where(p > 0, scaled, jnp.exp(-log_scale))


@jax.custom_jvp
def _scaled_softplus_neg(p, log_scale):
    e, size = _scaled_exponentials(p, log_scale)
    q, _ = _log1p_over(e)
    return size * jnp.where(p > 0, q, e * q - p)


@jax.custom_jvp
def _scaled_slope(p, log_scale):
    # sigmoid(-p), scaled.
    e, size = _scaled_exponentials(p, log_scale)
    return size / (1 + e)


@_scaled_softplus_neg.defjvp
def _(primals, tangents):
    # Scales are constant.
    return _scaled_softplus_neg(*primals), -_scaled_slope(*primals) * tangents[0]


@_scaled_slope.defjvp
def _(primals, tangents):
    e, _ = _scaled_exponentials(*primals)
    slope = _scaled_slope(*primals)
    return slope, -slope * (jnp.where(primals[0] > 0, 1, e) / (1 + e)) * tangents[0]


# Below this the series.
_SMALL = 1e-2


@jax.jit
def _inverse_logistic(log_risk):
    # -ln(e^r - 1) with r = e^log_risk: for small r this is -log_risk - ln((e^r-1)/r),
    # for large r it is -r - ln(1 - e^-r).
    r = jnp.exp(jnp.minimum(log_risk, 0))
    large = jnp.maximum(r, _SMALL)
    series = r * (1 / 2 + r * (1 / 24 - r * r / 2880))
    tail = jnp.where(r < _SMALL, series, jnp.log(jnp.expm1(large) / large))
    small = -log_risk - tail
    r = jnp.exp(jnp.maximum(log_risk, 0))
    large = -r - jnp.log(-jnp.expm1(-r))
    return jnp.where(log_risk > 0, large, small)


class _OfLogistic(AbstractLoss):
    # ln(1 + e^-p) of whatever margin enters the loss.

    def log_loss(self, p):
        return _log_softplus_neg(p)

    def log_size(self, p):
        return _log_size(p)

    def scaled(self, p, log_scale):
        return _scaled_softplus_neg(p, log_scale)

    def log_slope(self, p):
        return _logistic_log_slope(p)

    def inverse(self, log_risk):
        return _inverse_logistic(log_risk)

    def slope_at_risk(self, log_risk):
        # sigmoid(-alpha) is 1 - e^-L, and the slope that over L: 1 for L < eps.
        risk = jnp.maximum(jnp.exp(log_risk), jnp.finfo(log_risk.dtype).eps)
        return -jnp.expm1(-risk) / risk


class Logistic(_OfLogistic):
    r"""$\ell(p) = \ln(1 + e^{-p})$. Source: Ji and Telgarsky, Section 2.

    The smoothed margin is $\ell^{-1}(L) = -\ln(e^L - 1)$; it is $-\infty$ once the
    risk itself overflows (log risk above 709 in float64, 88 in float32).
    """


class CrossEntropy(_OfLogistic):
    r"""Softmax cross-entropy for integer labels, as the logistic loss of a soft margin.

    With $s_j = \Phi_y - \Phi_j$ the soft margin is
    $\tilde q = -\ln\sum_{j\ne y} e^{-s_j}$, the loss $\ln(1 + e^{-\tilde q})$ and the
    hard margin $\min_{j\ne y} s_j$; they satisfy
    $\text{hard} - \ln(C - 1) \le \tilde q \le \text{hard}$.

    **Source:** Lyu and Li, Appendix G.
    """

    def margin(self, output, label):
        others = jnp.arange(output.shape[0], dtype=label.dtype) != label
        return output[label] - jnp.max(jnp.where(others, output, -jnp.inf))

    def soft_margin(self, output, label):
        others = jnp.arange(output.shape[0], dtype=label.dtype) != label
        gaps = jnp.where(others, output - output[label], -jnp.inf)
        return -logsumexp(gaps)

    def labels(self, y, output_shape, dtype):
        del dtype
        if len(output_shape) != 1 or output_shape[0] < 2:
            raise ValueError(
                f"`model` returns shape {output_shape} for one example, but "
                "`CrossEntropy()` needs (classes,) with at least two classes. For one "
                "output pass labels -1 and +1."
            )
        y = y.astype(jnp.int32) if y.dtype == bool else y
        if not bool(jnp.all(y == jnp.round(y))):
            raise ValueError("`y` must hold whole numbers for `CrossEntropy()`.")
        low, high = int(jnp.min(y)), int(jnp.max(y))
        if low < 0 or high >= output_shape[0]:
            raise ValueError(
                f"`y` holds classes {low} to {high}, but `model` has {output_shape[0]} "
                f"outputs: labels must lie in 0, ..., {output_shape[0] - 1}."
            )
        return jnp.asarray(y, jnp.int32)
