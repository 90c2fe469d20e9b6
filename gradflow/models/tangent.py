r"""Models that are linear in their parameters: a model's first-order expansions."""

from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Float, PyTree

from .._parameters import Fixed


def _split(model):
    return eqx.partition(
        model, eqx.is_inexact_array, is_leaf=lambda leaf: isinstance(leaf, Fixed)
    )


def _join(params, rest):
    return eqx.combine(params, rest, is_leaf=lambda leaf: isinstance(leaf, Fixed))


def _is_fixed(leaf):
    return isinstance(leaf, Fixed)


def _expand(model, params, x):
    """The base model's output at `x`, and its derivative along a tree of parameters."""
    base = jax.tree.map(lambda leaf: leaf.value, model.base, is_leaf=_is_fixed)

    def outputs(base):
        return _join(base, model.rest)(x)

    return jax.jvp(outputs, (base,), (params(base),))


class Linearized(eqx.Module):
    r"""$\Phi(x; \theta_0) + \langle\nabla\Phi(x; \theta_0), \theta - \theta_0\rangle$.

    The trained parameters $\theta$ start at $\theta_0$, the parameters of `model`,
    which stay fixed. Not homogeneous in general; see `Tangent`.

    **Arguments:** `model`: any model.

    **Attributes:** `params` (a tree like the model's trained arrays).
    """

    params: PyTree
    base: PyTree
    rest: Any

    def __init__(self, model: eqx.Module):
        self.params, self.rest = _split(model)
        self.base = jax.tree.map(Fixed, self.params)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The output for one example."""

        def change(base):
            return jax.tree.map(lambda a, b: a - b, self.params, base)

        value, slope = _expand(self, change, x)
        return value + slope


class Tangent(eqx.Module):
    r"""$c\,\langle\nabla\Phi(x; \theta_0), v\rangle$: homogeneous of degree 1 in $v$.

    The predictor with frozen activations, whose maximum margin is that of the
    empirical tangent kernel. For a model homogeneous of degree $L$, $c = 1/L$ makes it
    agree with the model at $v = \theta_0$, where it starts; for `TwoLayer` with squared
    ReLU this is $\sum_j s_j \langle v_j, x\rangle \max(0, \langle w_j, x\rangle)$.

    **Arguments:** `model`: any model; `factor`: $c$.

    **Attributes:** `params`, $v$ (a tree like the model's trained arrays).

    **Source:** Ji and Telgarsky, Appendix A (Figure 1a); Lyu and Li, Corollary C.6.
    """

    params: PyTree
    base: PyTree
    rest: Any
    factor: float | int = eqx.field(static=True)

    def __init__(self, model: eqx.Module, factor: float | int = 1.0):
        self.params, self.rest = _split(model)
        self.base = jax.tree.map(Fixed, self.params)
        self.factor = factor

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The output for one example."""
        _, slope = _expand(self, lambda base: self.params, x)
        return self.factor * slope
