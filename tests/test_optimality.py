"""Verdicts of local optimality against problems whose answer is known otherwise."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

import gradflow as gf
from gradflow.oracles.switches import hidden_kinks, switches

from .helpers import separable

ONE = jnp.ones((1, 2)), jnp.ones(1)


class Planar(eqx.Module):
    """Two parameters and a margin that is a function of them alone."""

    w: jax.Array
    function: Callable = eqx.field(static=True)

    def __call__(self, x):
        return self.function(self.w) * x[0]


def planar(function, w):
    problem = gf.Problem(Planar(jnp.array([0.6, 0.8]), function), *ONE)
    return gf.oracles.local_optimality(problem, problem.model(jnp.array(w)))


def test_a_maximum_is_optimal_away_from_its_kink_only():
    found = planar(lambda w: jnp.maximum(w[0], w[1]), [2.0, 0.0])
    assert found.verdict == "locally optimal" and found.kinks == 0
    # On the kink both pieces allow descent, though Clarke's KKT conditions hold.
    found = planar(lambda w: jnp.maximum(w[0], w[1]), [2.0, 2.0])
    assert found.verdict == "not locally optimal"
    assert found.cells == 2 and found.kkt_residual < 1e-9
    witness = found.witness.w
    assert np.max(witness) >= 1 and witness @ witness < 2 * (1 - 1e-4)


def test_a_minimum_is_optimal_on_its_kink():
    # min(w) >= 1 is w_1 >= 1 and w_2 >= 1: convex, with the optimum (1, 1).
    found = planar(lambda w: jnp.minimum(w[0], w[1]), [3.0, 3.0])
    assert found.verdict == "locally optimal", found.reason
    assert found.cells == 2
    np.testing.assert_allclose(found.point.w, 1, rtol=1e-12)
    # Nearby, the point that is examined has been moved onto the kink.
    found = planar(lambda w: jnp.minimum(w[0], w[1]), [3.0, 3.01])
    assert found.verdict == "locally optimal", found.reason
    np.testing.assert_allclose(found.point.w, 1, rtol=1e-12)


def test_kinks_that_cannot_be_seen_leave_it_undecided():
    found = planar(lambda w: jnp.max(w), [2.0, 0.0])
    assert found.verdict == "undecided"
    assert "reduce_max" in found.reason


@pytest.mark.parametrize("fourth", [-1.0, 0.0, 1.0])
def test_vanishing_curvature(fourth):
    # In polar coordinates the least norm with margin 1 is 1 / (1 + fourth phi^4): a
    # strict minimum at phi = 0, a circle of minima, or a strict maximum.
    def margin(w):
        return jnp.linalg.norm(w) * (1 + fourth * jnp.arctan2(w[1], w[0]) ** 4)

    found = planar(margin, [1.0, 0.0])
    if fourth == 0:
        assert found.verdict == "locally optimal"
        assert "KKT points of the same norm" in found.reason
    else:
        # Below the resolution of the nearest search radius: both answers are honest.
        assert found.verdict == "undecided"
        assert "vanishes" in found.reason
        assert found.witness is None


@pytest.mark.parametrize("second, verdict", [(0.1, "not "), (-0.1, "")])
def test_small_curvature_is_seen(second, verdict):
    def margin(w):
        return jnp.linalg.norm(w) * (1 + second * jnp.arctan2(w[1], w[0]) ** 2)

    found = planar(margin, [1.0, 0.0])
    assert found.verdict == verdict + "locally optimal"
    # On the circle the Lagrangian's curvature is 1 - (1 + 2 second).
    assert np.isclose(found.curvature, -2 * second, rtol=1e-6)


def test_a_point_that_is_no_kkt_point_is_not_optimal():
    # Along (3, 4) / 5 the margin 3 w_1 / 5 could be had with w = (1, 0) for less.
    found = planar(lambda w: 0.6 * w[0], [3.0, 4.0])
    assert found.verdict == "not locally optimal"
    assert "not a KKT point: relative residual 8.0e-01" in found.reason
    assert found.witness.w[1] < found.point.w[1]


def test_several_classes_have_one_constraint_for_each_wrong_class():
    rng = np.random.default_rng(0)
    labels = np.arange(9) % 3
    corners = np.array([[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]])
    x = jnp.asarray(corners[labels] + 0.3 * rng.normal(size=(9, 2)))
    problem = gf.Problem(gf.models.Linear(2, 3), x, labels)

    def gaps(w):
        out = np.asarray(x) @ w.reshape(3, 2).T
        return np.concatenate([np.delete(o[k] - o, k) for o, k in zip(out, labels)])

    start = 2 * corners.ravel()
    best = minimize(
        lambda w: w @ w,
        start,
        jac=lambda w: 2 * w,
        method="SLSQP",
        constraints={"type": "ineq", "fun": lambda w: gaps(w) - 1},
        options={"ftol": 1e-14, "maxiter": 500},
    ).x
    found = gf.oracles.local_optimality(problem, problem.model(jnp.asarray(best)))
    assert found.verdict == "locally optimal", found.reason
    assert found.global_optimum and len(found.multipliers) == 18
    point = np.asarray(problem.theta_of(found.point))
    np.testing.assert_allclose(point, best, atol=1e-6)


@pytest.mark.parametrize("seed", [0, 1])
def test_verdicts_on_random_relu_networks_survive_random_perturbations(seed):
    x, y = separable(5, 2, seed)
    model = gf.models.TwoLayer(
        2, 3, gf.models.ReLU(), key=jax.random.key(seed), train_outer=True
    )
    problem = gf.Problem(model, x, y)
    margins = jax.jit(jax.vmap(problem.margins))
    rng = np.random.default_rng(seed)
    starts = rng.normal(size=(2000, problem.k))
    least = np.min(margins(jnp.asarray(starts)), axis=1)
    start = starts[np.argmax(least / np.sum(starts**2, axis=1))]
    jacobian = jax.jit(jax.jacrev(problem.margins))
    end = minimize(
        lambda w: w @ w / 2,
        start / np.sqrt(np.max(least / np.sum(starts**2, axis=1))),
        jac=lambda w: w,
        method="SLSQP",
        constraints={
            "type": "ineq",
            "fun": lambda w: np.asarray(problem.margins(jnp.asarray(w))) - 1,
            "jac": lambda w: np.asarray(jacobian(jnp.asarray(w))),
        },
        options={"ftol": 1e-15, "maxiter": 300},
    ).x
    if np.min(problem.margins(jnp.asarray(end))) <= 0:
        pytest.skip("the solver found no separating network from here")
    found = gf.oracles.local_optimality(problem, problem.model(jnp.asarray(end)))
    point = np.asarray(problem.theta_of(found.point))
    if found.verdict == "not locally optimal":
        witness = problem.theta_of(found.witness)
        assert np.min(problem.margins(witness)) >= 1 - 1e-12
        assert witness @ witness < point @ point
        return
    # Best of many perturbations at several radii, each scaled to be feasible.
    for radius in (1e-3, 1e-2):
        moved = rng.normal(size=(20_000, problem.k))
        moved *= radius * np.linalg.norm(point) / np.linalg.norm(moved, axis=1)[:, None]
        least = np.min(margins(jnp.asarray(point + moved)), axis=1)
        squares = np.sum((point + moved) ** 2, axis=1) / least
        assert np.min(squares) >= point @ point * (1 - 1e-12)


def test_kinks_that_a_layer_cannot_reach_do_not_matter():
    """Outer weights alone: linear in them, though neurons sit on their kinks."""
    c = gf.constructions.theorem_4_2_2()
    assert c.limit is not None
    model = c.problem.model(c.limit)
    found = gf.oracles.layer_optimality(c.problem, model, 1)
    assert found.kinks == 0
    assert found.verdict == "locally optimal" and found.global_optimum, found.reason
    np.testing.assert_allclose(c.problem.theta_of(found.point), c.limit, atol=1e-12)
    # The same program for SciPy: outputs at unit inner weights.
    z = np.asarray(c.problem.y)[:, None] * np.maximum(
        np.asarray(c.problem.x) @ np.asarray(model.inner.weight).T, 0
    )
    best = minimize(
        lambda v: v @ v / 2,
        np.full(4, 2.0),
        jac=lambda v: v,
        constraints={"type": "ineq", "fun": lambda v: z @ v - 1, "jac": lambda v: z},
        method="SLSQP",
        tol=1e-12,
    )
    np.testing.assert_allclose(found.point.outer, best.x, atol=1e-6)


def test_of_two_similar_examples_the_nearer_supports():
    """Margins 1.9 % apart, where either would explain the point to first order."""
    x, y = gf.datasets.iris()
    x = x @ np.linalg.svd(x, full_matrices=False)[2][:2].T
    key = jax.random.key(0)
    c = gf.constructions.theorem_3_1(x, y, (2, 4, 1), key=key, scale=1e-4)
    traj = gf.integrate(c.problem, to=1e5, rtol=1e-6, saveat=2)
    found = gf.oracles.local_optimality(c.problem, traj.model)
    assert found.verdict == "locally optimal" and found.global_optimum, found.reason


def test_norms_are_held_against_a_global_bound():
    x = jnp.array([[2.0, 1.0], [1.0, 2.0], [1.5, -0.2]])
    y = jnp.array([1.0, 1.0, 1.0])
    key = jax.random.key(0)
    for model in (
        gf.models.Diagonal(2, 2, key=key),
        gf.models.DeepLinear((2, 3, 1), key=key),
    ):
        problem = gf.Problem(model, x, y, one_class=True)
        traj = gf.integrate(problem, to=1e3, throw=False)
        found = gf.oracles.local_optimality(problem, traj.model)
        size = float(jnp.sum(problem.theta_of(found.point) ** 2))
        assert found.verdict == "locally optimal" and found.global_optimum
        np.testing.assert_allclose(size, found.bound, rtol=1e-8)
    relu = gf.Problem(gf.models.TwoLayer(2, 3, key=key), x, y, one_class=True)
    ahead = relu.model(jnp.abs(relu.theta))
    if float(relu.margins(relu.theta_of(ahead)).min()) > 0:
        assert np.isnan(gf.oracles.local_optimality(relu, ahead).bound)


def test_a_layer_may_be_numbered_by_numpy():
    problem = gf.Problem(gf.models.Linear(3), *separable(6, 3))
    best = gf.oracles.max_margin(problem.x, problem.y)
    model = problem.model(jnp.asarray(best.direction))
    found = gf.oracles.layer_optimality(problem, model, np.int64(0))
    assert found.global_optimum
    w = found.point.weight[0]
    np.testing.assert_allclose(w, best.direction / best.margin, rtol=1e-9)


def test_bad_arguments_are_named():
    x, y = separable(6, 3)
    model = gf.models.DeepLinear((3, 2, 1), key=jax.random.key(3))
    problem = gf.Problem(model, x, y)
    with pytest.raises(ValueError, match="`layer='hidden'` is not a layer"):
        gf.oracles.layer_optimality(problem, model, "hidden")
    linear = gf.Problem(gf.models.Linear(3), x, y)
    with pytest.raises(ValueError, match="has a margin of -"):
        # The first feature has the sign of the label.
        gf.oracles.local_optimality(linear, linear.model(jnp.array([-1.0, 0.0, 0.0])))
    skip = gf.Problem(gf.models.Linear(3), x, y, homogeneous=False)
    with pytest.raises(ValueError, match="must be homogeneous"):
        gf.oracles.local_optimality(skip, skip.model(jnp.ones(3)))
    coarse = Planar(jnp.ones(2, jnp.float32), jnp.sum)
    single = gf.Problem(coarse, ONE[0].astype(jnp.float32), ONE[1])
    with pytest.raises(ValueError, match="float64"):
        gf.oracles.local_optimality(single, single.model(single.theta))


def test_switches_are_the_preactivations():
    x, y = separable(4, 3)
    model = gf.models.MLP((3, 2, 2, 1), key=jax.random.key(0))
    problem = gf.Problem(model, x, y)
    first, second, _ = (np.asarray(layer.weight) for layer in model.layers)
    z1 = np.asarray(x) @ first.T
    z2 = np.maximum(z1, 0) @ second.T
    found = switches(problem.margins, problem.theta)
    expected = np.concatenate([z1.ravel(), z2.ravel()])
    np.testing.assert_allclose(np.sort(found), np.sort(expected), rtol=1e-12)
    assert hidden_kinks(problem.margins, problem.theta) == []


def test_switches_of_library_functions():
    u = jnp.array([-1.0, 2.0])
    assert switches(jax.nn.relu, u).tolist() == [-1.0, 2.0]
    assert switches(jnp.abs, u).tolist() == [-1.0, 2.0]
    assert switches(jax.jit(lambda u: jnp.minimum(u, 1.0)), u).tolist() == [-2.0, 1.0]
    assert switches(lambda u: u**3, u).shape == (0,)
    # A comparison whose outcome is not used switches nothing, nor one of constants.
    assert switches(lambda u: (u > 0, u)[1], u).shape == (0,)
    assert switches(lambda u: jnp.where(jnp.ones(2) > 0, u, -u), u).shape == (0,)
    assert switches(jax.jit(lambda u: u * jnp.abs(jnp.ones(2))), u).shape == (0,)

    def step(carry, a):
        return carry, jnp.abs(a)

    assert hidden_kinks(lambda u: jax.lax.scan(step, 0.0, u)[1], u) == ["scan"]
