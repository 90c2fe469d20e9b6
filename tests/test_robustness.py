"""Distances to the decision boundary, against closed forms and brute force."""

import functools
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq, minimize

import gradflow as gf

from .helpers import separable


def test_linear_distances_are_exact_and_equal_the_lower_bound():
    x, y = separable()
    problem = gf.Problem(gf.models.Linear(3), x, y)
    w = jnp.array([2.0, 0.3, -0.4])
    found = gf.diagnostics.robustness(problem, w)
    expected = np.asarray(y * (x @ w)) / np.linalg.norm(w)
    assert np.all(expected > 0)
    np.testing.assert_allclose(found.distances, expected, rtol=1e-9)
    np.testing.assert_allclose(found.lower_bounds, expected, rtol=1e-12)
    np.testing.assert_allclose(found.nearest @ np.asarray(w), 0, atol=1e-9)


def test_examples_may_be_less_precise_than_the_parameters():
    """Regression: the search compared lengths in float32 with margins in float64."""
    x, y = separable()
    mlp = gf.models.MLP((3, 6, 1), gf.models.SmoothReLU(0.1), key=jax.random.key(0))
    rough = gf.models.InPrecision(mlp, jnp.float32)
    exact, found = (
        gf.diagnostics.robustness(gf.Problem(model, a, y), model).distances
        for model, a in ((mlp, x), (rough, x.astype("float32")))
    )
    assert np.any((exact > 0) & np.isfinite(exact))
    np.testing.assert_allclose(found, exact, rtol=1e-4)


class Ellipse(eqx.Module):
    """Positive outside the ellipse |a x|^2 = 1, for points with a last feature 1."""

    a: jax.Array

    def __call__(self, x):
        return jnp.sum((self.a @ x[:2]) ** 2) - x[2] ** 2 * self.a[0, 0] ** 2


def ellipse_problem():
    # The boundary in space is the cone x_1^2 + 4 x_2^2 = x_3^2.
    x = np.array([[2.0, 1.0, 1.0], [0.2, 0.1, 1.0], [3.0, -2.0, 1.0], [0.0, 0.2, 1.0]])
    y = np.array([1.0, -1.0, 1.0, -1.0])
    model = Ellipse(jnp.array([[1.0, 0.0], [0.0, 2.0]]))
    return gf.Problem(model, x, y), model


def distance_to_cone(point):
    """By the stationarity conditions: z = (I + mu Q)^-1 x with z^T Q z = 0."""
    q = np.array([1.0, 4.0, -1.0])

    def constraint(mu):
        z = point / (1 + mu * q)
        return z @ (q * z)

    # Between the poles mu = -1/4 and 1 there is one root, the nearest point.
    mu = brentq(constraint, -0.25 + 1e-12, 1 - 1e-12, xtol=1e-15)
    return np.linalg.norm(point / (1 + mu * q) - point)


def test_curved_boundary_against_its_lagrange_multiplier():
    problem, model = ellipse_problem()
    found = gf.diagnostics.robustness(problem, model)
    expected = [distance_to_cone(np.asarray(p)) for p in problem.x[:3]]
    np.testing.assert_allclose(found.distances[:3], expected, rtol=1e-6)
    assert np.all(np.isnan(found.lower_bounds))
    margins = np.asarray(problem.margins(problem.theta))
    np.testing.assert_allclose(found.margins, margins, rtol=1e-12)


@pytest.fixture(scope="module")
def relu():
    x, y = separable(n=12, d=2, seed=4)
    model = gf.models.MLP((2, 6, 1), key=jax.random.key(7))
    problem = gf.Problem(model, x, y)
    return problem, model, gf.diagnostics.robustness(problem, model)


def test_planar_relu_network_against_a_grid_and_the_lower_bound(relu):
    problem, model, found = relu
    sides = np.linspace(-4, 4, 801)
    grid = np.stack(np.meshgrid(sides, sides), axis=-1).reshape(-1, 2)
    values = np.asarray(jax.vmap(model)(jnp.asarray(grid)))
    right = np.flatnonzero(found.margins > 0)
    assert len(right) >= 4
    for i in right:
        wrong = grid[values * float(problem.y[i]) <= 0]
        nearest = np.min(np.linalg.norm(wrong - np.asarray(problem.x[i]), axis=1))
        # The grid's own point is off by at most half a diagonal, 0.0071.
        assert abs(found.distances[i] - nearest) < 0.0075
        assert found.lower_bounds[i] <= found.distances[i]
    assert np.all(found.distances[found.margins <= 0] == 0)


def test_nearest_points_are_misclassified_and_at_their_distance(relu):
    problem, model, found = relu
    right = found.margins > 0
    values = np.asarray(jax.vmap(model)(jnp.asarray(found.nearest)))
    assert np.all((values * np.asarray(problem.y))[right] <= 0)
    gaps = np.linalg.norm(found.nearest - np.asarray(problem.x), axis=1)
    np.testing.assert_allclose(gaps, found.distances, rtol=1e-12)


def test_several_classes_bounds_and_other_examples():
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(3), 3)
    x = np.clip(np.eye(3)[y] + 0.1 * rng.normal(size=(9, 3)), 0, 1)
    problem = gf.Problem(gf.models.Linear(3, 3, key=jax.random.key(0)), x, y)
    w = jnp.eye(3).ravel()
    found = gf.diagnostics.robustness(problem, w)
    # For the identity the boundary between classes a and b is x_a = x_b.
    own = x[np.arange(9), y]
    others = np.where(np.eye(3)[y] == 1, -np.inf, x).max(axis=1)
    np.testing.assert_allclose(found.distances, (own - others) / np.sqrt(2), rtol=1e-8)
    np.testing.assert_allclose(found.lower_bounds, found.distances, rtol=1e-8)
    # Other examples, in a box; the first is misclassified.
    wrong = np.array([[1.0, 0.5, 0.0]])
    boxed = gf.diagnostics.robustness(
        problem, w, np.concatenate([wrong, x]), np.append(2, y), bounds=(0.0, 1.0)
    )
    assert boxed.distances[0] == 0
    np.testing.assert_array_equal(boxed.nearest[0], wrong[0])
    assert np.all(boxed.distances[1:] >= found.distances * (1 - 1e-9))
    assert np.all((boxed.nearest >= 0) & (boxed.nearest <= 1))
    with pytest.raises(ValueError, match="outside"):
        gf.diagnostics.robustness(problem, w, x + 1, y, bounds=(0.0, 1.0))
    with pytest.raises(ValueError, match="both or neither"):
        gf.diagnostics.robustness(problem, w, x)


@pytest.mark.parametrize(
    ("rows", "labels", "message"),
    [
        (2, [0, 7], "classes 0 to 7"),
        (2, [0.5, 1.0], "whole numbers"),
        (2, [0, 1, 2], r"expected \(2,\)"),
        (0, [], "at least one example"),
    ],
)
def test_labels_and_lengths_unlike_the_problems_are_refused(rows, labels, message):
    problem = gf.Problem(gf.models.Linear(3, 3), np.eye(3), np.arange(3))
    with pytest.raises(ValueError, match=message):
        gf.diagnostics.robustness(problem, jnp.ones(9), np.eye(3)[:rows], labels)
    with pytest.raises(ValueError, match=r"of shape \(3,\)"):
        gf.diagnostics.robustness(problem, jnp.ones(9), np.ones((2, 4)), [0, 1])


class BatchCentred(eqx.Module):
    weight: jax.Array

    def __call__(self, x):
        z = self.weight @ x
        return z - jax.lax.pmean(z, "batch")


def test_models_that_couple_examples_are_refused():
    problem = gf.Problem(BatchCentred(jnp.array([1.0, 0.0, 0.0])), *separable())
    with pytest.raises(ValueError, match="couples the examples"):
        gf.diagnostics.robustness(problem, problem.theta)
    with pytest.raises(ValueError, match="couples the examples"):
        gf.plot.saliency(problem, [problem.theta], 0)


def test_zero_weights_have_no_distance_and_no_bound():
    problem = gf.Problem(gf.models.Linear(3), *separable())
    found = gf.diagnostics.robustness(problem, jnp.zeros(3))
    np.testing.assert_array_equal(found.distances, 0)
    np.testing.assert_array_equal(found.lower_bounds, 0)


def test_no_boundary_gives_an_infinite_distance():
    class Positive(eqx.Module):
        a: jax.Array

        def __call__(self, x):
            return jnp.sum((self.a * x) ** 2) + self.a[0] ** 2

    x, y = separable(n=4, d=2)
    problem = gf.Problem(Positive(jnp.ones(2)), x, y)
    found = gf.diagnostics.robustness(problem, problem.theta)
    assert np.all(found.distances[np.asarray(y) > 0] == np.inf)
    assert np.all(found.distances[np.asarray(y) < 0] == 0)


def test_robust_accuracy_counts_distances_above_each_radius(relu):
    _, _, found = relu
    radii = np.array([0.0, 0.1, 0.5, 100.0])
    expected = [np.mean(found.distances > r) for r in radii]
    np.testing.assert_allclose(found.accuracy(radii), expected)
    assert found.accuracy(radii)[0] == np.mean(found.margins > 0)


@pytest.fixture(scope="module")
def moons():
    """A trained network with a curved boundary, and a point on each side of it."""
    x, y = gf.datasets.two_moons(n=12)
    model = gf.models.MLP((3, 8, 1), gf.models.SmoothReLU(0.1), key=jax.random.key(1))
    problem = gf.Problem(model, x, y)
    model = gf.integrate(problem, to=50.0, saveat=2, diagnostics=()).model
    found = gf.diagnostics.robustness(problem, model)
    assert np.all(found.margins > 0)
    return problem, model, found


def test_trained_network_against_sequential_quadratic_programming(moons):
    problem, model, found = moons
    value = jax.jit(lambda z: model(z))
    slope = jax.jit(jax.grad(lambda z: model(z)))
    boundary = {
        "type": "eq",
        "fun": lambda z: float(value(z)),
        "jac": lambda z: np.asarray(slope(z)),
    }
    rng = np.random.default_rng(0)
    for x, distance in zip(np.asarray(problem.x[:6]), found.distances):
        solutions = [
            minimize(
                lambda z: float(np.sum((z - x) ** 2)),
                x + rng.normal(size=3),
                jac=lambda z: 2 * (z - x),
                method="SLSQP",
                constraints=[boundary],
                options={"maxiter": 300, "ftol": 1e-14},
            )
            for _ in range(6)
        ]
        reached = [r.fun for r in solutions if abs(float(value(r.x))) < 1e-8]
        np.testing.assert_allclose(distance, np.sqrt(min(reached)), rtol=1e-6)


@pytest.mark.slow
def test_no_attack_of_carlini_and_wagner_comes_nearer(moons):
    pytest.importorskip("foolbox", reason="the extra `attacks`")
    problem, model, found = moons
    x, y = problem.x[:4], problem.y[:4]
    moved = gf.diagnostics.carlini_wagner(problem, problem.theta_of(model), x, y)
    attacked = np.linalg.norm(moved - np.asarray(x), axis=1)
    assert np.all(found.distances[:4] <= attacked)
    # The attack stops a little beyond the boundary, but it finds the same part of it.
    assert np.all(attacked < 1.02 * found.distances[:4])


@pytest.mark.slow
def test_the_nearer_of_search_and_attack_counts(moons):
    pytest.importorskip("foolbox", reason="the extra `attacks`")
    problem, model, found = moons
    x, y = problem.x[:3], np.asarray(problem.y[:3]) * np.array([1, 1, -1])
    hasty = functools.partial(
        gf.diagnostics.robustness, problem, model, x, y, starts=1, steps=0
    )
    alone, both = hasty(), hasty(attack="carlini-wagner", batch_size=2)
    # Without projections the search is nearest for the second example, not the first.
    assert both.distances[0] < alone.distances[0]
    assert both.distances[1] == alone.distances[1]
    np.testing.assert_allclose(both.distances[:2], found.distances[:2], rtol=0.02)
    gaps = np.linalg.norm(both.nearest - np.asarray(x), axis=1)
    np.testing.assert_allclose(gaps, both.distances, rtol=1e-12)
    values = np.asarray(jax.vmap(model)(jnp.asarray(both.nearest)))
    assert np.all(values * y <= 0)
    # Misclassified as it stands.
    assert both.distances[2] == 0


@pytest.mark.slow
def test_attack_on_several_classes_with_large_margins():
    pytest.importorskip("foolbox", reason="the extra `attacks`")
    x = 0.8 * np.eye(3) + 0.1
    problem = gf.Problem(gf.models.Linear(3, 3), x, np.arange(3))
    theta = 1e4 * jnp.eye(3).ravel()
    moved = gf.diagnostics.carlini_wagner(
        problem, theta, problem.x, problem.y, (0.0, 1.0)
    )
    # For the identity the boundary between classes a and b is x_a = x_b.
    gaps = np.linalg.norm(moved - x, axis=1)
    np.testing.assert_allclose(gaps, 0.8 / np.sqrt(2), rtol=0.02)


def test_attacks_that_cannot_run_say_why(relu, monkeypatch):
    problem, model, _ = relu
    monkeypatch.setitem(sys.modules, "foolbox", None)
    with pytest.raises(ImportError, match=r"pip install gradflow-jax\[attacks\]"):
        gf.diagnostics.robustness(problem, model, attack="carlini-wagner")
    with pytest.raises(ValueError, match="carlini-wagner"):
        gf.diagnostics.robustness(problem, model, attack="fgsm")
