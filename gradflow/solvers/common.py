"""What the solvers share: flat states, counters, polynomial dense output."""

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, PyTree


class Counts(eqx.Module):
    """Work done since `init`, as carried in a solver's state.

    **Attributes:** `gradient_evaluations` (calls of the vector field),
    `jacobian_products` (a dense Jacobian of dimension k counts k), `factorizations`.
    """

    gradient_evaluations: Int[Array, ""]
    jacobian_products: Int[Array, ""]
    factorizations: Int[Array, ""]

    @staticmethod
    def zero() -> "Counts":
        return Counts(*(jnp.zeros((), int) for _ in range(3)))

    def add(
        self,
        *,
        evaluations: int | Array = 0,
        products: int | Array = 0,
        factorizations: int | Array = 0,
    ) -> "Counts":
        """The counts with so much work more."""

        def total(count, more):
            return count + jnp.asarray(more, count.dtype)

        return Counts(
            total(self.gradient_evaluations, evaluations),
            total(self.jacobian_products, products),
            total(self.factorizations, factorizations),
        )

    def as_dict(self) -> dict[str, Array]:
        return {
            "gradient_evaluations": self.gradient_evaluations,
            "jacobian_products": self.jacobian_products,
            "factorizations": self.factorizations,
        }


def flatten(
    terms: diffrax.AbstractTerm, y0: PyTree, args: Any
) -> tuple[Callable, Float[Array, " k"], Callable]:
    """The vector field as a function `f(t, y)` of the flat state, that state, and the
    way back to a PyTree."""
    flat, unravel = ravel_pytree(y0)

    def vector_field(t, y):
        return ravel_pytree(terms.vf(t, unravel(y), args))[0]

    return vector_field, flat, unravel


class NewtonInterpolation(diffrax.AbstractLocalInterpolation):
    r"""Polynomial over one step in nested form, exact at both ends.

    $y(x) = (1-x)\,y_0 + x\,\bigl(y_1 + (1-x)(d_0 + x(d_1 + x(d_2 + \dots)))\bigr)$ with
    $x = (t-t_0)/(t_1-t_0)$; each leaf of `d` stacks $d_0, d_1, \dots$ along its first
    axis.
    """

    t0: Any
    t1: Any
    y0: PyTree
    y1: PyTree
    d: PyTree

    def evaluate(self, t0, t1=None, left=True) -> PyTree:
        del left
        if t1 is not None:
            return jtu.tree_map(jnp.subtract, self.evaluate(t1), self.evaluate(t0))
        length = self.t1 - self.t0
        x = jnp.where(
            length == 0, 0, (t0 - self.t0) / jnp.where(length == 0, 1, length)
        )

        def at(y0, y1, d):
            z = jnp.asarray(x, d.dtype)
            inner = d[-1]
            for coefficient in d[-2::-1]:
                inner = coefficient + z * inner
            return (1 - z) * y0 + z * (y1 + (1 - z) * inner)

        return jtu.tree_map(at, self.y0, self.y1, self.d)


def interpolation_info(
    unravel: Callable, y0: PyTree, y1: PyTree, d: Float[Array, "m k"]
) -> dict[str, PyTree]:
    """`dense_info` for `NewtonInterpolation` from flat coefficients."""
    return {"y0": y0, "y1": y1, "d": jax.vmap(unravel)(d)}


def unit(rows: Float[Array, "*batch k"]) -> Float[Array, "*batch k"]:
    """Rows divided by their norms; rows of zeros as they are."""
    norm = jnp.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / jnp.where(norm > 0, norm, 1)
