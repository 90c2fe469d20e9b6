"""Rosenbrock methods: one Jacobian and one factorisation a step, no iteration."""

from collections.abc import Callable
from typing import Any, ClassVar

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.scipy.linalg import lu_factor, lu_solve
from jaxtyping import Array, Float, PyTree

from .common import Counts, NewtonInterpolation, interpolation_info

# With W = I/(gamma h) - J, stage i solves
#   W k_i = f(t + c_i h, y + sum_j A_ij k_j) + h d_i df/dt + sum_j C_ij k_j / h.
_GAMMA = 0.21193756319429014
_A = (
    (),
    (3.0,),
    (
        2.849394379747939,
        0.45842242204463923,
    ),
    (
        -6.954028509809101,
        2.489845061869568,
        -10.358996098473584,
    ),
    (
        2.8029986275628964,
        0.5072464736228206,
        -0.3988312541770524,
        -0.04721187230404641,
    ),
    (
        -7.502846399306121,
        2.561846144803919,
        -11.627539656261098,
        -0.18268767659942256,
        0.030198172008377946,
    ),
)
_C = (
    (),
    (-14.155112264123755,),
    (
        -17.97296035885952,
        -2.859693295451294,
    ),
    (
        147.12150275711716,
        -1.41221402718213,
        71.68940251302358,
    ),
    (
        165.43517024871676,
        -0.4592823456491126,
        42.90938336958603,
        -5.961986721573306,
    ),
    (
        24.854864614690072,
        -3.0009227002832186,
        47.4931110020768,
        5.5814197821558125,
        -0.6610691825249471,
    ),
    (
        30.91273214028599,
        -3.1208243349937974,
        77.79954646070892,
        34.28646028294783,
        -19.097331116725623,
        -28.087943162872662,
    ),
    (
        37.80277123390563,
        -3.2571969029072276,
        112.26918849496327,
        66.9347231244047,
        -40.06618937091002,
        -54.66780262877968,
        -9.48861652309627,
    ),
)
_NODES = (
    0.0,
    0.6358126895828704,
    0.4095798393397535,
    0.9769306725060716,
    0.4288403609558664,
    1.0,
    1.0,
    1.0,
)
_D = (
    0.21193756319429014,
    -0.42387512638858027,
    -0.3384627126235924,
    1.8046452872882734,
    2.325825639765069,
    0.0,
    0.0,
    0.0,
)
_H = (
    (
        25.948786856663858,
        -2.5579724845846235,
        10.433815404888879,
        -2.3679251022685204,
        0.524948541321073,
        1.1241088310450404,
        0.4272876194431874,
        -0.17202221070155493,
    ),
    (
        -9.91568850695171,
        -0.9689944594115154,
        3.0438037242978453,
        -24.495224566215796,
        20.176138334709044,
        15.98066361424651,
        -6.789040303419874,
        -6.710236069923372,
    ),
    (
        11.419903575922262,
        2.8879645146136994,
        72.92137995996029,
        80.12511834622643,
        -52.072871366152654,
        -59.78993625266729,
        -0.15582684282751913,
        4.883087185713722,
    ),
)
# Columns of the Jacobian computed together: bounds the memory, which grows as
# (examples x widest layer x columns).
_COLUMNS = 256


def _square(rows) -> np.ndarray:
    matrix = np.zeros((8, 8))
    for i, row in enumerate(rows):
        matrix[i, : len(row)] = row
    return matrix


def _stage_matrix() -> np.ndarray:
    # Stages 6, 7 and 8 sit at u, u + k_6 and u + k_6 + k_7, with u the last row of A.
    a = _square(_A)
    a[6], a[7] = a[5], a[5]
    a[6, 5] = a[7, 5] = a[7, 6] = 1.0
    return a


class Rodas5P(diffrax.AbstractAdaptiveSolver):
    r"""Rosenbrock method of order 5 with 8 stages, stiffly accurate and L-stable.

    Linearly implicit: every step factorises $I/(\gamma h) - J$ once, with the exact
    dense Jacobian $J$ of the raveled state, and solves with it eight times. Arrays of
    the state that the vector field does not read (quadratures) take no part in either.
    No Newton iteration, hence nothing to diverge or to tune. The embedded method has
    order 4; the dense output is the method's own and has order 4. A step that is not
    finite is handed back with an infinite error, so that the step-size controller
    shortens it.

    The cost is $k$ Jacobian products and $k^3$ operations a step: the choice for
    systems of up to a few hundred dimensions.

    **Source:** Steinebach, Construction of Rosenbrock-Wanner method Rodas5P and
    numerical benchmarks within the Julia Differential Equations package, BIT 63:27,
    2023.
    """

    term_structure: ClassVar = diffrax.ODETerm
    interpolation_cls: ClassVar[Callable[..., NewtonInterpolation]] = (
        NewtonInterpolation
    )

    def order(self, terms):
        del terms
        return 5

    def init(self, terms, t0, t1, y0, args) -> Counts:
        del terms, t0, t1, y0, args
        return Counts.zero()

    def step(
        self, terms, t0, t1, y0, args, solver_state: Counts, made_jump
    ) -> tuple[PyTree, PyTree, dict[str, PyTree], Counts, diffrax.RESULTS]:
        del made_jump
        field, y, m, unravel = _flatten(terms, t0, y0, args)
        h = jnp.asarray(terms.contr(t0, t1), y.dtype)
        k = _stages(field, t0, t1, y[:m], h)
        y1 = y + _combine(_LAST, k)
        # A step-size controller then rejects the step and tries a shorter one.
        good = jnp.all(jnp.isfinite(y1)) & jnp.all(jnp.isfinite(k[7]))
        y1, error = jnp.where(good, y1, y), jnp.where(good, k[7], jnp.inf)
        tree1 = unravel(y1)
        info = interpolation_info(unravel, y0, tree1, _combine(_H, k))
        counts = solver_state.add(evaluations=8, products=m, factorizations=1)
        result: Any = diffrax.RESULTS.successful  # Its type comes from untyped lineax.
        return tree1, unravel(error), info, counts, result

    def func(self, terms, t0, y0, args) -> PyTree:
        return terms.vf(t0, y0, args)

    def rejected(self, before: Counts, after: Counts, error) -> Counts:
        """The state to go on with when the step from `before` to `after` is rejected.

        Diffrax goes on with `before`, which is also correct, but forgets the work.
        """
        del before, error
        return after

    def counts(self, solver_state: Counts) -> dict[str, Any]:
        """Work done so far: `gradient_evaluations`, `jacobian_products`,
        `factorizations`, as integer arrays."""
        return solver_state.as_dict()


def _combine(weights, k: Float[Array, "8 k"]) -> Float[Array, "... k"]:
    # Not a product of matrices, which costs a small flow more than what it computes.
    weights = jnp.asarray(weights, k.dtype)[..., None]
    k = jnp.expand_dims(k, range(weights.ndim - k.ndim))
    return jnp.sum(weights * k, axis=-2)


_LAST = np.concatenate([np.asarray(_A[5]), np.ones(3)])
# To solve the stages' equations at once where J is zero.
_INVERSE = np.tril(np.linalg.inv(np.eye(8) / _GAMMA - _square(_C)))


def _flatten(
    terms: diffrax.AbstractTerm, t0, y0: PyTree, args: Any
) -> tuple[Callable, Float[Array, " k"], int, Callable]:
    """The vector field as a function `f(t, z)` that returns the slope, shape `(k,)`, of
    the flat state, of which it reads only the first entries `z`, shape `(m,)`; that
    state; `m`; and the way back to a PyTree."""
    leaves, structure = jax.tree.flatten(y0)
    read = _read(lambda leaves: terms.vf(t0, structure.unflatten(leaves), args), leaves)
    order = sorted(range(len(leaves)), key=lambda i: not read[i])

    def flat(tree):
        leaves = jax.tree.leaves(tree)
        return ravel_pytree([leaves[i] for i in order])

    y, unravel_leaves = flat(y0)
    m = sum(leaf.size for leaf, of_field in zip(leaves, read) if of_field)

    def unravel(y):
        found = dict(zip(order, unravel_leaves(y)))
        return structure.unflatten([found[i] for i in range(len(leaves))])

    def field(t, z):
        return flat(terms.vf(t, unravel(jnp.concatenate([z, y[m:]])), args))[0]

    return field, y, m, unravel


def _read(function: Callable, leaves: list) -> list[bool]:
    """Which of its arguments a function of a list of arrays reads; all if none."""
    jaxpr = jax.make_jaxpr(function)(leaves).jaxpr
    read = {id(v) for eqn in jaxpr.eqns for v in eqn.invars}
    read.update(id(v) for v in jaxpr.outvars)
    found = [id(v) in read for v in jaxpr.invars]
    return found if any(found) else [True for _ in found]


def _stages(field, t0, t1, z, h) -> Float[Array, "8 k"]:
    length = jnp.asarray(t1 - t0)
    t0 = jnp.asarray(t0, length.dtype)
    slope, jacobian = _slope_and_jacobian(lambda z: field(t0, z), z)
    identity = jnp.eye(z.size, dtype=z.dtype)
    factors = lu_factor(identity / (_GAMMA * h) - jacobian[: z.size])
    # h df/dt, exact; zero work where the field does not depend on time.
    _, time_slope = jax.jvp(lambda t: field(t, z), (t0,), (length,))
    # What a stage adds to z and to its slope, in one product.
    weights = jnp.asarray(np.stack([_stage_matrix(), _square(_C)], axis=1), z.dtype)
    d = jnp.asarray(_D, z.dtype)
    nodes = jnp.asarray(_NODES, length.dtype)

    def row(i, slope, added):
        right = slope[: z.size] + d[i] * time_slope[: z.size] + added / h
        return jnp.concatenate([lu_solve(factors, right), slope[z.size :]])

    def stage(i, rows):
        moved, added = _combine(weights[i], rows[:, : z.size])
        slope = field(t0 + nodes[i] * length, z + moved)
        # Unlike `at`, this does not check the index.
        return jax.lax.dynamic_update_index_in_dim(rows, row(i, slope, added), i, 0)

    # The first stage's slope came with the Jacobian.
    rows = jnp.zeros((8, slope.size), z.dtype)
    rows = rows.at[0].set(row(0, slope, jnp.zeros_like(z)))
    rows = jax.lax.fori_loop(1, 8, stage, rows)
    k, slopes = rows[:, : z.size], rows[:, z.size :]
    # Of quadratures the stages, on which no slope depends, all at once.
    following = jnp.matmul(k, jacobian[z.size :].T, precision="highest")
    right = slopes + d[:, None] * time_slope[None, z.size :] + following
    return jnp.concatenate([k, h * _combine(_INVERSE, right)], axis=1)


def _slope_and_jacobian(
    function: Callable, z: Float[Array, " m"]
) -> tuple[Float[Array, " k"], Float[Array, "k m"]]:
    # Linearised first, so that what all columns share is computed once. The identity is
    # a constant, so that what acts on it alone (a linear model) leaves the loop.
    slope, product = jax.linearize(function, z)
    if z.size <= _COLUMNS:
        columns = jax.vmap(product)(np.eye(z.size, dtype=z.dtype))
    else:
        identity = jnp.eye(z.size, dtype=z.dtype)
        columns = jax.lax.map(product, identity, batch_size=_COLUMNS)
    return slope, columns.T
