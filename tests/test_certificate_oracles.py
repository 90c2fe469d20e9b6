"""The certificate's rows on known networks: bounds hold, planted faults show."""

from pathlib import Path

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
DEEP = "margin over the deep linear maximum"
NEURONS = "margin over the neuron program"
LIVING = "margin reached by living neurons"
OWN = {PRODUCT, DIAGONAL, DEEP, NEURONS, LIVING}
CHAIN = "distance from a chain of layers"


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
        # A linear neuron is one of degree 2, too.
        (deep, {PRODUCT, DEEP, NEURONS, LIVING}),
        (squared_relu, {NEURONS, LIVING}),
        (diagonal, {DIAGONAL}),
    ):
        found = traj.certificate(problem=problem, strict=True)
        names = {row.name for row in found.rows}
        assert names & (OWN | {TANGENT}) == own | {TANGENT}
        documented = (Path(__file__).parents[1] / "docs/certificate.md").read_text()
        assert not [name for name in names if f"`{name}`" not in documented]
        # What the alignment promises is not much more than what the SVM finds.
        row = found[TANGENT]
        bound = float(row.expected.removeprefix("<= "))
        assert 0.8 * bound < row.value <= bound * (1 + row.tolerance) < 0.2


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


def test_margins_of_another_predictor(deep, squared_relu, diagonal):
    problem, traj = deep
    lower = changed(traj, {"margins": 0.97 * traj["margins"]})
    assert {PRODUCT, LIVING} <= failures(lower, problem)
    higher = changed(traj, {"margins": 1.01 * traj["margins"]})
    assert {DEEP, NEURONS} <= failures(higher, problem)
    problem, traj = squared_relu
    assert NEURONS in failures(
        changed(traj, {"margins": 1.01 * traj["margins"]}), problem
    )
    problem, traj = diagonal
    higher = changed(traj, {"margins": 1.2 * traj["margins"]})
    assert DIAGONAL in failures(higher, problem)


def test_margins_over_the_neurons_against_the_oracle(squared_relu):
    problem, traj = squared_relu
    program = gf.oracles.neuron_program(problem, traj.model)
    row = traj.certificate(problem=problem)[LIVING]
    np.testing.assert_allclose(row.value, program.margin / program.dual, rtol=1e-6)
    # Where neurons are hardly aligned, there is no lower bound.
    early = changed(traj, {"misalignment": np.full_like(traj.s, 0.5)})
    rows = {row.name for row in early.certificate(problem=problem).rows}
    assert NEURONS in rows and LIVING not in rows


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


def test_layers_of_a_deep_linear_flow(deep):
    problem, traj = deep
    found = traj.certificate(problem=problem, strict=True)
    m = traj["misalignment"][-1]
    np.testing.assert_allclose(found["alignment of layers"].value, 1 - m, rtol=1e-9)
    bound = float(found[CHAIN].expected.removeprefix("<= "))
    assert 0.3 * bound < found[CHAIN].value <= bound < 0.05
    first, second = (np.asarray(layer.weight) for layer in traj.model.layers)
    off = first - np.outer(second[0], second[0] @ first) / np.sum(second**2)
    distance = np.linalg.norm(off) / traj["rho"][-1]
    np.testing.assert_allclose(found[CHAIN].value, distance, rtol=1e-6)
    # Lemma D.3 leaves out a half of what bounds J late in the flow.
    bound = float(found["growth of J"].expected.removeprefix("<= "))
    assert 0.4 * bound < found["growth of J"].value < 0.6 * bound


class FirstOrder(eqx.Module):
    """The value and the gradient of a deep linear network, without its Hessian."""

    first: jax.Array
    second: jax.Array

    def __call__(self, x):
        first, second = jax.lax.stop_gradient((self.first, self.second))
        # The difference, a product of two differences, is zero with its gradient.
        return (second @ (self.first @ x) + (self.second - second) @ (first @ x))[0]


def test_missing_second_derivatives(deep):
    problem, traj = deep
    model = FirstOrder(*(layer.weight for layer in problem.model(problem.theta).layers))
    failed = failures(traj, gf.Problem(model, X, Y))
    assert "Hessian along theta" in failed
    assert not {"gradient of ln L", "alignment of layers"} & failed


def test_norms_of_other_layers(deep):
    _, traj = deep
    norms = traj["layer_norm"] * np.array([1.02, 1.0])
    assert "shares of layers" in failures(changed(traj, {"layer_norm": norms}))
    grown = changed(traj, {"rho": 1.02 * traj["rho"]})
    assert {"shares of layers", "J against beta"} <= failures(grown)


def test_neurons_in_another_order(deep):
    """Rows of the first matrix exchanged: every layer has its norm and rank."""
    problem, traj = deep
    first, second = (layer.weight for layer in traj.model.layers)
    swapped = eqx.tree_at(lambda m: m.layers[0].weight, traj.model, first[::-1])
    assert CHAIN in failures(
        changed(traj, {}, theta=problem.theta_of(swapped)), problem
    )


def test_alignment_better_than_it_is(deep):
    problem, traj = deep
    off = changed(traj, {"misalignment": 0.3 * traj["misalignment"]})
    assert {"growth of J", "alignment of layers"} <= failures(off, problem)


def test_another_potential(deep):
    _, traj = deep
    other = changed(traj, {"j_potential": 1.01 * traj["j_potential"]})
    assert failures(other) == {"J against beta"}
