"""The certificate's rows against margin programs: bounds hold, planted faults show."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradflow as gf

from .helpers import changed, failures, separable

X, Y = separable(n=6)
KEY = jax.random.key(0)
TANGENT = "distance to the tangent SVM"
PRODUCT = "margin reached by the product"
DIAGONAL = "margin over the diagonal maximum"


@pytest.fixture(scope="module")
def deep():
    problem = gf.Problem(gf.models.DeepLinear((3, 2, 1), key=KEY), X, Y)
    return problem, gf.integrate(problem, to=1000.0, saveat=30)


@pytest.fixture(scope="module")
def squared_relu():
    problem = gf.Problem(gf.models.TwoLayer(3, 6, key=KEY), X, Y)
    return problem, gf.integrate(problem, to=1000.0, saveat=30)


@pytest.fixture(scope="module")
def diagonal():
    problem = gf.Problem(gf.models.Diagonal(3, 3, key=KEY), X, Y)
    return problem, gf.integrate(problem, to=1000.0, saveat=30)


def test_each_kind_of_network_has_its_rows(deep, squared_relu, diagonal):
    for (problem, traj), own in (
        (deep, {PRODUCT}),
        (squared_relu, set()),
        (diagonal, {DIAGONAL}),
    ):
        found = traj.certificate(problem=problem, strict=True)
        names = {row.name for row in found.rows}
        assert names & {TANGENT, PRODUCT, DIAGONAL} == own | {TANGENT}
        # What the alignment promises is not much more than what the SVM finds.
        bound = float(found[TANGENT].expected.removeprefix("<= "))
        assert 0.8 * bound < found[TANGENT].value <= bound < 0.2


def test_deep_linear_bound_closes_in_on_the_maximum(deep):
    problem, traj = deep
    row = traj.certificate(problem=problem)[PRODUCT]
    bound = float(row.expected.removeprefix(">= "))
    assert 0.999 < bound <= row.value <= 1
    # The value from the predictor itself and the maximum margin.
    first, second = (np.asarray(layer.weight) for layer in traj.model.layers)
    predictor = (second @ first)[0]
    margin = np.min(np.asarray(Y) * (np.asarray(X) @ predictor))
    best = gf.oracles.max_margin(X, Y).margin
    np.testing.assert_allclose(row.value, margin / np.linalg.norm(predictor) / best)


@pytest.mark.parametrize("flow", ["deep", "squared_relu", "diagonal"])
def test_parameters_that_are_not_aligned(flow, request):
    problem, traj = request.getfixturevalue(flow)
    noise = jax.random.normal(jax.random.key(5), traj.theta.shape)
    size = jnp.linalg.norm(traj.theta) / jnp.linalg.norm(noise)
    moved = changed(traj, {}, traj.theta + 0.1 * size * noise)
    assert TANGENT in failures(moved, problem)


def test_margins_of_another_predictor(deep, diagonal):
    problem, traj = deep
    lower = changed(traj, {"margins": 0.99 * traj["margins"]})
    assert PRODUCT in failures(lower, problem)
    problem, traj = diagonal
    higher = changed(traj, {"margins": 1.2 * traj["margins"]})
    assert DIAGONAL in failures(higher, problem)


def test_diagonal_maximum_of_a_network_in_closed_form():
    # On x = (1, a) with a < 1 the l_{2/L} optimum is (1, 0): L weights of size one,
    # margin one, so that p / rho^L is at most L^(-L/2).
    x = jnp.array([[1.0, 0.5], [-1.0, -0.5]])
    model = gf.models.Diagonal(2, 3, key=KEY)
    weights = jax.tree.map(lambda w: jnp.array([1.0, 1e-3]), model.weights)
    model = eqx.tree_at(lambda m: m.weights, model, weights)
    problem = gf.Problem(model, x, jnp.array([1.0, -1.0]))
    traj = gf.integrate(problem, to=100.0, saveat=10)
    row = traj.certificate(problem=problem)[DIAGONAL]
    expected = traj["min_normalized_margin"][-1] * 3**1.5
    np.testing.assert_allclose(row.value, expected, rtol=1e-9)
    assert 0.99 < row.value <= 1
