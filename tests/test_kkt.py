"""KKT residuals, against quadratic programs, closed forms and naive transcriptions."""

import clarabel
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import sparse

import gradflow as gf
from gradflow.diagnostics.common import margin_gradients
from gradflow.diagnostics.kkt import nonnegative_combination

from .helpers import separable


def quadratic_program(rows):
    """min |w|^2 / 2 with rows w >= 1, and its multipliers, by an interior point."""
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = 1e-12
    m, d = rows.shape
    solution = clarabel.DefaultSolver(
        sparse.csc_matrix(np.eye(d)),
        np.zeros(d),
        sparse.csc_matrix(-rows),
        -np.ones(m),
        [clarabel.NonnegativeConeT(m)],
        settings,
    ).solve()
    return np.array(solution.x), np.array(solution.z)


def linear_solution(**kwargs):
    x, y = separable(**kwargs)
    w, dual = quadratic_program(np.asarray(y)[:, None] * np.asarray(x))
    return x, y, w, dual


def rank_one(u, widths, norms, seed=0):
    """Matrices n_j v_j v_{j-1}^T with v_0 = u and random unit vectors between."""
    rng = np.random.default_rng(seed)
    vectors = [u / np.linalg.norm(u)]
    for width in widths[1:-1]:
        v = rng.normal(size=width)
        vectors.append(v / np.linalg.norm(v))
    vectors.append(np.ones(1))
    return [c * np.outer(v, w) for c, v, w in zip(norms, vectors[1:], vectors)]


def deep_linear(matrices):
    widths = [matrices[0].shape[1], *[len(a) for a in matrices]]
    model = gf.models.DeepLinear(widths, key=jax.random.key(0))
    return eqx.tree_at(
        lambda m: [layer.weight for layer in m.layers],
        model,
        [jnp.asarray(a) for a in matrices],
    )


@pytest.mark.parametrize("size", [1e-3, 1e4])
def test_linear_max_margin_solution_is_a_kkt_point_with_the_programs_multipliers(size):
    x, y, w, dual = linear_solution(n=12, d=4)
    problem = gf.Problem(gf.models.Linear(4), x, y)
    found = gf.diagnostics.kkt(problem, jnp.asarray(w * size), threshold=0.0)
    assert found.epsilon < 1e-8
    assert found.delta < 1e-8
    np.testing.assert_allclose(found.multipliers, dual, atol=1e-7)
    np.testing.assert_allclose(found.point, w, rtol=1e-7)
    np.testing.assert_allclose(found.norm, np.linalg.norm(w), rtol=1e-7)


def test_distance_from_the_solution_shows_in_epsilon():
    x, y, w, _ = linear_solution(n=12, d=4)
    problem = gf.Problem(gf.models.Linear(4), x, y)
    away = np.array([0.0, 0.0, 0.0, 1.0]) * np.linalg.norm(w)
    sizes = [1e-1, 1e-2, 1e-3]
    residuals = [
        gf.diagnostics.kkt(problem, jnp.asarray(w + c * away), threshold=0.0)
        for c in sizes
    ]
    # Off the solution either stationarity or slackness must fail in proportion.
    total = np.array([r.epsilon + r.delta for r in residuals])
    assert np.all(total > 0.1 * np.array(sizes))


@pytest.mark.parametrize("depth", [2, 4])
def test_balanced_rank_one_deep_linear_solution_is_a_kkt_point(depth):
    x, y, w, _ = linear_solution()
    widths = [3, *[4] * (depth - 1), 1]
    problem = gf.Problem(gf.models.DeepLinear(widths, key=jax.random.key(1)), x, y)
    assert problem.degree == depth
    model = deep_linear(rank_one(w, widths, [3.0] * depth))
    found = gf.diagnostics.kkt(problem, model)
    assert found.relative_epsilon < 1e-6
    assert found.delta < 1e-6
    worse = deep_linear(rank_one(w + np.array([0, 0, 0.3]), widths, [3.0] * depth))
    found = gf.diagnostics.kkt(problem, worse)
    assert found.relative_epsilon + found.delta > 1e-2


def test_unbalanced_layers_are_a_kkt_point_of_the_multi_homogeneous_problem_only():
    x, y, w, _ = linear_solution()
    widths = [3, 4, 4, 1]
    problem = gf.Problem(gf.models.DeepLinear(widths, key=jax.random.key(1)), x, y)
    model = deep_linear(rank_one(w, widths, [10.0, 1.0, 0.1]))
    assert gf.diagnostics.kkt(problem, model).relative_epsilon > 0.3
    found = gf.diagnostics.kkt(problem, model, multi_homogeneous=True)
    assert found.relative_epsilon < 1e-6
    assert found.delta < 1e-6
    # At the shared norm the point is balanced, where both problems agree up to the
    # factor k_b / L = 1/3 in the gradient of the objective.
    plain = gf.diagnostics.kkt(problem, jnp.asarray(found.point))
    np.testing.assert_allclose(plain.multipliers, 3 * found.multipliers, atol=1e-6)


def test_multi_homogeneous_form_of_one_block_is_the_plain_form():
    x, y = separable()
    problem = gf.Problem(gf.models.Linear(3), x, y)
    theta = jnp.array([1.0, 0.1, -0.2])
    plain = gf.diagnostics.kkt(problem, theta)
    several = gf.diagnostics.kkt(problem, theta, multi_homogeneous=True)
    np.testing.assert_allclose(plain.multipliers, several.multipliers, rtol=1e-12)
    np.testing.assert_allclose(plain.epsilon, several.epsilon, rtol=1e-12)
    np.testing.assert_allclose(
        plain.explicit.multipliers, several.explicit.multipliers, rtol=1e-12
    )


class Bump(eqx.Module):
    """Degree 3 with arrays of degree 2 and 1; positive on all examples."""

    a: jax.Array
    b: jax.Array

    def __call__(self, x):
        return jnp.sum((self.a @ x) ** 2) * (2 * self.b[0] + self.b[1] * x[0])


def bump_problem(loss):
    x, y = separable()
    model = Bump(jax.random.normal(jax.random.key(0), (4, 3)), jnp.array([0.01, 1.0]))
    return gf.Problem(model, x, y, loss=loss), model


@pytest.mark.parametrize("loss", [gf.Exponential(), gf.Logistic()])
def test_explicit_multipliers_are_lyu_and_lis(loss):
    problem, model = bump_problem(loss)
    theta, degree = problem.theta, 3
    found = gf.diagnostics.kkt(problem, model)
    # Appendix C.3, word for word, without the log domain.
    q = np.asarray(problem.margins(theta))
    assert np.all(q > 0)
    rho = np.linalg.norm(theta)
    rows = np.asarray(jax.jacobian(problem.margins)(theta))
    if isinstance(loss, gf.Exponential):
        slopes = np.exp(-q)
    else:
        slopes = np.exp(-q) / (1 + np.exp(-q))
    h = slopes @ rows
    lam = q.min() ** (1 - 2 / degree) * rho * slopes / np.linalg.norm(h)
    np.testing.assert_allclose(found.explicit.multipliers, lam, rtol=1e-11)
    # h_n at the rescaled point is h_n / q_min^(1 - 1/L).
    at = theta / q.min() ** (1 / degree)
    hat = rows / q.min() ** (1 - 1 / degree)
    np.testing.assert_allclose(found.point, at, rtol=1e-12)
    epsilon = np.linalg.norm(at - lam @ hat)
    np.testing.assert_allclose(found.explicit.epsilon, epsilon, rtol=1e-11)
    cosine = np.vdot(theta, h) / rho / np.linalg.norm(h)
    closed = q.min() ** (-2 / degree) * rho**2 * 2 * (1 - cosine)
    np.testing.assert_allclose(found.explicit.epsilon**2, closed, rtol=1e-9)
    delta = np.max(lam * (np.asarray(problem.margins(at)) - 1))
    np.testing.assert_allclose(found.explicit.delta, delta, rtol=1e-9)
    # The best multipliers cannot be worse, and are feasible themselves.
    penalty = 1e-3 * np.linalg.norm(lam * found.slack) / found.norm
    assert found.epsilon**2 <= found.explicit.epsilon**2 + penalty**2
    assert np.all(found.multipliers >= 0)


def test_multi_homogeneous_point_and_objective_against_automatic_differentiation():
    problem, model = bump_problem(gf.Exponential())
    found = gf.diagnostics.kkt(problem, model, multi_homogeneous=True)
    v = jnp.asarray(found.point)
    a, b = np.split(found.point, [12])
    np.testing.assert_allclose(np.linalg.norm(a), np.linalg.norm(b), rtol=1e-12)
    np.testing.assert_allclose(float(jnp.min(problem.margins(v))), 1, rtol=1e-12)

    def objective(v):
        return (
            0.5
            * jnp.linalg.norm(v[:12]) ** (4 / 3)
            * jnp.linalg.norm(v[12:]) ** (2 / 3)
        )

    target = jax.grad(objective)(v)
    np.testing.assert_allclose(found.norm, np.linalg.norm(target), rtol=1e-12)
    pull = jnp.asarray(found.explicit.multipliers) @ jax.jacobian(problem.margins)(v)
    np.testing.assert_allclose(
        np.linalg.norm(target - pull), found.explicit.epsilon, rtol=1e-10
    )


def test_several_classes_against_a_quadratic_program():
    rng = np.random.default_rng(3)
    centres = 3 * np.eye(3)
    y = np.repeat(np.arange(3), 4)
    x = centres[y] + rng.normal(size=(12, 3)) * 0.7
    problem = gf.Problem(gf.models.Linear(3, 3, key=jax.random.key(0)), x, y)
    rows, pairs = [], []
    for i in range(12):
        for j in range(3):
            if j != y[i]:
                row = np.zeros((3, 3))
                row[y[i]] += x[i]
                row[j] -= x[i]
                rows.append(row.ravel())
                pairs.append((i, j))
    w, dual = quadratic_program(np.array(rows))
    found = gf.diagnostics.kkt(problem, jnp.asarray(w), threshold=0.0)
    assert found.epsilon < 1e-8
    assert found.delta < 1e-8
    assert found.multipliers.shape == (12, 3)
    assert np.all(found.multipliers[np.arange(12), y] == 0)
    # The multipliers need not be unique; their combination is.
    combined = sum(
        found.multipliers[pair] * row for pair, row in zip(pairs, rows, strict=True)
    )
    np.testing.assert_allclose(combined, dual @ np.array(rows), atol=1e-7)
    # Explicit multipliers: the loss's own gradient, in the same combination.
    grad = jax.grad(problem.log_risk)(jnp.asarray(w))
    explicit = sum(
        found.explicit.multipliers[pair] * row
        for pair, row in zip(pairs, rows, strict=True)
    )
    cosine = np.vdot(explicit, -grad) / np.linalg.norm(explicit) / np.linalg.norm(grad)
    np.testing.assert_allclose(cosine, 1, rtol=1e-12)


def test_only_candidates_get_rows_and_the_neglected_weight_is_reported():
    x, y, w, _ = linear_solution(n=12, d=4)
    problem = gf.Problem(gf.models.Linear(4), x, y, loss=gf.Exponential())
    theta = jnp.asarray(w * 5.0)
    found = gf.diagnostics.kkt(problem, theta, threshold=1e-3)
    weight = np.exp(-np.asarray(problem.margins(theta)))
    weight /= weight.sum()
    keep = weight > 1e-3 * weight.max()
    np.testing.assert_array_equal(found.candidates, keep)
    np.testing.assert_allclose(found.neglected_weight, weight[~keep].sum(), rtol=1e-9)
    assert np.all(found.multipliers[~keep] == 0)
    fewer = gf.diagnostics.kkt(problem, theta, threshold=0.0, max_rows=2)
    np.testing.assert_array_equal(
        np.flatnonzero(fewer.candidates), np.sort(np.argsort(weight)[-2:])
    )


def test_gradient_rows_in_batches_equal_the_jacobian(monkeypatch):
    from gradflow.diagnostics import common

    problem, _ = bump_problem(gf.Logistic())
    expected = np.asarray(jax.jacobian(problem.margins)(problem.theta))
    index = np.array([5, 0, 3, 7, 1])
    monkeypatch.setattr(common, "_ROW_ENTRIES", 2 * problem.k)
    rows = margin_gradients(problem, problem.theta, index, np.zeros(5, int))
    np.testing.assert_allclose(rows, expected[index], rtol=1e-12)


def test_nonnegative_combination_satisfies_its_optimality_conditions():
    rng = np.random.default_rng(0)
    for shape in [(4, 9), (9, 4)]:
        rows, target = rng.normal(size=shape), rng.normal(size=shape[1])
        penalty = rng.uniform(size=shape[0])
        found = nonnegative_combination(rows, target, penalty)
        gradient = rows @ (found @ rows - target) + penalty**2 * found
        assert np.all(found >= 0)
        assert np.all(gradient > -1e-10)
        assert abs(found @ gradient) < 1e-10


def test_points_without_a_feasible_multiple_are_refused():
    x, y = separable()
    problem = gf.Problem(gf.models.Linear(3), x, y)
    with pytest.raises(ValueError, match="classifies all examples"):
        gf.diagnostics.kkt(problem, jnp.array([-1.0, 0.0, 0.0]))
    with pytest.raises(ValueError, match="flat vector"):
        gf.diagnostics.kkt(problem, jnp.zeros(7))


class BatchCentred(eqx.Module):
    weight: jax.Array

    def __call__(self, x):
        z = self.weight @ x
        return z - jax.lax.pmean(z, "batch")


def test_models_that_couple_examples_are_refused():
    x, y = separable()
    problem = gf.Problem(BatchCentred(jnp.array([1.0, 0.0, 0.0])), x, y)
    with pytest.raises(ValueError, match="couples the examples"):
        gf.diagnostics.kkt(problem, problem.theta)
