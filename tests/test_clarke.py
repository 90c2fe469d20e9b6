"""Clarke subgradients of two-layer ReLU networks, and the flow that slides."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import nnls

import gradflow as gf
from gradflow.diagnostics import SlidingExample, clarke_direction

M = gf.models
KEY = jax.random.key(0)


def hull_min_norm(points):
    """Point of smallest norm in the convex hull: nnls with a heavy sum-to-one row."""
    heavy = 1e6
    matrix = np.vstack([points.T, heavy * np.ones(len(points))])
    target = np.append(np.zeros(points.shape[1]), heavy)
    weights, _ = nnls(matrix, target)
    return weights @ points / weights.sum()


def on_kinks(problem, model_of_weight, weight, pairs):
    """Moves rows of the first layer onto the kinks of the given examples."""
    weight = np.array(weight)
    for j, examples in pairs.items():
        span = np.linalg.qr(np.asarray(problem.x)[examples].T)[0]
        weight[j] -= span @ (span.T @ weight[j])
    return problem.theta_of(model_of_weight(jnp.asarray(weight)))


CASES = {
    "mlp": lambda: M.MLP((4, 3, 1), key=KEY),
    "classes": lambda: M.MLP((4, 3, 3), key=KEY),
    "mean_field": lambda: M.TwoLayer(4, 3, M.ReLU(), key=KEY, mean_field=True),
}


@pytest.mark.parametrize("name", CASES)
def test_against_gradients_at_nearby_points(name):
    """The hull of the gradients around the point, sampled on all sides of its kinks."""
    model = CASES[name]()
    x = jax.random.normal(jax.random.key(1), (6, 4))
    y = jnp.arange(6) % 3 if name == "classes" else jnp.where(x[:, 0] > 0, 1.0, -1.0)
    problem = gf.Problem(model, x, y)

    def weight_of(m):
        return m.layers[0].weight if isinstance(m, M.MLP) else m.inner.weight

    def with_weight(weight):
        return eqx.tree_at(weight_of, model, weight)

    theta = on_kinks(problem, with_weight, weight_of(model), {0: [0, 1], 1: [2]})
    result = clarke_direction(problem, theta)
    assert result.exact
    assert np.argwhere(result.kinks).tolist() == [[0, 0], [1, 0], [2, 1]]
    noise = 1e-12 * jax.random.normal(KEY, (200, problem.k))
    around = -jax.jit(jax.vmap(jax.grad(problem.log_risk)))(theta[None] + noise)
    corners = np.unique(np.round(np.asarray(around), 7), axis=0)
    assert len(corners) == 8
    expected = hull_min_norm(corners)
    np.testing.assert_allclose(result.direction, expected, atol=1e-6)
    # Where there is no kink it is the gradient.
    result = clarke_direction(problem, problem.theta)
    gradient = -jax.grad(problem.log_risk)(problem.theta)
    assert not result.kinks.any()
    np.testing.assert_allclose(result.direction, gradient, atol=1e-14)


def test_a_bias_counts_as_the_weight_of_a_constant_feature():
    x = jax.random.normal(jax.random.key(1), (6, 3))
    y = jnp.where(x[:, 0] > 0, 1.0, -1.0)
    plain = M.MLP((4, 3, 1), key=KEY)
    biased = M.MLP((3, 3, 1), key=KEY)
    first = M.Dense(3, 3, bias=True, key=KEY)
    biased = eqx.tree_at(lambda m: m.layers[0], biased, first)
    problem = gf.Problem(biased, x, y)
    appended = gf.Problem(plain, jnp.concatenate([x, jnp.ones((6, 1))], axis=1), y)

    def with_weight(weight):
        return eqx.tree_at(lambda m: m.layers[0].weight, plain, weight)

    def reordered(theta):
        weight, outer = appended.layout.split(jnp.asarray(theta))
        return jnp.concatenate([weight[:, :3].ravel(), weight[:, 3], outer.ravel()])

    weight = plain.layers[0].weight
    theta = on_kinks(appended, with_weight, weight, {0: [0, 1], 1: [2]})
    expected = clarke_direction(appended, theta)
    found = clarke_direction(problem, reordered(theta))
    assert found.kinks.sum() == 3 and found.exact
    np.testing.assert_allclose(
        found.direction, reordered(expected.direction), atol=1e-12
    )


def test_dependent_kinks_are_reported():
    x = jnp.array([[1.0, 0.0], [2.0, 0.0], [0.3, 1.0]])
    problem = gf.Problem(M.MLP((2, 1, 1), key=KEY), x, jnp.array([1.0, -1.0, 1.0]))
    model = eqx.tree_at(
        lambda m: m.layers[0].weight, M.MLP((2, 1, 1), key=KEY), jnp.array([[0.0, 1.0]])
    )
    assert not clarke_direction(problem, problem.theta_of(model)).exact


def test_other_networks_are_refused():
    x, y = jnp.eye(3), jnp.array([1.0, -1.0, 1.0])
    problem = gf.Problem(M.MLP((3, 2, 2, 1), key=KEY), x, y)
    with pytest.raises(ValueError, match="one hidden layer"):
        clarke_direction(problem, problem.theta)
    with pytest.raises(ValueError, match="`cosine` must lie"):
        SlidingExample(cosine=1.5)


@pytest.mark.parametrize("cosine", [0.2, 0.7])
def test_closed_form_obeys_the_inclusion(cosine):
    example = SlidingExample(cosine)
    problem = example.problem()
    corner = example.s0 + example.gap / cosine
    for s, sliding in ((example.s0 + 0.1, False), (corner + 3.0, True)):
        theta = jnp.asarray(example.solution(s))
        np.testing.assert_allclose(np.log(2) - problem.log_risk(theta), s, rtol=1e-13)
        result = clarke_direction(problem, theta)
        velocity = result.direction / np.sum(result.direction**2)
        step = 1e-6
        change = (example.solution(s + step) - example.solution(s - step)) / (2 * step)
        np.testing.assert_allclose(velocity, change, rtol=1e-8, atol=1e-9)
        assert result.exact
        assert result.kinks.sum() == (2 if sliding else 0)
        if sliding:
            np.testing.assert_allclose(result.slopes[result.kinks], cosine)


def test_smoothed_flows_converge_to_the_sliding_solution():
    example = SlidingExample()
    exact = example.solution(20.0)
    errors = []
    for eps in (1e-1, 1e-2):
        traj = gf.integrate(example.problem(eps), to=20.0, rtol=1e-7, saveat=2)
        theta = example.problem(eps).theta_of(traj.model)
        errors.append(np.linalg.norm(theta - exact) / np.linalg.norm(exact))
    # First order in eps.
    assert 7 < errors[0] / errors[1] < 14
