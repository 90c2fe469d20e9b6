"""The stiffest directions of a symmetric Jacobian, followed along a solution."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# The bound on what is left forgets old estimates by this factor a step.
_MEMORY = 0.7
# An underestimated bound shows as a rejected step.
_DOUBT = 1.5


class LowRankJacobian(eqx.Module):
    r"""$J \approx V\,\mathrm{diag}(\lambda)\,V^\top$ with $\lambda \le 0$, and a bound
    on the radius of the rest.

    Every update takes a few Jacobian-vector products: of the stiffest vector, which
    does most harm when it turns; of the others in turn; and of one that a power
    iteration leads to what is missing. The symmetric update of Powell (secant
    conditions $\tilde J u = J u$ for all of them at the least change) joins them to
    what was known, and the Rayleigh-Ritz vectors of largest $|\lambda|$ are kept.

    **Source** of the update: Powell, A new algorithm for unconstrained optimization,
    in Nonlinear Programming, 1970; Dennis and Schnabel, Numerical Methods for
    Unconstrained Optimization and Nonlinear Equations, Section 9.1.

    **Attributes:** `vectors` (V, orthonormal columns), `values` ($\lambda$, ascending),
    `power` (the power iteration's vector), `turn` (whose turn it is), `bound`.
    """

    vectors: Float[Array, "k r"]
    values: Float[Array, " r"]
    power: Float[Array, " k"]
    turn: Int[Array, ""]
    bound: Float[Array, ""]

    @staticmethod
    def start(size: int, rank: int, dtype) -> "LowRankJacobian":
        """Nothing known yet: random vectors with values zero."""
        rank = min(rank, size)
        keys = jax.random.split(jax.random.key(0))
        vectors = jnp.linalg.qr(jax.random.normal(keys[0], (size, rank), dtype))[0]
        return LowRankJacobian(
            vectors,
            jnp.zeros(rank, dtype),
            _unit(jax.random.normal(keys[1], (size,), dtype)),
            jnp.zeros((), int),
            jnp.zeros((), dtype),
        )

    @property
    def probes(self) -> int:
        """Products that an update takes."""
        return min(3, self.vectors.shape[1])

    def doubted(self) -> "LowRankJacobian":
        """The same with a larger bound."""
        return eqx.tree_at(lambda j: j.bound, self, _DOUBT * self.bound)

    def updated(
        self, product: Callable[[Float[Array, " k"]], Float[Array, " k"]]
    ) -> "LowRankJacobian":
        """The same after the products of all probes, `product(u)` being $Ju$."""
        v, values = self.vectors, self.values
        u = self._directions()
        # One after the other: on a CPU three times as fast as a batch.
        images = jnp.stack([product(column) for column in u.T], axis=1)
        missing = images - v @ (values[:, None] * (v.T @ u))
        basis, parts = jnp.linalg.qr(jnp.concatenate([v, u, missing], axis=1))
        rank = v.shape[1]
        pv, pu, pm = jnp.split(parts, [rank, rank + self.probes], axis=1)
        matrix = pv @ (values[:, None] * pv.T) + pm @ pu.T + pu @ pm.T
        matrix = matrix - pu @ (pu.T @ pm) @ pu.T
        new, rotation = jnp.linalg.eigh((matrix + matrix.T) / 2)
        vectors, new = basis @ rotation[:, :rank], jnp.minimum(new[:rank], 0)
        last = missing[:, -1]
        power = last - vectors @ (vectors.T @ last)
        seen = jnp.maximum(_norm(last), self._turning(u, missing))
        return LowRankJacobian(
            vectors,
            new,
            # Where nothing is missing, go on from where the iteration was.
            _unit(power + 1e-8 * self.power * _norm(last)),
            self.turn + 1,
            jnp.maximum(_MEMORY * self.bound, jnp.maximum(seen, -new[-1])),
        )

    def _directions(self) -> Float[Array, "k probes"]:
        columns = []
        if self.probes > 1:
            columns.append(self.vectors[:, 0])
        if self.probes > 2:
            columns.append(self.vectors[:, 1 + self.turn % (self.values.size - 1)])
        power = self.power
        for column in columns:
            power = power - column * (column @ power)
        return jnp.stack([*columns, _unit(power)], axis=1)

    def _turning(self, u, missing) -> Float[Array, ""]:
        # A vector of value l that has turned by an angle a is missing l a off the
        # diagonal; with l itself damped, that acts on the rest like l a^2.
        size = jnp.linalg.norm(missing, axis=0)[:-1]
        value = jnp.abs(jnp.sum(u * (missing + self._image(u)), axis=0))[:-1]
        acting = jnp.minimum(size, size**2 / jnp.where(value > 0, value, 1))
        return jnp.max(acting, initial=0)

    def _image(self, u):
        return self.vectors @ (self.values[:, None] * (self.vectors.T @ u))


def _norm(vector):
    return jnp.linalg.norm(vector)


def _unit(vector: Float[Array, " k"]) -> Float[Array, " k"]:
    norm = _norm(vector)
    return vector / jnp.where(norm > 0, norm, 1)
