"""The spectral radius of a Jacobian, tracked along a solution by power iteration."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# Power iteration approaches the radius from below.
_SAFETY = 1.1
_CLOSE = 0.05
_MOST_AT_FIRST = 40
_MOST_LATER = 3


class SpectralRadius(eqx.Module):
    r"""Estimate of $\varrho(J)$ and the vector that gave it.

    Every update takes at least one Jacobian-vector product and goes on until two
    successive estimates agree within 5 %. Exact products (`jax.jvp`), never finite
    differences: these break down in float32.
    """

    vector: Float[Array, " k"]
    radius: Float[Array, ""]
    certain: Bool[Array, ""]

    @staticmethod
    def start(slope: Float[Array, " k"]) -> "SpectralRadius":
        # A stiff solution's slope may lie wholly in the slow directions: add a vector
        # that no structured Jacobian is orthogonal to.
        noise = jax.random.normal(jax.random.key(0), slope.shape, slope.dtype)
        vector = _unit(_unit(slope) + _unit(noise))
        return SpectralRadius(vector, jnp.zeros((), slope.dtype), jnp.zeros((), bool))

    @property
    def bound(self) -> Float[Array, ""]:
        """The estimate with its safety factor."""
        return _SAFETY * self.radius

    def doubted(self) -> "SpectralRadius":
        """The same, to be iterated longer at the next update."""
        return SpectralRadius(self.vector, self.radius, jnp.zeros((), bool))

    def update(self, product: Callable) -> tuple["SpectralRadius", Int[Array, ""]]:
        """The estimate for the linear map `product`, and how often it was applied."""
        most = jnp.where(self.certain, _MOST_LATER, _MOST_AT_FIRST)
        # Two agreeing estimates in a row where the vector may be far from converged.
        needed = jnp.where(self.certain, 1, 3)

        def unfinished(carry):
            _, _, count, agreed = carry
            return (count < most) & (agreed < needed)

        def iterate(carry):
            vector, radius, count, agreed = carry
            image = product(vector)
            new = jnp.linalg.norm(image)
            close = jnp.abs(new - radius) <= _CLOSE * new
            usable = (new > 0) & jnp.isfinite(new)
            vector = jnp.where(usable, image / jnp.where(usable, new, 1), vector)
            agreed = jnp.where(close, agreed + 1, 0)
            return vector, jnp.where(usable, new, radius * 0), count + 1, agreed

        start = (self.vector, self.radius, jnp.zeros((), int), jnp.zeros((), int))
        vector, radius, count, _ = jax.lax.while_loop(unfinished, iterate, start)
        return SpectralRadius(vector, radius, jnp.ones((), bool)), count


def _unit(vector: Float[Array, " k"]) -> Float[Array, " k"]:
    norm = jnp.linalg.norm(vector)
    return vector / jnp.where(norm > 0, norm, 1)
