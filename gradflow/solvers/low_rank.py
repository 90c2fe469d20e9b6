"""The stiffest directions of a symmetric Jacobian, followed along a solution."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .common import unit

# The bound on what is left forgets old estimates by this factor a step.
_MEMORY = 0.7
# An underestimated bound shows as a rejected step.
_DOUBT = 1.5
# Antisymmetric part of what the probes see, over all of it, from which on a Jacobian
# does not count as symmetric. On gradient flows it stays below 0.03 wherever they are
# stiff.
_ASYMMETRIC = 0.1
# Length times bound that a step needs at least after one that failed.
_CAUTION = 24.0


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

    **Attributes:** `vectors` (orthonormal rows, $V^\top$), `values` ($\lambda$,
    ascending), `power` (the power iteration's vector), `turn` (whose turn it is),
    `bound`, `asymmetry` (of late, of the Jacobian as the probes see it), `radius` (a
    bound on the whole Jacobian's).
    """

    vectors: Float[Array, "r k"]
    values: Float[Array, " r"]
    power: Float[Array, " k"]
    turn: Int[Array, ""]
    bound: Float[Array, ""]
    asymmetry: Float[Array, ""]
    radius: Float[Array, ""]

    @staticmethod
    def start(size: int, rank: int, dtype) -> "LowRankJacobian":
        """Nothing known yet: random vectors with values zero."""
        rank = min(rank, size)
        keys = jax.random.split(jax.random.key(0))
        vectors = jnp.linalg.qr(jax.random.normal(keys[0], (size, rank), dtype))[0].T
        return LowRankJacobian(
            vectors,
            jnp.zeros(rank, dtype),
            unit(jax.random.normal(keys[1], (size,), dtype)),
            jnp.zeros((), int),
            *(jnp.zeros((), dtype) for _ in range(3)),
        )

    @property
    def symmetric(self) -> Bool[Array, ""]:
        """Whether the Jacobian is symmetric enough for the directions to mean much."""
        return self.asymmetry < _ASYMMETRIC

    @property
    def rest(self) -> Float[Array, ""]:
        """The bound on what steps have to be stable for."""
        return jnp.where(self.symmetric, self.bound, self.radius)

    @property
    def probes(self) -> int:
        """Products that an update takes."""
        rank, size = self.vectors.shape
        return min(3, rank + 1, size)

    def doubted(self, length: Float[Array, ""]) -> "LowRankJacobian":
        """The same with a larger bound, after a step of this length failed: stiffness
        that comes up within a step (an example that becomes active) is not seen at its
        ends. An infinite length was not tried and says nothing."""
        tried = jnp.isfinite(length)

        def larger(bound):
            new = jnp.maximum(_DOUBT * bound, _CAUTION / length)
            return jnp.where(tried, new, bound)

        return eqx.tree_at(
            lambda j: (j.bound, j.radius),
            self,
            (larger(self.bound), larger(self.radius)),
        )

    def updated(
        self, product: Callable[[Float[Array, " k"]], Float[Array, " k"]]
    ) -> "LowRankJacobian":
        """The same after the products of all probes, `product(u)` being $Ju$."""
        v, values = self.vectors, self.values
        u = self._directions()
        # One after the other: on a CPU three times as fast as a batch.
        images = jnp.stack([product(direction) for direction in u])
        missing = images - (u @ v.T) @ (values[:, None] * v)
        # All directions but the last are rows of `v`.
        basis = _extended(v, jnp.concatenate([u[-1:], missing]))
        rank = len(v)
        known = jnp.zeros(len(basis), v.dtype).at[:rank].set(values)
        pu, pm = jnp.split(basis @ jnp.concatenate([u, missing]).T, 2, axis=1)
        matrix = jnp.diag(known) + pm @ pu.T + pu @ pm.T
        matrix = matrix - pu @ (pu.T @ pm) @ pu.T
        # Rows of zeros last, so that they are never kept.
        empty = jnp.linalg.norm(basis[rank:], axis=-1) < 0.5
        large = jnp.where(empty, 1 + jnp.max(jnp.abs(matrix)), 0)
        matrix = matrix + jnp.diag(jnp.pad(large, (rank, 0)))
        new, rotation = jnp.linalg.eigh((matrix + matrix.T) / 2)
        new = jnp.minimum(new[:rank], 0)
        # One Newton-Schulz step for `v`, so that rounding never adds up.
        kept = rotation[:, :rank].T
        gram = kept[:, :rank] @ (v @ v.T)
        kept = kept.at[:, :rank].multiply(1.5).at[:, :rank].add(-0.5 * gram)
        vectors = kept @ basis
        last = missing[-1]
        power = last - (vectors @ last) @ vectors
        seen = jnp.maximum(jnp.linalg.norm(last), _turning(u, images, missing))
        return LowRankJacobian(
            vectors,
            new,
            # Where nothing is missing, go on from where the iteration was.
            unit(power + 1e-8 * self.power * jnp.linalg.norm(last)),
            self.turn + 1,
            jnp.maximum(_MEMORY * self.bound, jnp.maximum(seen, -new[-1])),
            jnp.maximum(_MEMORY * self.asymmetry, _antisymmetric(u @ images.T)),
            jnp.maximum(
                _MEMORY * self.radius, jnp.max(jnp.linalg.norm(images, axis=-1))
            ),
        )

    def _directions(self) -> Float[Array, "probes k"]:
        rows = []
        if self.probes > 1:
            rows.append(self.vectors[0])
        if self.probes > 2:
            rows.append(self.vectors[1 + self.turn % (self.values.size - 1)])
        power = self.power
        for row in rows:
            power = power - row * (row @ power)
        return jnp.stack([*rows, unit(power)])


def _antisymmetric(matrix: Float[Array, "m m"]) -> Float[Array, ""]:
    size = jnp.linalg.norm(matrix)
    return jnp.linalg.norm(matrix - matrix.T) / jnp.where(size > 0, size, 1)


def _turning(u, images, missing) -> Float[Array, ""]:
    # A vector of value l that has turned by an angle a is missing l a off the diagonal;
    # with l itself damped, that acts on the rest like l a^2. All but the last vector.
    size = jnp.linalg.norm(missing, axis=-1)[:-1]
    value = jnp.abs(jnp.sum(u * images, axis=-1))[:-1]
    acting = jnp.minimum(size, size**2 / jnp.where(value > 0, value, 1))
    return jnp.max(acting, initial=0)


def _extended(v: Float[Array, "r k"], more: Float[Array, "m k"]) -> Array:
    """`v`, with orthonormal rows, and an orthonormal basis of what `more` adds to its
    span; rows of zeros where that is less than `more` has rows.

    By products of matrices and factorisations of small ones: LAPACK's threads would
    spin on after a factorisation of a tall matrix and slow the gradients down.
    """
    tolerance = 100 * jnp.finfo(v.dtype).eps
    for _ in range(2):
        more = unit(more)
        more = more - (more @ v.T) @ v
        squares, rotation = jnp.linalg.eigh(more @ more.T)
        more = jnp.where((squares > tolerance)[:, None], rotation.T @ more, 0)
    return jnp.concatenate([v, unit(more)])
