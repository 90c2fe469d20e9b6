r"""The constructions of Vardi, Shamir and Srebro as ready problems.

Each function gives a `Construction`: a problem that starts where the theorem's flow
starts, the limit in closed form, whether it is a local optimum of the margin problem
$\min\tfrac12\|\theta\|^2$ s.t. $y_i\Phi(x_i; \theta) \ge 1$, and feasible parameters of
smaller norm where it is none. Limits are scaled so that the smallest margin is 1.

**Source:** *On margin maximization in linear and ReLU networks*, Tables 1 and 2.
"""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ._problem import Problem
from .models import (
    AbstractActivation,
    DeepLinear,
    Diagonal,
    DisjointPatches,
    Identity,
    ReLU,
    TwoLayer,
)
from .oracles import max_margin


class Construction(eqx.Module):
    r"""A problem whose flow's limit a theorem speaks of.

    **Attributes:**

    - `theorem`: as "Theorem 3.2".
    - `problem`: starts at the theorem's initialisation.
    - `limit`: flat parameters of the limit, or `None` if known up to a rotation only.
    - `squared_norm`: $\|\theta\|^2$ of the limit.
    - `locally_optimal`: of the margin problem; with `layer`, of that layer's (Problem
        (3)), the other layers kept.
    - `globally_optimal`: likewise.
    - `witness`: `witness(epsilon)` for `0 < epsilon < 1/2`, feasible flat parameters
        of smaller norm that tend to the limit as `epsilon` does to zero. Where the
        limit is a local optimum but no global one they are far from it and do not
        depend on `epsilon`; for global optima it is `None`.
    - `layer`: number of the layer, `None` for the whole problem.
    """

    theorem: str = eqx.field(static=True)
    problem: Problem
    limit: Float[Array, " k"] | None
    squared_norm: float
    locally_optimal: bool
    globally_optimal: bool
    witness: Callable[[float], Float[Array, " k"]] | None = None
    layer: int | None = None


def _two_layer(w, v, x, y=None, activation: AbstractActivation = ReLU()):
    """A two-layer problem with both layers trained, from rows `w` and outer `v`."""
    w, v, x = (jnp.asarray(a, float) for a in (w, v, x))
    y = jnp.ones(len(x)) if y is None else y
    model = TwoLayer(
        w.shape[1],
        len(w),
        activation,
        key=jax.random.key(0),
        train_outer=True,
    )
    model = eqx.tree_at(lambda m: (m.inner.weight, m.outer), model, (w, v))
    return Problem(model, x, y, one_class=True)


def _flat(*arrays) -> Float[Array, " k"]:
    return jnp.concatenate([jnp.ravel(jnp.asarray(a, float)) for a in arrays])


def theorem_3_1(
    x: Any,
    y: Any,
    widths: Sequence[int],
    *,
    key: PRNGKeyArray,
    scale: float | int = 1.0,
) -> Construction:
    r"""Fully connected linear networks of any depth $m$ reach a global optimum.

    The layers are $C v_l v_{l-1}^\top$ with $v_0$ the maximum-margin direction and
    $C^m = 1/\gamma$; the other $v_l$ depend on the start.

    **Arguments:** `x`, shape `(n, d)`; `y`, -1 and +1; `widths`, from `d` to 1; `key`
    and `scale` for the initialisation.
    """
    problem = Problem(DeepLinear(widths, key=key, scale=scale), x, y)
    depth = len(widths) - 1
    squared_norm = depth * max_margin(x, y).margin ** (-2 / depth)
    return Construction("Theorem 3.1", problem, None, squared_norm, True, True)


THEOREM_3_2_DATA = ((1.0, 0.25), (-1.0, 0.25))


def theorem_3_2(
    w: Any = ((0.1, 1.0), (0.1, -1.0)),
    v: Any = (1.0, 1.0),
    activation: AbstractActivation = ReLU(),
) -> Construction:
    r"""Two ReLU neurons, of which one is active on no example and stays so.

    **Arguments:** initial weights with $\langle w_1, x_i\rangle > 0$ and
    $\langle w_2, x_i\rangle < 0$ for both examples and $v_1 > 0$; `activation`, for
    flows with a smoothed one.

    **Raises:** `ValueError` if the weights are not so.
    """
    if np.shape(w) != (2, 2) or np.shape(v) != (2,):
        raise ValueError(
            "`w` must be two weight vectors of two entries each, and `v` two numbers; "
            f"got shapes {np.shape(w)} and {np.shape(v)}."
        )
    x = np.array(THEOREM_3_2_DATA)
    z = x @ np.asarray(w, float).T
    if np.any(z[:, 0] <= 0) or np.any(z[:, 1] >= 0) or np.asarray(v)[0] <= 0:
        raise ValueError(
            "`w[0]` must have positive and `w[1]` negative products with both "
            f"examples, and `v[0]` be positive; got {z.T.tolist()} and {v}."
        )

    def witness(epsilon):
        root = np.sqrt(2 * epsilon)
        return _flat([epsilon / 2, 2 - 2 * epsilon, -root, 0], [2, root])

    limit = _flat([0, 2, 0, 0], [2, 0])
    problem = _two_layer(w, v, x, activation=activation)
    return Construction("Theorem 3.2", problem, limit, 8.0, False, False, witness)


def _diagonal(layers, x, activation):
    x, weights = jnp.asarray(x, float), tuple(jnp.asarray(w, float) for w in layers)
    model = Diagonal(x.shape[1], len(weights), activation, key=jax.random.key(0))
    model = eqx.tree_at(lambda m: m.weights, model, weights)
    return Problem(model, x, jnp.ones(len(x)), one_class=True)


def theorem_4_1(activation: AbstractActivation = Identity()) -> Construction:
    """A diagonal network of depth 2 that never uses its second coordinate."""

    def witness(epsilon):
        w = [np.sqrt(1 - epsilon), np.sqrt(epsilon / 2)]
        return _flat(w, w)

    start = [[1, 0], [1, 0]]
    problem = _diagonal(start, [[1, 2]], activation)
    limit = _flat(start)
    return Construction("Theorem 4.1", problem, limit, 2.0, False, False, witness)


def theorem_4_2_1() -> Construction:
    r"""A linear diagonal network of depth 2 whose neurons all stay away from zero.

    The least $\ell_1$ norm with $\beta_1 + 2\beta_2 \ge 1$, $2\beta_1 + \beta_2 \ge 1$
    is at $\beta = (1/3, 1/3)$, and both layers tend to $\sqrt\beta$.
    """
    problem = _diagonal([[2, 1], [2, 1]], [[1, 2], [2, 1]], Identity())
    limit = jnp.full(4, 3**-0.5)
    return Construction("Theorem 4.2 (1)", problem, limit, 4 / 3, True, True)


def _axes() -> np.ndarray:
    return np.array([[0.0, 1.0], [1.0, 0.0], [0.0, -1.0], [-1.0, 0.0]])


def _pinwheel(epsilon):
    e = epsilon
    return _flat([[e, 1 - e], [1 - e, -e], [-e, e - 1], [e - 1, e]], np.ones(4))


def theorem_4_2_2(activation: AbstractActivation = ReLU()) -> Construction:
    """Four ReLU neurons, each on one of four examples and at the kinks of two."""
    problem = _two_layer(2 * _axes(), 2 * np.ones(4), _axes(), activation=activation)
    limit = _flat(_axes(), np.ones(4))
    return Construction("Theorem 4.2 (2)", problem, limit, 8.0, False, False, _pinwheel)


def lemma_c_6(activation: AbstractActivation = ReLU()) -> Construction:
    """Two ReLU neurons off all kinks: a local optimum that is no global one."""
    x = [[1, 0.25], [-1, 0.25], [0, -1]]
    problem = _two_layer([[0, 3], [0, -2]], [3, 2], x, activation=activation)

    def witness(epsilon):
        del epsilon
        return _flat([0.5, 0, -1.25, -1], [2, 1])

    limit = _flat([0, 2, 0, -1], [2, 1])
    return Construction("Lemma C.6", problem, limit, 10.0, True, False, witness)


def theorem_4_3(activation: AbstractActivation = ReLU()) -> Construction:
    """ReLU networks of depth 2 with non-zero inputs to neurons: local, not global."""
    return _renamed(lemma_c_6(activation), "Theorem 4.3")


def _renamed(construction, theorem, **changes):
    fields = {
        name: getattr(construction, name) for name in Construction.__dataclass_fields__
    }
    return Construction(**{**fields, "theorem": theorem, **changes})


def theorem_4_4(activation: AbstractActivation = Identity()) -> Construction:
    """A convolutional network with two disjoint patches keeps a symmetric filter."""
    root = 2**-0.5
    model = DisjointPatches(2, 2, 1, activation, key=jax.random.key(0))
    weights = (jnp.array([0.0, 1.0]), jnp.array([root, root]))
    model = eqx.tree_at(lambda m: m.weights, model, weights)
    x = jnp.array([[4, root, -4, root]])
    problem = Problem(model, x, jnp.ones(1))

    def witness(epsilon):
        half = np.sqrt(epsilon) / 2
        return _flat([2 * half, 1 - epsilon], [root + half, root - half])

    limit = _flat([0, 1], [root, root])
    return Construction("Theorem 4.4", problem, limit, 2.0, False, False, witness)


def theorem_5_1(
    depth: int = 3, activation: AbstractActivation = Identity()
) -> Construction:
    """A diagonal network of depth 3 or more that keeps two coordinates equal."""
    if depth < 3:
        raise ValueError(f"`depth` must be at least 3; got {depth}.")

    def witness(epsilon):
        sides = (np.array([1 + epsilon, 1 - epsilon]) / 2) ** (1 / depth)
        return _flat(*[sides] * depth)

    problem = _diagonal(np.ones((depth, 2)), [[1, 1]], activation)
    limit = jnp.full(2 * depth, 2 ** (-1 / depth))
    squared_norm = 2 * depth * 4 ** (-1 / depth)
    return Construction(
        "Theorem 5.1", problem, limit, squared_norm, False, False, witness
    )


def theorem_5_2(layer: int = 0) -> Construction:
    """Linear networks in N: every layer is a global optimum, the others kept.

    Here for the network of Theorem 4.4, which is no local optimum as a whole.
    """
    return _renamed(
        theorem_4_4(),
        "Theorem 5.2",
        locally_optimal=True,
        globally_optimal=True,
        witness=None,
        layer=layer,
    )


def theorem_5_3(activation: AbstractActivation = ReLU()) -> Construction:
    """The first layer of Theorem 4.2 (2) is no local optimum, the second kept."""
    return _renamed(theorem_4_2_2(activation), "Theorem 5.3", layer=0)


def theorem_5_4(activation: AbstractActivation = ReLU()) -> Construction:
    """Off all kinks, the first layer of Lemma C.6 is a local optimum, not a global."""
    return _renamed(lemma_c_6(activation), "Theorem 5.4", layer=0)
