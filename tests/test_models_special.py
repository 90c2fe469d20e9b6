"""Sparse, shared and diagonal networks, tangent models, analytic margins."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import gradflow as gf

from .model_properties import check_degrees

M = gf.models
KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (4, 6))
PATTERN = (np.array([[1, 0, 2, 0, 0, 1], [0, 3, 3, 1, 0, 2]]), np.array([[1, 2]]))


@pytest.mark.parametrize("activation", [M.SmoothReLU(0.5), M.Identity()])
def test_degrees_of_sparse_and_diagonal_networks(activation):
    sparse = M.SparseShared(PATTERN, activation, key=KEY)
    check_degrees(sparse, 2, (1, 1), X, examples=3)
    diagonal = M.Diagonal(6, 3, activation, key=KEY)
    check_degrees(diagonal, 3, (1, 1, 1), X, examples=3)


def test_index_maps_place_the_weights():
    model = M.SparseShared(PATTERN, key=KEY)
    (a, b, c), _ = model.weights
    first, second = model.matrices()
    np.testing.assert_array_equal(first, [[a, 0, b, 0, 0, a], [0, c, c, a, 0, b]])
    np.testing.assert_array_equal(second[0], model.weights[1])
    expected = second @ np.maximum(first @ np.asarray(X[0]), 0)
    np.testing.assert_allclose(model(X[0]), expected[0], rtol=1e-14)


def test_disjoint_patches_share_their_filters():
    model = M.DisjointPatches(3, 2, filters=2, key=KEY)
    filters, outer = model.weights[0].reshape(2, 2), model.weights[1].reshape(2, 3)
    for x in X:
        expected = sum(
            outer[f, j] * max(float(filters[f] @ x[2 * j : 2 * j + 2]), 0.0)
            for f in range(2)
            for j in range(3)
        )
        np.testing.assert_allclose(model(x), expected, rtol=1e-13)


def test_diagonal_network_is_a_product_of_weights():
    model = M.Diagonal(6, 3, key=KEY)
    a, b, c = model.weights
    np.testing.assert_allclose(model(X[0]), jnp.vdot(a * b * c, X[0]), rtol=1e-14)


def test_frozen_activations_of_squared_relu():
    base = M.TwoLayer(6, 5, key=KEY)
    model = M.Tangent(base, factor=0.5)
    w, s = base.inner.weight, base.outer
    assert isinstance(s, gf.Fixed)
    v = jax.random.normal(KEY, w.shape)
    problem = gf.Problem(model, X, jnp.array([1.0, -1.0, 1.0, -1.0]))
    assert problem.degree == 1
    outputs = problem.outputs(v.ravel())
    expected = ((X @ v.T) * np.maximum(X @ w.T, 0)) @ s.value
    np.testing.assert_allclose(outputs, expected, rtol=1e-12)
    np.testing.assert_allclose(model(X[0]), base(X[0]), rtol=1e-12)


def test_linearisation_is_the_taylor_polynomial():
    base = M.MLP((6, 5, 2), M.SmoothReLU(0.5), key=KEY)
    model = M.Linearized(base)
    problem = gf.Problem(model, X, jnp.arange(4) % 2, homogeneous=False)
    step = jax.random.normal(KEY, problem.theta.shape)
    _, unravel = ravel_pytree(base)

    def outputs(t):
        return jax.vmap(unravel(problem.theta + t * step))(X)

    value, slope = jax.jit(lambda: jax.jvp(outputs, (0.0,), (1.0,)))()
    for t in (0.0, 1.0, -3.0):
        linear = problem.outputs(problem.theta + t * step)
        np.testing.assert_allclose(linear, value + t * slope, rtol=1e-12)


def test_user_function_becomes_homogeneous():
    def function(theta, x):
        return jnp.tanh(theta @ x) + theta[0]

    model = M.Homogeneous(function, 2.5, jnp.arange(1.0, 7.0))
    check_degrees(model, 2.5, (2.5,), X, examples=3)
    # A function that is homogeneous already stays as it is.
    cubic = M.Homogeneous(lambda t, x: (t @ x) ** 3, 3, jnp.arange(1.0, 7.0))
    np.testing.assert_allclose(cubic(X[0]), (jnp.arange(1.0, 7.0) @ X[0]) ** 3)


@jax.jit
def hat(theta):
    model = M.MexicanHat(0.5)
    return eqx.tree_at(lambda m: m.theta, model, theta)(jnp.zeros(1))


def test_mexican_hat_degree_and_value():
    check_degrees(M.MexicanHat(0.25), 0.25, (0.25,), X[:1], examples=3)
    # At r^2 = 1/2: C = 1 / (1 + 1/8) and psi = phi - 2.
    for phi in (0.3, 2.0):
        theta = 3.0 * jnp.array([np.cos(phi), np.sin(phi), 1.0]) / np.sqrt(2)
        f = np.exp(-2) * (1 - np.sin(phi - 2) / 1.125)
        np.testing.assert_allclose(hat(theta), np.sqrt(3.0) * (1 - f), rtol=1e-14)
    on_the_rim = jnp.array([0.6, 0.8, 0.0])
    np.testing.assert_allclose(hat(on_the_rim), 1.0)
    assert bool(jnp.all(jnp.isfinite(jax.grad(hat)(on_the_rim))))


@pytest.mark.parametrize("r", [0.3, 0.6, 0.8, 0.9])
def test_mexican_hat_flow_keeps_psi_zero_and_widens_r(r):
    theta = M.MexicanHat(0.5, r=r, rho=2.0).theta

    def psi(theta):
        u, v, w = theta / jnp.linalg.norm(theta)
        phi = jnp.arctan2(v, u) % (2 * jnp.pi)
        return jnp.sin(phi - 1 / w**2), u**2 + v**2

    velocity = jax.grad(hat)(theta)
    (value, _), (dpsi, dsquare) = jax.jvp(psi, (theta,), (velocity,))
    np.testing.assert_allclose(value, 0, atol=1e-12)
    turning = abs(velocity[1] * theta[0] - velocity[0] * theta[1])
    assert turning > 0
    np.testing.assert_allclose(dpsi, 0, atol=1e-11 * turning / (1 - r**2) ** 2)
    assert dsquare > 0


def test_skip_connection_counterexample():
    model = M.SkipScalar()
    problem = gf.Problem(model, jnp.ones((1, 1)), jnp.ones(1), homogeneous=False)

    def margin(theta):
        return problem.margins(theta / jnp.linalg.norm(theta))[0]

    np.testing.assert_allclose(margin(problem.theta), 4 / 12 + 2 / np.sqrt(12))
    assert margin(problem.theta) > 0.9
    direction = -jax.grad(problem.log_risk)(problem.theta)
    assert jnp.vdot(jax.grad(margin)(problem.theta), direction) < 0
    with pytest.raises(ValueError, match="not homogeneous"):
        gf.Problem(model, jnp.ones((1, 1)), jnp.ones(1))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: M.SparseShared((), key=KEY), "`index_maps` is empty"),
        (lambda: M.SparseShared((np.ones((2, 2)),), key=KEY), "whole numbers"),
        (lambda: M.SparseShared((np.array([[1, 3]]),), key=KEY), "uses no entry 2"),
        (lambda: M.SparseShared((np.array([[0, 0]]),), key=KEY), "uses no entry 1"),
        (lambda: M.SparseShared((PATTERN[1], PATTERN[1]), key=KEY), "2 columns"),
        (lambda: M.Diagonal(3, 0, key=KEY), "`depth` must be positive"),
        (lambda: M.MexicanHat(r=1.5), "`r` between 0 and 1"),
        (lambda: M.Homogeneous(max, 0.0, jnp.ones(2)), "`degree` must be positive"),
        (lambda: M.MLP((3,), key=KEY), "at least two positive"),
    ],
)
def test_errors(make, match):
    with pytest.raises(ValueError, match=match):
        make()
