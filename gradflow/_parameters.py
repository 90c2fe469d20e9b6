"""Trained parameters as one flat vector, and constants that are never trained."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, Float, Num, PyTree

from ._compile import jitted


class Fixed(eqx.Module):
    """A constant inside a model (say, fixed output signs): never trained.

    It does not count towards the parameter norm either. Read it through `.value`.
    """

    value: Array


class Layout(eqx.Module):
    """Where each trained array lies in the flat vector; hashable, holds no arrays.

    **Attributes:** `names` (paths such as `layers[0].weight`), `shapes`, `offsets`
    (one more than there are arrays; array `j` is `theta[offsets[j]:offsets[j + 1]]`).
    """

    names: tuple[str, ...] = eqx.field(static=True)
    shapes: tuple[tuple[int, ...], ...] = eqx.field(static=True)
    dtypes: tuple[Any, ...] = eqx.field(static=True)
    offsets: tuple[int, ...] = eqx.field(static=True)
    treedef: Any = eqx.field(static=True)

    @staticmethod
    def of(params: PyTree) -> tuple["Layout", Float[Array, " k"]]:
        """The layout of a tree of parameters, and their flat vector."""
        leaves, treedef = jtu.tree_flatten_with_path(params)
        if not leaves:
            raise ValueError(
                "`model` has no trainable parameters: pass `trainable=` to choose them."
            )
        names = tuple(_name(path) for path, _ in leaves)
        arrays = [leaf for _, leaf in leaves]
        offsets = [0]
        for array in arrays:
            offsets.append(offsets[-1] + array.size)
        layout = Layout(
            names,
            tuple(a.shape for a in arrays),
            tuple(a.dtype for a in arrays),
            tuple(offsets),
            treedef,
        )
        return layout, layout.ravel(params)

    def ravel(self, model: PyTree) -> Float[Array, " k"]:
        """The flat vector of a module's parameters, or of a tree of them.

        **Raises:** `ValueError` if it lacks one of this layout's, or that is of another
        shape.
        """
        leaves = {_name(path): leaf for path, leaf in jtu.tree_leaves_with_path(model)}
        arrays: list[Any] = [leaves.get(name) for name in self.names]
        if tuple(getattr(a, "shape", None) for a in arrays) != self.shapes:
            expected = dict(zip(self.names, self.shapes))
            raise ValueError(
                f"`model` is not built like the problem's, which trains {expected}; "
                f"got {model!r}."
            )
        dtype = jnp.result_type(*self.dtypes)
        return jnp.concatenate([jnp.ravel(a).astype(dtype) for a in arrays])

    def split(self, theta: Num[Array, " k"]) -> list[Array]:
        """The arrays inside `theta`, in order."""
        # Not slices: a gradient then joins its parts, instead of adding up as many
        # vectors of full length.
        parts = jax.lax.split(theta, [math.prod(shape) for shape in self.shapes])
        return [part.reshape(shape) for part, shape in zip(parts, self.shapes)]

    def unravel(self, theta: Float[Array, " k"]) -> PyTree:
        """The tree of parameters inside `theta`, each in the dtype it came with."""
        arrays = [a.astype(d) for a, d in zip(self.split(theta), self.dtypes)]
        return jtu.tree_unflatten(self.treedef, arrays)


def _name(path) -> str:
    return jtu.keystr(path).lstrip(".")


def network(layout: Layout, frozen: PyTree, theta: Float[Array, " k"]) -> Any:
    """The module with parameters `theta`, whose other leaves are those of `frozen`."""
    return eqx.combine(
        layout.unravel(theta), frozen, is_leaf=lambda leaf: isinstance(leaf, Fixed)
    )


@jitted
def outputs(
    layout: Layout, frozen: PyTree, theta: Float[Array, " k"], x: Array
) -> Array:
    """The network's output for each example in `x`.

    Compiled by itself so that JAX goes through the network once for all functions that
    call it on so many examples, and differentiates what it found: its derivatives are
    in full precision, too.
    """
    return jax.vmap(network(layout, frozen, theta), axis_name="batch")(x)
