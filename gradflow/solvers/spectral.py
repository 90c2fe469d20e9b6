"""The spectral radius of a Jacobian, tracked along a solution by power iteration."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .common import unit

# Power iteration approaches the radius from below.
_SAFETY = 1.1
_CLOSE = 0.05
_MOST_PRODUCTS = 40
# Agreements of successive estimates before a new vector counts as converged.
_AGREEMENTS = 3


class SpectralRadius(eqx.Module):
    r"""Estimate of $\varrho(J)$ and the vector that gave it.

    One product per accepted step follows the radius along the solution; where it moved
    by more than 5 %, products are taken until two successive estimates agree.
    Exact products (`jax.jvp`), never finite differences: these break down in float32.
    """

    vector: Float[Array, " k"]
    radius: Float[Array, ""]
    unsettled: Int[Array, ""]  # Agreements still needed.

    @staticmethod
    def start(slope: Float[Array, " k"]) -> "SpectralRadius":
        # A stiff solution's slope may lie wholly in the slow directions: add a vector
        # that no structured Jacobian is orthogonal to.
        noise = jax.random.normal(jax.random.key(0), slope.shape, slope.dtype)
        vector = unit(unit(slope) + unit(noise))
        return SpectralRadius(
            vector, jnp.zeros((), slope.dtype), jnp.asarray(_AGREEMENTS)
        )

    @property
    def bound(self) -> Float[Array, ""]:
        """The estimate with its safety factor."""
        return _SAFETY * self.radius

    def doubted(self) -> "SpectralRadius":
        """The same, to be iterated longer before it is used again."""
        return SpectralRadius(
            self.vector, self.radius, jnp.full_like(self.unsettled, _AGREEMENTS)
        )

    def followed(self, image: Float[Array, " k"]) -> "SpectralRadius":
        """The estimate after one power iteration, `image` being J times `vector`."""
        new = jnp.linalg.norm(image)
        close = jnp.abs(new - self.radius) <= _CLOSE * new
        usable = (new > 0) & jnp.isfinite(new)
        vector = jnp.where(usable, image / jnp.where(usable, new, 1), self.vector)
        left = jnp.where(close, self.unsettled - 1, self.unsettled)
        left = jnp.maximum(left, jnp.where(close, 0, 1))
        return SpectralRadius(vector, jnp.where(usable, new, 0), left)

    def settled(self, product: Callable) -> tuple["SpectralRadius", Int[Array, ""]]:
        """The estimate for the linear map `product`, and how often it was applied:
        not at all where `followed` found it close."""

        def unfinished(carry):
            estimate, count = carry
            return (estimate.unsettled > 0) & (count < _MOST_PRODUCTS)

        def iterate(carry):
            estimate, count = carry
            return estimate.followed(product(estimate.vector)), count + 1

        start = (self, jnp.zeros((), int))
        # XLA moves the part of `product` that all iterations share in front of the
        # loop, where it would run even if no iteration does; hence the condition.
        return jax.lax.cond(
            self.unsettled > 0,
            lambda: jax.lax.while_loop(unfinished, iterate, start),
            lambda: start,
        )
