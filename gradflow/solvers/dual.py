"""Rodas5P in the span of the examples' gradients."""

from typing import Any, ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .common import Counts, NewtonInterpolation
from .rosenbrock import Rodas5P

# Examples whose gradients are taken together.
_EXAMPLES = 64


class InSpan(eqx.Module):
    r"""A problem whose model is linear, in coordinates of the gradients' span.

    `basis` holds orthonormal rows that span the gradients of all outputs. Parameters
    are `basis @ theta` and, last, the norm of the rest of `theta`, on which no output
    depends: shape `(r + 1,)`, of the norm of `theta`.
    """

    basis: Float[Array, "r k"]
    rest: Float[Array, " k"]
    features: Float[Array, "n outputs r"]
    offset: Float[Array, "n outputs"]
    y: Array
    loss: Any

    @staticmethod
    def of(problem, theta: Float[Array, " k"]) -> "InSpan":
        def row(x):
            def outputs(theta):
                return jnp.reshape(problem.model(theta)(x), (-1,))

            return jax.jacrev(outputs)(theta), outputs(theta)

        rows, outputs = jax.lax.map(
            row, problem.x, batch_size=min(_EXAMPLES, problem.n)
        )
        basis = jnp.linalg.qr(rows.reshape(-1, theta.size).T)[0].T
        within = basis @ theta
        features = rows @ basis.T
        offset = outputs - features @ within
        rest = theta - within @ basis
        return InSpan(basis, rest, features, offset, problem.y, problem.loss)

    def coordinates(self, theta: Float[Array, " k"]) -> Float[Array, " coordinates"]:
        return jnp.append(self.basis @ theta, jnp.linalg.norm(self.rest))

    def theta(self, z: Float[Array, " coordinates"]) -> Float[Array, " k"]:
        return self.rest + self.vector(z)

    def vector(self, z: Float[Array, "*stack coordinates"]) -> Float[Array, "*stack k"]:
        """The same for a difference of parameters."""
        return z[..., :-1] @ self.basis

    def log_risk_and_direction(self, z):
        """As for `gf.Problem`."""

        def log_risk(z):
            return self.loss.log_risk(self.offset + self.features @ z[:-1], self.y)

        value, grad = jax.value_and_grad(log_risk)(z)
        return value, -grad


class DualState(eqx.Module):
    """What `DualRodas5P` carries from step to step."""

    problem: InSpan
    counts: Counts


class DualRodas5P(diffrax.AbstractAdaptiveSolver):
    r"""`Rodas5P` for models linear in their parameters with more of them than outputs.

    With $P$ the constant Jacobian of all $r$ outputs ($n$ times classes), shape
    $(r, k)$, the flow stays in $\theta_0 + \mathrm{range}\,P^\top$. Steps are taken in
    coordinates of an orthonormal basis of that space, of dimension $r$ instead of $k$,
    with the outputs as $r$ linear functions of them: the same numbers as those of
    `Rodas5P` to rounding. The basis takes $r$ times the memory of the parameters.

    After each step the vector field of the model itself is compared with the one in
    the coordinates, and what they differ by counts as an error of the step: a flow of a
    model that is not linear ends early instead of going astray (`gf.integrate` refuses
    such models where it sees it).

    In `gf.integrate` only: the outputs are those of the flow's problem. Counted are
    evaluations and products in the coordinates, which cost less than the model's.
    """

    term_structure: ClassVar = diffrax.ODETerm
    interpolation_cls: ClassVar = NewtonInterpolation

    def order(self, terms):
        return Rodas5P().order(terms)

    def init(self, terms, t0, t1, y0, args) -> DualState:
        del terms, t0, t1
        return DualState(InSpan.of(args.problem, y0[0]), Counts.zero())

    def step(
        self, terms, t0, t1, y0, args, solver_state: DualState, made_jump
    ) -> tuple[Any, Any, dict[str, Any], DualState, diffrax.RESULTS]:
        problem, (theta, quadratures) = solver_state.problem, y0
        flow = eqx.tree_at(lambda flow: flow.problem, args, problem)
        z0 = (problem.coordinates(theta), quadratures)
        z1, error, info, counts, result = Rodas5P().step(
            terms, t0, t1, z0, flow, solver_state.counts, made_jump
        )
        y1 = (problem.theta(z1[0]), z1[1])
        rate, _ = terms.vf(t1, y1, args)
        expected, _ = terms.vf(t1, z1, flow)
        outside = (t1 - t0) * (rate - problem.vector(expected))
        error = (problem.vector(error[0]) + outside, error[1])
        d = (problem.vector(info["d"][0]), info["d"][1])
        state = DualState(problem, counts.add(evaluations=2))
        return y1, error, {"y0": y0, "y1": y1, "d": d}, state, result

    def func(self, terms, t0, y0, args):
        return terms.vf(t0, y0, args)

    def rejected(self, before: DualState, after: DualState, error) -> DualState:
        """As for `Rodas5P`."""
        del before, error
        return after

    def counts(self, solver_state: DualState) -> dict[str, Any]:
        """As for `Rodas5P`."""
        return solver_state.counts.as_dict()
