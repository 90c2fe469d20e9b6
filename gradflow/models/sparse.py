r"""The class N of Vardi et al.: layers whose weights may be missing or shared."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Integer, PRNGKeyArray

from .activations import AbstractActivation, Identity, ReLU, Scale
from .layers import Signal, apply, multiply, output


class SparseShared(eqx.Module):
    r"""A fully connected network with any pattern of missing and shared weights.

    Layer $l$ has parameters $u^{(l)}$ and an index map $g_l$; its weight matrix is
    $W^{(l)}_{ij} = 0$ where $g_l(i, j) = 0$ and $u^{(l)}_k$ where $g_l(i, j) = k > 0$.
    Homogeneous of degree its depth (with activations of degree 1), and of degree 1 in
    each layer.

    **Arguments:**

    - `index_maps`: one array of whole numbers for each layer, shape
        `(outputs, inputs)`; a layer's largest entry is its number of parameters.
    - `activation`: between the layers.
    - `key`, `scale`: normal weights of variance `2 scale**2` over the mean number of
        weights that a neuron has.

    **Attributes:** `weights`, the vectors $u^{(l)}$; `index_maps`; `activation`.

    **Source:** Vardi, Shamir and Srebro, Section 2.
    """

    weights: tuple[Float[Array, " parameters"], ...]
    index_maps: tuple[Integer[Array, "outputs inputs"], ...]
    activation: AbstractActivation

    def __init__(
        self,
        index_maps: Sequence[ArrayLike],
        activation: AbstractActivation = ReLU(),
        *,
        key: PRNGKeyArray,
        scale: float | int = 1.0,
    ):
        maps = [np.asarray(g) for g in index_maps]
        _check_maps(maps)
        weights = []
        for k, g in zip(jax.random.split(key, len(maps)), maps):
            fan_in = np.count_nonzero(g) / g.shape[0]
            u = jax.random.normal(k, (int(g.max()),))
            weights.append(scale * (2 / fan_in) ** 0.5 * u)
        self.weights = tuple(weights)
        self.index_maps = tuple(jnp.asarray(g, jnp.int32) for g in maps)
        self.activation = activation

    def matrices(self) -> tuple[Float[Array, "outputs inputs"], ...]:
        """The weight matrices that parameters and index maps make."""
        return tuple(
            jnp.where(g > 0, u[jnp.maximum(g - 1, 0)], 0)
            for u, g in zip(self.weights, self.index_maps)
        )

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, "..."]:
        """The output for one example, shape `()` or `(classes,)`."""
        first, *others = self.matrices()
        signal = multiply(first, Signal.of(x))
        for matrix in others:
            signal = multiply(matrix, apply((self.activation,), signal))
        return output(signal)


def _check_maps(maps):
    if not maps:
        raise ValueError("`index_maps` is empty: pass one array for each layer.")
    for l, g in enumerate(maps):
        if g.ndim != 2 or not np.issubdtype(g.dtype, np.integer) or g.min() < 0:
            raise ValueError(
                f"`index_maps[{l}]` must be a matrix of whole numbers from 0; got "
                f"shape {g.shape}, dtype {g.dtype}."
            )
        missing = np.setdiff1d(np.arange(1, g.max() + 1), g)
        if g.max() == 0 or missing.size:
            raise ValueError(
                f"`index_maps[{l}]` uses no entry {missing[0] if missing.size else 1}: "
                "number the parameters 1, 2, ... without gaps."
            )
        if l > 0 and g.shape[1] != maps[l - 1].shape[0]:
            raise ValueError(
                f"`index_maps[{l}]` has {g.shape[1]} columns, but the layer before has "
                f"{maps[l - 1].shape[0]} rows."
            )


def DisjointPatches(
    patches: int,
    size: int,
    filters: int = 1,
    activation: AbstractActivation = ReLU(),
    *,
    key: PRNGKeyArray,
    scale: float | int = 1.0,
) -> SparseShared:
    r"""$\sum_{f,j} v_{fj}\sigma(\langle w_f, x_j\rangle)$ with disjoint patches $x_j$.

    An input of `patches * size` numbers is cut into consecutive patches, which share
    the filters. Homogeneous of degree 2; parameters `weights[0]` (the filters, one
    after another) and `weights[1]` (for each filter, one weight for each patch).

    **Source:** Vardi, Shamir and Srebro, Theorem 4.4 (two patches of size two).
    """
    first = np.zeros((filters, patches, patches, size), int)
    for f in range(filters):
        for j in range(patches):
            first[f, j, j] = f * size + 1 + np.arange(size)
    first = first.reshape(filters * patches, patches * size)
    second = 1 + np.arange(filters * patches)[None]
    return SparseShared((first, second), activation, key=key, scale=scale)


class Diagonal(eqx.Module):
    r"""$\langle w_m, h_{m-1}\rangle$ with $h_j = \sigma(w_j \odot h_{j-1})$, $h_0 = x$.

    Homogeneous of degree `depth` (with activations of degree 1); each input has its own
    chain of weights.

    **Arguments:** `d` features, `depth` $m$, `activation` (linear when not given),
    `key`, `scale`: He initialisation times `scale` (fan-in 1, in the last layer `d`).

    **Attributes:** `weights`, `depth` vectors of shape `(d,)`.

    **Source:** Vardi, Shamir and Srebro, Section 2.
    """

    weights: tuple[Float[Array, " d"], ...]
    activation: AbstractActivation

    def __init__(
        self,
        d: int,
        depth: int = 2,
        activation: AbstractActivation = Identity(),
        *,
        key: PRNGKeyArray,
        scale: float | int = 1.0,
    ):
        if d < 1 or depth < 1:
            raise ValueError(f"`d` and `depth` must be positive; got {d} and {depth}.")
        fan_in = jnp.array([1.0] * (depth - 1) + [d])
        draws = jax.random.normal(key, (depth, d))
        self.weights = tuple(scale * jnp.sqrt(2 / fan_in)[:, None] * draws)
        self.activation = activation

    def __call__(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """The output for one example, a number."""
        h, reference = x, x**2
        for w in self.weights[:-1]:
            z, one = w * h, jnp.ones(1, x.dtype)
            # Every neuron reads one number: neurons are the positions of one channel.
            scale = Scale(one, z**2, w**2 * reference)
            h = self.activation(z[:, None], scale)[:, 0]
            reference = w**2 * reference
        return jnp.vdot(self.weights[-1], h)
