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
# A direction is due by its |value| times its age to this power: what has turned by an
# angle a acts on the rest like |value| a^2, and the angle grows faster than the age.
_AGEING = 4
# Value that counts as the least for that, over the largest.
_LEAST_SIZE = 1e-3
# Length times bound that a step needs at least after one that failed.
_CAUTION = 24.0


class LowRankJacobian(eqx.Module):
    r"""$J \approx V\,\mathrm{diag}(\lambda)\,V^\top$ with $\lambda \le 0$, and a bound
    on the radius of the rest.

    Every update takes a few Jacobian-vector products: of the stiffest vector, which
    does most harm when it turns; of one of the others, the stiffer the more often; and
    of one that a power iteration leads to what is missing. The symmetric update of
    Powell (secant conditions $\tilde J u = J u$ for all of them at the least change)
    joins them to what was known, and the Rayleigh-Ritz vectors of largest $|\lambda|$
    are kept.

    **Source** of the update: Powell, A new algorithm for unconstrained optimization,
    in Nonlinear Programming, 1970; Dennis and Schnabel, Numerical Methods for
    Unconstrained Optimization and Nonlinear Equations, Section 9.1.

    **Attributes:** `vectors` (orthonormal rows, $V^\top$), `values` ($\lambda$,
    ascending), `age` (updates since each was a probe), `power` (the power iteration's
    vector), `bound`, `asymmetry` (of late, of the Jacobian as the probes see it),
    `radius` (a bound on the whole Jacobian's).
    """

    vectors: Float[Array, "r k"]
    values: Float[Array, " r"]
    power: Float[Array, " k"]
    age: Float[Array, " r"]
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
            jnp.zeros(rank, dtype),
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
        v, values, rank = self.vectors, self.values, self.values.size
        rows = self._rows()
        u = self._directions(rows)
        # One after the other: on a CPU three times as fast as a batch.
        images = jnp.stack([product(direction) for direction in u])
        # All directions but the last are rows of `v`.
        known = values[rows, None] * u[:-1], ((v @ u[-1] * values) @ v)[None]
        missing = images - jnp.concatenate(known)
        # From here on vectors are combinations of the rows of `w`, which takes two
        # products with matrices as large as `v`.
        sizes = jnp.linalg.norm(missing, axis=-1)
        w = jnp.concatenate([v, u[-1:], unit(missing)])
        inner = jnp.matmul(w, w.T, precision="highest")
        basis, empty = _basis(inner, rank)
        pu = basis @ inner[:, jnp.append(rows, rank)]
        pm = basis @ (inner[:, rank + 1 :] * sizes[None])
        before = jnp.zeros(len(basis), v.dtype).at[:rank].set(values)
        matrix = jnp.diag(before) + pm @ pu.T + pu @ pm.T
        matrix = matrix - pu @ (pu.T @ pm) @ pu.T
        # Rows of zeros last, so that they are never kept.
        large = jnp.where(empty, 1 + jnp.max(jnp.abs(matrix)), 0)
        matrix = matrix + jnp.diag(jnp.pad(large, (rank, 0)))
        new, rotation = jnp.linalg.eigh((matrix + matrix.T) / 2)
        new = jnp.minimum(new[:rank], 0)
        kept = rotation[:, :rank].T
        # Probes have just been seen; mixtures are as old as their parts.
        age = jnp.square(kept[:, :rank]) @ (1 + self.age).at[rows].set(0)
        # One Newton-Schulz step for `v`, so that rounding never adds up.
        gram = kept[:, :rank] @ inner[:rank, :rank]
        kept = kept.at[:, :rank].multiply(1.5).at[:, :rank].add(-0.5 * gram) @ basis
        vectors = jnp.matmul(kept, w, precision="highest")
        last = missing[-1]
        power = last - ((kept @ inner[:, -1]) * sizes[-1]) @ vectors
        products = u @ images.T
        left = jnp.maximum(sizes[-1], _turning(sizes[:-1], jnp.diag(products)[:-1]))
        return LowRankJacobian(
            vectors,
            new,
            # Where nothing is missing, go on from where the iteration was.
            unit(power + 1e-8 * self.power * sizes[-1]),
            age,
            jnp.maximum(_MEMORY * self.bound, jnp.maximum(left, -new[-1])),
            jnp.maximum(_MEMORY * self.asymmetry, _antisymmetric(products)),
            jnp.maximum(
                _MEMORY * self.radius, jnp.max(jnp.linalg.norm(images, axis=-1))
            ),
        )

    def _rows(self) -> Int[Array, " m"]:
        """Which `vectors` are probes: the stiffest, and of the others one that is old
        and stiff."""
        size = -self.values
        # Where all values are zero, the oldest.
        size = size + _LEAST_SIZE * size[0] + jnp.finfo(size.dtype).tiny
        due = size * (1 + self.age) ** _AGEING
        other = 1 + jnp.argmax(due[1:]) if due.size > 1 else jnp.zeros((), int)
        return jnp.stack([jnp.zeros_like(other), other])[: self.probes - 1]

    def _directions(self, rows) -> Float[Array, "probes k"]:
        probed, power = self.vectors[rows], self.power
        for row in probed:
            power = power - row * (row @ power)
        return jnp.concatenate([probed, unit(power)[None]])


def _antisymmetric(matrix: Float[Array, "m m"]) -> Float[Array, ""]:
    size = jnp.linalg.norm(matrix)
    return jnp.linalg.norm(matrix - matrix.T) / jnp.where(size > 0, size, 1)


def _turning(size, value) -> Float[Array, ""]:
    # A vector of value l that has turned by an angle a is missing l a off the diagonal;
    # with l itself damped, that acts on the rest like l a^2.
    value = jnp.abs(value)
    acting = jnp.minimum(size, size**2 / jnp.where(value > 0, value, 1))
    return jnp.max(acting, initial=0)


def _basis(inner: Float[Array, "m m"], rank: int):
    """Orthonormal combinations of vectors, the first `rank` of which are, by the inner
    products of all.

    **Returns:** the coefficients, (m, m), the first `rank` vectors coming first; and
    whether what is left beyond them is negligible, (m - rank,): such rows are zero.
    """
    cross, eye = inner[rank:, :rank], jnp.eye(len(inner), dtype=inner.dtype)
    # Where the first ones are orthonormal but for rounding; what is left of the others
    # may be small, and would have much of that.
    within = cross @ (2 * eye[:rank, :rank] - inner[:rank, :rank])
    squares, rotation = jnp.linalg.eigh(inner[rank:, rank:] - within @ cross.T)
    # Rounding over such a square is by how much the rows are not orthonormal.
    empty = squares < jnp.sqrt(jnp.finfo(inner.dtype).eps)
    scale = jnp.where(empty, 0, 1 / jnp.sqrt(jnp.where(empty, 1, squares)))
    beyond = eye[rank:].at[:, :rank].set(-within)
    return jnp.concatenate([eye[:rank], scale[:, None] * (rotation.T @ beyond)]), empty
