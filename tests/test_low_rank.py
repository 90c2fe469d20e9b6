"""`LowRankJacobian` against the eigenvalues of a symmetric matrix, by NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradflow.solvers.low_rank import LowRankJacobian

VALUES = -np.concatenate([np.geomspace(1e3, 10, 6), np.geomspace(0.5, 1e-6, 54)])


def _matrix(angle, dtype):
    """Of eigenvalues `VALUES`; the stiffest vector turns towards one of the rest."""
    vectors = np.linalg.qr(np.random.default_rng(0).normal(size=(60, 60)))[0].T
    first, last = vectors[0].copy(), vectors[-1].copy()
    vectors[0] = np.cos(angle) * first + np.sin(angle) * last
    vectors[-1] = np.cos(angle) * last - np.sin(angle) * first
    return jnp.asarray((vectors.T * VALUES) @ vectors, dtype)


@jax.jit
def _updated(jacobian, matrix):
    return jacobian.updated(lambda u: matrix @ u)


def _off_orthonormal(jacobian):
    vectors = np.asarray(jacobian.vectors, float)
    return np.max(np.abs(vectors @ vectors.T - np.eye(len(vectors))))


@pytest.mark.parametrize(("dtype", "eps"), [(np.float32, 1e-6), (np.float64, 1e-14)])
def test_the_stiffest_directions_are_found_and_kept(dtype, eps):
    jacobian, matrix = LowRankJacobian.start(60, 6, dtype), _matrix(0.0, dtype)
    # The last ones have nothing left to learn but rounding.
    for _ in range(300):
        jacobian = _updated(jacobian, matrix)
    assert jacobian.values.dtype == dtype
    np.testing.assert_allclose(jacobian.values, VALUES[:6], rtol=100 * eps)
    assert _off_orthonormal(jacobian) < 10 * eps
    # Not below the least value that is known.
    assert jacobian.bound == pytest.approx(-VALUES[5], rel=min(1e-5, 100 * eps))
    for row, value in zip(np.asarray(jacobian.vectors), VALUES):
        residual = np.asarray(matrix, float) @ row - value * row
        assert np.linalg.norm(residual) < 1e3 * 100 * eps


@pytest.mark.parametrize(("dtype", "eps"), [(np.float32, 1e-6), (np.float64, 1e-14)])
def test_a_turning_direction_is_followed(dtype, eps):
    jacobian = LowRankJacobian.start(60, 6, dtype)
    for _ in range(100):
        jacobian = _updated(jacobian, _matrix(0.0, dtype))
    for angle in np.linspace(0, 1, 100):
        jacobian = _updated(jacobian, _matrix(angle, dtype))
    # The first probe sees it at once; what it says is one step old.
    row = np.asarray(jacobian.vectors[0], float)
    residual = np.asarray(_matrix(1.0, dtype), float) @ row - VALUES[0] * row
    assert np.linalg.norm(residual) < 0.1 * 0.01 * 1e3
    assert jacobian.values[0] == pytest.approx(VALUES[0], rel=1e-3)
    assert _off_orthonormal(jacobian) < 10 * eps


@pytest.mark.parametrize(("size", "rank"), [(1, 1), (2, 2), (5, 5), (5, 3), (3, 16)])
def test_small_matrices_are_found_whole(size, rank):
    matrix = jnp.diag(-jnp.arange(1.0, size + 1))
    jacobian = LowRankJacobian.start(size, rank, np.float64)
    for _ in range(60):
        jacobian = _updated(jacobian, matrix)
    expected = -np.arange(float(size), 0, -1)[: jacobian.values.size]
    np.testing.assert_allclose(jacobian.values, expected, rtol=1e-10)
    assert _off_orthonormal(jacobian) < 1e-13


def test_every_direction_is_looked_at_and_the_stiffer_more_often():
    jacobian, matrix = LowRankJacobian.start(60, 12, float), _matrix(0.0, float)
    for _ in range(200):
        jacobian = _updated(jacobian, matrix)
    looked = np.zeros(12, int)
    for _ in range(200):
        looked[np.asarray(jacobian._rows())] += 1
        jacobian = _updated(jacobian, matrix)
    assert np.all(looked >= 5)
    assert looked[0] >= 200
    assert looked[1] > 2 * looked[-1]


@pytest.mark.parametrize("grown", [2, 5])
def test_a_known_direction_that_becomes_stiff_is_noticed(grown):
    values = np.array([-1e3, -30.0, -20.0, 0.0, 0.0, 0.0])
    matrix = jnp.diag(jnp.asarray(values))
    jacobian = LowRankJacobian.start(6, 6, float)
    for _ in range(50):
        jacobian = _updated(jacobian, matrix)
    values[grown] = -500.0
    for _ in range(6):
        jacobian = _updated(jacobian, jnp.diag(jnp.asarray(values)))
    np.testing.assert_allclose(jacobian.values[:2], [-1e3, -500], rtol=1e-4)


@pytest.mark.parametrize(("size", "rank"), [(12, 8), (24, 20), (24, 21), (60, 56)])
@pytest.mark.parametrize(("dtype", "off"), [(np.float32, 1e-3), (np.float64, 1e-8)])
def test_vectors_stay_orthonormal_where_they_span_almost_everything(
    size, rank, dtype, off
):
    rng = np.random.default_rng(rank)
    root = rng.normal(size=(size, size))
    jacobian = LowRankJacobian.start(size, rank, dtype)
    for _ in range(150):
        root = root + 0.05 * rng.normal(size=(size, size))
        jacobian = _updated(jacobian, jnp.asarray(-root @ root.T, dtype))
        assert _off_orthonormal(jacobian) < off
    least = np.linalg.eigvalsh(-root @ root.T)[0]
    assert jacobian.values[0] == pytest.approx(least, rel=0.01)
