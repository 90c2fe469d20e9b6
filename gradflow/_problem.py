"""A classification problem: model, data and loss as functions of flat parameters."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num, PyTree

from ._compile import jitted
from ._homogeneity import Probe, check_degree, declared_layers, measured_layers
from ._losses import AbstractLoss, CrossEntropy, Logistic
from ._parameters import Fixed, Layout, network, outputs
from .models.normalization import BatchNorm
from .models.precision import InPrecision


class Problem(eqx.Module):
    r"""Everything that defines a gradient flow: model, data, loss.

    Parameters are one flat vector `theta` of shape `(k,)`; `problem.model(theta)`
    gives the module back. All methods are pure and may be jitted, vmapped over `theta`
    and differentiated. With $p_i$ the margin of example $i$ and
    $L = \sum_i \ell(p_i)$ (a sum, not a mean), everything is computed from
    $\ln L$, so nothing underflows.

    **Arguments:**

    - `model`: an Equinox module called as `model(x_i)`, returning one number (labels
        -1 and +1) or one per class (integer labels). Examples are mapped by
        `jax.vmap(model, axis_name="batch")`.
    - `x`: floating point, shape `(n, ...)`, one row per example; kept in the dtype of
        the parameters.
    - `y`: shape `(n,)`, -1 and +1, or classes 0, ..., C - 1.
    - `loss`: by default `Logistic()` or `CrossEntropy()`, as the labels are.
    - `degree`: degree of homogeneity $L$, $\Phi(x; c\theta) = c^L\Phi(x; \theta)$.
        Measured by Euler's identity when not given, checked when given.
    - `homogeneous`: pass `False` for a model that is not homogeneous; `degree` is then
        `None` and quantities that need it are absent.
    - `layers`: the partition of the trained arrays into layers, each a list of names
        in `layout.names`. Found from the model when not given: an array in which the
        model is homogeneous alone is a layer, and so are arrays in which it is
        homogeneous only together, as a weight and a bias in the first layer.
    - `trainable`: which arrays of `model` are trained, of those in floating point;
        `gf.Fixed` never is.
    - `batch_size`: evaluate the risk over so many examples at a time, which bounds the
        memory; results agree with the whole batch to rounding. All at once by default.
    - `one_class`: allow labels that are all the same, usually a mistake.

    **Attributes:** `theta` (initial parameters), `x`, `y`, `loss`, `degree`,
    `output_shape` (of the output for one example),
    `layout` (names, shapes and offsets of the trained arrays), `layers` (for each layer
    the numbers of its arrays), `layer_degrees` $(k_1, \dots, k_m)$ (degree in each
    layer alone; they sum to `degree`). A model that is not homogeneous has one layer
    for each array, without degrees (`None`).

    **Raises:** `ValueError` for inconsistent data, labels, degree or layers, each
    naming the argument, the value and the remedy.

    **Source:** for layers and their degrees Lyu and Li, Section 4 and Appendix H.
    """

    theta: Float[Array, " k"]
    frozen: PyTree
    x: Array
    y: Array
    loss: AbstractLoss
    layout: Layout
    output_shape: tuple[int, ...] = eqx.field(static=True)
    degree: float | None = eqx.field(static=True)
    layers: tuple[tuple[int, ...], ...] = eqx.field(static=True)
    layer_degrees: tuple[float | None, ...] = eqx.field(static=True)
    batch_size: int | None = eqx.field(static=True)

    def __init__(
        self,
        model: Any,
        x: Any,
        y: Any,
        *,
        loss: Any = None,
        degree: float | int | None = None,
        homogeneous: bool = True,
        layers: Sequence[Sequence[str]] | None = None,
        trainable: Callable[[Any], bool] = eqx.is_inexact_array,
        batch_size: int | np.integer | None = None,
        one_class: bool = False,
    ):
        if not callable(model):
            raise ValueError(f"`model` must be callable on one example; got {model!r}.")
        x, y = _checked_data(x, y, one_class)
        if not callable(trainable):
            raise ValueError(
                f"`trainable` must be a function of an array; got {trainable!r}."
            )
        params, self.frozen = eqx.partition(
            model,
            lambda leaf: eqx.is_inexact_array(leaf) and bool(trainable(leaf)),
            is_leaf=lambda leaf: isinstance(leaf, Fixed),
        )
        self.layout, self.theta = Layout.of(params)
        # Data in another precision would be converted at every use, or decide the
        # outputs' precision.
        x = x.astype(self.theta.dtype)
        # On the host: jax.numpy would compile it for this one use.
        wrong = int(np.sum(~np.isfinite(np.asarray(self.theta, np.float64))))
        if wrong:
            raise ValueError(
                f"`model` has {wrong} parameters "
                "that are NaN or infinite; check its initialisation."
            )
        self.output_shape = _output_shape(model, x)
        if loss is None:
            one = self.output_shape in ((), (1,))
            loss = Logistic() if one else CrossEntropy()
        if not isinstance(loss, AbstractLoss):
            raise ValueError(
                f"`loss` must be a gradflow loss such as `gf.Logistic()`; got {loss!r}."
            )
        whole = isinstance(batch_size, int | np.integer) and batch_size is not True
        if batch_size is not None and not (whole and batch_size >= 1):
            raise ValueError(
                f"`batch_size` must be a positive whole number; got {batch_size!r}."
            )
        if batch_size is not None and _has(model, BatchNorm):
            raise ValueError(
                f"`batch_size={batch_size}` would normalise each batch by itself, but "
                "the model's BatchNorm is over all examples: leave `batch_size` out, "
                "or build the model without normalisation."
            )
        self.loss = loss
        self.x = x
        self.y = loss.labels(y, self.output_shape, self.theta.dtype)
        self.batch_size = None if batch_size is None else min(int(batch_size), len(x))
        if homogeneous:
            probe = Probe.of(self.layout, self.frozen, self.theta, x, self.rounding)
            self.degree = check_degree(probe, degree)
            self.layers, self.layer_degrees = (
                measured_layers(probe, self.degree)
                if layers is None
                else declared_layers(probe, layers)
            )
        else:
            if degree is not None or layers is not None:
                given = "layers" if degree is None else f"degree={degree}"
                raise ValueError(
                    f"`{given}` was given with `homogeneous=False`: leave one of them "
                    "out."
                )
            self.degree = None
            self.layers = tuple((j,) for j in range(len(self.layout.names)))
            self.layer_degrees = (None,) * len(self.layers)

    @property
    def n(self) -> int:
        """Number of examples."""
        return self.x.shape[0]

    @property
    def k(self) -> int:
        """Number of trained parameters."""
        return self.theta.shape[0]

    @property
    def rounding(self) -> float:
        """Relative rounding of the margins: the machine precision of the parameters'
        dtype, or of the lowest `gf.models.InPrecision` inside the model."""
        modules = jax.tree.leaves(
            self.frozen, is_leaf=lambda leaf: isinstance(leaf, InPrecision)
        )
        lower = [m.dtype for m in modules if isinstance(m, InPrecision)]
        return max(float(jnp.finfo(d).eps) for d in (self.theta.dtype, *lower))

    def model(self, theta: Float[Array, " k"]) -> Any:
        """The module with parameters `theta`."""
        return _network(self.layout, self.frozen, theta)

    @property
    def layer_names(self) -> tuple[str, ...]:
        """The names of each layer's arrays, joined by " + "."""
        names = self.layout.names
        return tuple(" + ".join(names[j] for j in layer) for layer in self.layers)

    def split_layers(self, theta: Num[Array, " k"]) -> list[Num[Array, " _"]]:
        """The parameters of each layer in `theta`, one flat vector for each."""
        arrays = [jnp.ravel(array) for array in self.layout.split(theta)]
        return [jnp.concatenate([arrays[j] for j in layer]) for layer in self.layers]

    def theta_of(self, model: Any) -> Float[Array, " k"]:
        """The flat parameters of a module built like this problem's model, which may
        also be that flat vector already.

        **Raises:** `ValueError` for a vector of another length, or another model.
        """
        if isinstance(model, jax.Array | np.ndarray):
            if model.shape != (self.k,):
                raise ValueError(
                    f"`model` is an array of shape {model.shape}, but the problem has "
                    f"{self.k} parameters: pass a flat vector ({self.k},), or a module."
                )
            return jnp.asarray(model, self.theta.dtype)
        return self.layout.ravel(model)

    def outputs(
        self, theta: Float[Array, " k"], x: Array | None = None
    ) -> Float[Array, "n ..."]:
        """The network's output for each example, shape `(n,)` or `(n, classes)`.

        For the problem's own examples, or for those in `x`, all at once.
        """
        if x is not None:
            return outputs(self.layout, self.frozen, theta, x)
        return self._map(lambda x, y: self.outputs(theta, x))

    def margins(self, theta: Float[Array, " k"]) -> Float[Array, " n"]:
        """Hard margins, shape `(n,)`: `y * output`, or true class minus best other."""
        return self._map(
            lambda x, y: jax.vmap(self.loss.margin)(self.outputs(theta, x), y)
        )

    def euler_residual(self, theta: Float[Array, " k"]) -> Float[Array, ""]:
        r"""Largest $|\langle\theta,\nabla f\rangle - L f|$ over largest $|L f|$.

        Over all outputs of all examples; nothing is stored per output.
        """

        def largest(x, y):
            value, along = jax.jvp(
                lambda theta: self.outputs(theta, x), (theta,), (theta,)
            )
            both = jnp.stack([along - self.degree * value, self.degree * value])
            return jnp.abs(both).reshape(2, len(x), -1).max(axis=2).T

        gap, size = self._map(largest).max(axis=0)
        return gap / jnp.where(size > 0, size, 1)

    def soft_margins(self, theta: Float[Array, " k"]) -> Float[Array, " n"]:
        """The margins that enter the loss; equal to `margins` for two classes."""
        return self._map(lambda x, y: self._soft_margins_of(theta, x, y))

    def both_margins(
        self, theta: Float[Array, " k"]
    ) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
        """Hard and soft margins in one pass over the data, shape `(n,)` each."""

        def both(x, y):
            out = self.outputs(theta, x)
            return jnp.stack(
                [
                    jax.vmap(self.loss.margin)(out, y),
                    jax.vmap(self.loss.soft_margin)(out, y),
                ],
                axis=-1,
            )

        out = self._map(both)
        return out[:, 0], out[:, 1]

    def _soft_margins_of(self, theta, x, y):
        return jax.vmap(self.loss.soft_margin)(self.outputs(theta, x), y)

    def _log_risk_of(self, theta, x, y, log_mask):
        return self.loss.log_total(self._soft_margins_of(theta, x, y), log_mask)

    def log_risk(self, theta: Float[Array, " k"]) -> Float[Array, ""]:
        r"""$\ln L(\theta)$, the log of the summed loss."""
        return self.loss.log_total(self.soft_margins(theta))

    def log_losses(self, theta: Float[Array, " k"]) -> Float[Array, " n"]:
        r"""$\ln\ell(p_i)$ of each example, shape `(n,)`."""
        return self.loss.log_loss(self.soft_margins(theta))

    def on(self, examples: Int[Array | np.ndarray, " m"]) -> "Problem":
        """The same problem on some of its examples only."""
        data = (self.x[examples], self.y[examples])
        return eqx.tree_at(lambda problem: (problem.x, problem.y), self, data)

    def log_risk_time(self, log_risk: Float[Array, ""]) -> Float[Array, ""]:
        r"""$s = \ln(n/L)$, dtype of `log_risk`."""
        return jnp.log(self.n).astype(log_risk.dtype) - log_risk

    def clock_rounding(
        self, s: Float[Array, "..."] | float
    ) -> Float[Array, "..."] | float:
        r"""By how much rounding of the margins moves $s$, elementwise.

        It is $\epsilon\,\lvert\alpha\,\ell'(\alpha)/\ell(\alpha)\rvert$ with the
        smoothed margin $\alpha$ and `rounding` $\epsilon$: about $\epsilon s$ for
        exponential tails, but $2\epsilon/\sqrt L$ where margins tend to one.
        """
        size = abs(s)
        if not self.loss.exponential_tail:
            s = jnp.asarray(s)
            log_risk = jnp.log(self.n).astype(s.dtype) - s
            slope = self.loss.slope_at_risk(log_risk)
            size = jnp.maximum(size, jnp.abs(self.loss.inverse(log_risk) * slope))
        return self.rounding * size

    def log_risk_and_direction(
        self, theta: Float[Array, " k"]
    ) -> tuple[Float[Array, ""], Float[Array, " k"]]:
        r"""$\ln L$ and the ascent direction $G = -\nabla\ln L$, one gradient.

        With `batch_size` the gradients of the batches' own log risks are combined with
        weights $L_b / L$, so a batch is visited once and nothing is stored per example.
        """
        if self.batch_size is None:
            zero = jnp.zeros((), theta.dtype)
            return self._value_and_direction(theta, self.x, self.y, zero)

        def streamed(theta):
            def combine(carry, number):
                total, mean = carry
                value, direction = self._value_and_direction(
                    theta, *self._batch(number)
                )
                new = jnp.logaddexp(total, value)
                mean = jnp.exp(total - new) * mean + jnp.exp(value - new) * direction
                return (new, mean), None

            start = (jnp.array(-jnp.inf, theta.dtype), jnp.zeros_like(theta))
            return jax.lax.scan(combine, start, self._batch_numbers())[0]

        # Checkpointed, or a linearisation would keep what every batch computed.
        return jax.checkpoint(streamed)(theta)

    def _value_and_direction(self, theta, *examples):
        # The gradient of minus ln L; to negate it would be one more pass over it.
        def negative(theta):
            return -self._log_risk_of(theta, *examples)

        value, direction = jax.value_and_grad(negative)(theta)
        return -value, direction

    def _batch_numbers(self):
        return jnp.arange(math.ceil(self.n / (self.batch_size or self.n)))

    def _batch(self, number):
        # Taken out one at a time, so that the data are not copied as a whole. The last
        # batch is filled up with copies of the first example at weight zero.
        size = self.batch_size or self.n
        index = number * size + jnp.arange(size)
        inside = index < self.n
        log_mask = jnp.where(inside, 0.0, -jnp.inf).astype(self.theta.dtype)
        index = jnp.where(inside, index, 0)
        return self.x[index], self.y[index], log_mask

    def _map(self, function):
        if self.batch_size is None:
            return function(self.x, self.y)
        # Checkpointed, or a gradient would keep what every batch computed.
        of_batch = jax.checkpoint(lambda number: function(*self._batch(number)[:2]))
        out = jax.lax.map(of_batch, self._batch_numbers())
        return out.reshape(-1, *out.shape[2:])[: self.n]


# At once: array by array it takes as long as two steps of a small flow.
_network = jitted(network)


def _has(model, kind) -> bool:
    parts = jax.tree.leaves(model, is_leaf=lambda part: isinstance(part, kind))
    return any(isinstance(part, kind) for part in parts)


def _checked_data(x, y, one_class) -> tuple[Array, Array]:
    x, y = (
        value if isinstance(value, jax.Array) else np.asarray(value) for value in (x, y)
    )
    if x.ndim == 0 or x.shape[0] == 0:
        raise ValueError(f"`x` is empty: shape {x.shape}. Pass at least one example.")
    if y.shape != x.shape[:1]:
        raise ValueError(
            f"`x` has {x.shape[0]} examples, but `y` has shape {y.shape}: "
            f"expected ({x.shape[0]},)."
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"`x` has dtype {x.dtype}: convert it, for example `x.astype('float64')`, "
            "and scale it to the range that you mean."
        )
    if not np.all(np.isfinite(np.asarray(x))):
        bad = np.unique(np.argwhere(~np.isfinite(np.asarray(x)))[:, 0])
        raise ValueError(
            f"`x` is NaN or infinite in {len(bad)} examples (first: {bad[0]}): "
            "remove or impute them."
        )
    if not (np.issubdtype(y.dtype, np.number) or y.dtype == bool):
        raise ValueError(
            f"`y` has dtype {y.dtype}: pass labels -1 and +1 for one output, or the "
            "classes' numbers 0, 1, ... for several."
        )
    if not np.all(np.isfinite(np.asarray(y))):
        raise ValueError("`y` holds NaN or infinity: remove those examples.")
    if not one_class and len(np.unique(np.asarray(y))) == 1 and len(y) > 1:
        raise ValueError(
            f"`y` holds one class only ({np.asarray(y)[0]}) in {len(y)} examples: "
            "there is nothing to separate (pass `one_class=True` if that is meant)."
        )
    return jnp.asarray(x), jnp.asarray(y)


def _output_shape(model, x) -> tuple[int, ...]:
    try:
        out = eqx.filter_eval_shape(
            lambda x: jax.vmap(model, axis_name="batch")(x), x[:2]
        )
    except Exception as error:
        raise ValueError(
            f"`model` could not be called on one example of shape {x.shape[1:]}: "
            f"{error}"
        ) from error
    if not hasattr(out, "shape"):
        raise ValueError(f"`model` must return one array for one example; got {out!r}.")
    return out.shape[1:]
