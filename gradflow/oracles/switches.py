"""Where a piecewise smooth function has its kinks, read off its computation.

A ReLU network's margins are smooth except where the operands of some comparison (or
maximum, or absolute value) are equal. The differences of such operands, the *switches*,
are themselves functions of the parameters, with gradients.
"""

from collections.abc import Callable, Iterator

import jax
import jax.extend as jex
import jax.numpy as jnp
from jaxtyping import Array, Float

_COMPARISONS = {"max", "min", "gt", "ge", "lt", "le"}
_ONE_OPERAND = {"abs", "sign"}
# Kinks inside these are not seen.
_OPAQUE = {
    "scan",
    "while",
    "cond",
    "reduce_max",
    "reduce_min",
    "argmax",
    "argmin",
    "sort",
    "top_k",
    "cumulative_max",
    "cummax",
    "cummin",
    "floor",
    "ceil",
    "round",
    "reduce_window_max",
    "clamp",
    "custom_vjp_call",
}


def switches(
    fun: Callable[[Float[Array, " k"]], Array], u: Float[Array, " k"]
) -> Float[Array, " switches"]:
    """Differences of the operands that `fun(u)` compares, where they depend on `u`;
    differentiable in `u`."""
    closed = jax.make_jaxpr(fun)(u)
    found: list[Array] = []
    _run(closed, [u], [True], found)
    if not found:
        return jnp.zeros((0,), u.dtype)
    return jnp.concatenate([jnp.ravel(value).astype(u.dtype) for value in found])


def hidden_kinks(fun: Callable, u: Float[Array, " k"]) -> list[str]:
    """Names of operations in `fun` that may hide kinks from `switches`."""
    closed = jax.make_jaxpr(fun)(u)
    return sorted({name for name in _names(closed.jaxpr) if name in _OPAQUE})


def _names(jaxpr) -> Iterator[str]:
    """Operations on floating-point numbers: only these can have kinks."""
    for eqn in _live(jaxpr):
        if any(jnp.issubdtype(v.aval.dtype, jnp.inexact) for v in eqn.invars):
            yield eqn.primitive.name
        inner = _inner(eqn)
        if inner is not None:
            yield from _names(inner.jaxpr)


def _live(jaxpr):
    """The equations that the outputs depend on: others compare in vain."""
    wanted = set(v for v in jaxpr.outvars if not isinstance(v, jex.core.Literal))
    kept = []
    for eqn in reversed(jaxpr.eqns):
        if wanted.intersection(eqn.outvars):
            kept.append(eqn)
            wanted.update(v for v in eqn.invars if not isinstance(v, jex.core.Literal))
    return kept[::-1]


def _inner(eqn):
    if eqn.primitive.name in _OPAQUE:
        return None
    for value in eqn.params.values():
        if isinstance(value, jex.core.ClosedJaxpr):
            return value
    return None


def _run(closed, args, moves, found):
    """Evaluates a jaxpr, appending the switches to `found`; `moves` says which of the
    arguments depend on `u`."""
    env = dict(zip(closed.jaxpr.constvars, closed.consts))
    env.update(zip(closed.jaxpr.invars, args))
    moving = {v for v, move in zip(closed.jaxpr.invars, moves) if move}

    def read(atom):
        return atom.val if isinstance(atom, jex.core.Literal) else env[atom]

    for eqn in _live(closed.jaxpr):
        values = [read(atom) for atom in eqn.invars]
        moves = [
            not isinstance(v, jex.core.Literal) and v in moving for v in eqn.invars
        ]
        name = eqn.primitive.name
        if any(moves):
            moving.update(eqn.outvars)
            if name in _COMPARISONS and jnp.issubdtype(values[0].dtype, jnp.inexact):
                found.append(values[0] - values[1])
            elif name in _ONE_OPERAND:
                found.append(values[0])
        inner = _inner(eqn)
        if inner is None:
            out = eqn.primitive.bind(*values, **eqn.params)
        else:
            out = _run(inner, values, moves, found)
        if not eqn.primitive.multiple_results:
            out = out if isinstance(out, list | tuple) else [out]
        env.update(zip(eqn.outvars, out))
    return [read(atom) for atom in closed.jaxpr.outvars]
