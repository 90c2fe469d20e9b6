"""Top eigenvalues of the Hessians along the flow, matrix-free."""

from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float
from scipy.sparse.linalg import LinearOperator, eigs, eigsh

from .._compile import jitted
from .._problem import Problem
from .common import point

_DENSE = 64  # Up to so many parameters the whole matrix is formed.


class Spectrum(eqx.Module):
    r"""Top eigenvalues of Hessians at one point; see `spectrum`.

    **Attributes:**

    - `risk`: the largest eigenvalues of $\nabla^2 L / L$, largest first. (L itself
        may be 1e-40000; $\nabla^2L/L = \nabla^2\ln L + GG^\top$.)
    - `log_risk`: the eigenvalues of $\nabla^2\ln L$ largest in magnitude, with sign.
    - `smoothed_margin`: those of $\nabla^2\alpha$.
    - `stiffness`: spectral radius of the Jacobian of $d\theta/ds = G/\lVert
        G\rVert^2$, the fastest rate of the flow per unit of log-risk time. An
        explicit method is stable for steps up to about $2/$`stiffness`.
    - `stiffness_ratio`: `stiffness` times $s$; the slow motion of the flow, whose
        direction changes like $1/s$, has rate $1/s$.
    - `log_sharpness`: $\ln\lambda_{\max}(\nabla^2L)$.
    - `sharpness_times_time`: $t\,\lambda_{\max}(\nabla^2L)$, NaN without `log_t`.
    """

    risk: Float[np.ndarray, " count"]
    log_risk: Float[np.ndarray, " count"]
    smoothed_margin: Float[np.ndarray, " count"]
    stiffness: float
    stiffness_ratio: float
    log_sharpness: float
    sharpness_times_time: float


def spectrum(
    problem: Problem,
    model: Any,
    *,
    count: int = 3,
    log_t: float | None = None,
    tol: float = 1e-6,
) -> Spectrum:
    r"""Top Hessian eigenvalues of L, ln L and $\alpha$, and the flow's stiffness.

    By the Lanczos and Arnoldi methods of SciPy (ARPACK) on exact Hessian-vector
    products; no matrix is formed beyond 64 parameters. Expensive: some tens to
    hundreds of products, each a few gradients.

    **Arguments:**

    - `model`: a module, or flat parameters of shape `(k,)`.
    - `count`: how many eigenvalues of each Hessian, at most `k`.
    - `log_t`: ln of gradient-flow time, as `traj["log_t"]`.
    - `tol`: relative accuracy of the eigenvalues.

    **Raises:** `ValueError` if `count` is not between 1 and `k`;
    `scipy.sparse.linalg.ArpackNoConvergence` if ARPACK fails.
    """
    if not 1 <= count <= problem.k:
        raise ValueError(
            f"`count` must lie between 1 and {problem.k}, the number of parameters; "
            f"got {count}."
        )
    theta = problem.theta_of(model)
    snap = point(problem, theta)

    def top(function, which) -> np.ndarray:
        return top_eigenvalues(
            Partial(function, problem, snap.log_risk), theta, count=count, which=which,
            tol=tol,
        )  # fmt: skip

    risk = top(_relative_risk, "LA")
    stiffness = spectral_radius(Partial(_log_risk_time_field, problem), theta, tol=tol)
    log_risk = float(snap.log_risk)
    sharpness = float(risk[0])
    # L and t apart may be 1e-40000 and its inverse; their product is of order one.
    u = float("nan") if log_t is None else float(np.exp(log_t + log_risk))
    return Spectrum(
        risk=risk,
        log_risk=top(_log_risk, "LM"),
        smoothed_margin=top(_smoothed_margin, "LM"),
        stiffness=stiffness,
        stiffness_ratio=stiffness * float(snap.s),
        log_sharpness=float(np.log(sharpness)) + log_risk if sharpness > 0 else np.nan,
        sharpness_times_time=u * sharpness,
    )


def _relative_risk(problem, at, theta):
    # L / L(here): the same Hessian up to the factor 1 / L(here), without underflow.
    return jnp.exp(problem.log_risk(theta) - at)


def _log_risk(problem, at, theta):
    del at
    return problem.log_risk(theta)


def _smoothed_margin(problem, at, theta):
    del at
    return problem.loss.inverse(problem.log_risk(theta))


def _log_risk_time_field(problem, theta):
    _, direction = problem.log_risk_and_direction(theta)
    return direction / jnp.vdot(direction, direction)


@jitted
def _hessian_product(function, theta, vector):
    return jax.jvp(jax.grad(function), (theta,), (vector,))[1]


@jitted
def _jacobian_product(function, theta, vector):
    return jax.jvp(function, (theta,), (vector,))[1]


def top_eigenvalues(
    function: Callable[[Float[Array, " k"]], Float[Array, ""]],
    theta: Float[Array, " k"],
    *,
    count: int,
    which: Literal["LA", "LM"],
    tol: float = 1e-6,
) -> Float[np.ndarray, " count"]:
    """Eigenvalues of a function's Hessian: the largest, or largest in magnitude.

    Pass `function` as a `jax.tree_util.Partial` of a top-level function to compile
    once for all points.
    """
    product = Partial(_hessian_product, function, theta)
    if _is_small(theta, count):
        values = np.linalg.eigvalsh(_dense(product, theta))
    elif _is_zero(product, theta):
        return np.zeros(count)
    else:
        values = eigsh(
            _operator(product, theta), k=count, which=which, tol=tol,
            v0=_start(theta), return_eigenvectors=False,
        )  # fmt: skip
    key = values if which == "LA" else np.abs(values)
    return np.asarray(values[np.argsort(-key)][:count], np.float64)


def spectral_radius(
    field: Callable[[Float[Array, " k"]], Float[Array, " k"]],
    theta: Float[Array, " k"],
    *,
    tol: float = 1e-6,
) -> float:
    """The largest magnitude of an eigenvalue of a vector field's Jacobian."""
    product = Partial(_jacobian_product, field, theta)
    if _is_small(theta, 1):
        return float(np.max(np.abs(np.linalg.eigvals(_dense(product, theta)))))
    if _is_zero(product, theta):
        return 0.0
    values = eigs(
        _operator(product, theta), k=1, which="LM", tol=tol, v0=_start(theta),
        return_eigenvectors=False,
    )  # fmt: skip
    return float(np.max(np.abs(values)))


def _is_small(theta, count):
    return theta.size <= max(_DENSE, 2 * count + 1)


def _is_zero(product, theta):
    # ARPACK refuses a matrix that takes its first vector to zero.
    return not np.any(product(jnp.asarray(_start(theta))))


def _dense(product, theta):
    rows = jax.vmap(product)(jnp.eye(theta.size, dtype=theta.dtype))
    return np.asarray(rows, np.float64).T


def _operator(product, theta):
    def matvec(v):
        return np.asarray(product(jnp.asarray(v.reshape(-1), theta.dtype)))

    shape = (theta.size, theta.size)
    return LinearOperator(shape, matvec=matvec, dtype=theta.dtype)


def _start(theta):
    return np.random.default_rng(0).normal(size=theta.size).astype(theta.dtype)
