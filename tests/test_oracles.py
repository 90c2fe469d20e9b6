"""Maximum-margin oracles against an interior-point solver and closed forms."""

from typing import Any

import clarabel
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import sparse
from scipy.optimize import linprog
from sklearn.datasets import load_breast_cancer, load_iris

import gradflow as gf

from .helpers import separable


def standardised(x):
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    return np.hstack([x, np.ones((len(x), 1))])


def breast_cancer():
    x, y = load_breast_cancer(return_X_y=True)
    return standardised(np.asarray(x)), 2.0 * np.asarray(y) - 1


def iris():
    x, y = load_iris(return_X_y=True)
    return standardised(np.asarray(x)), np.where(np.asarray(y) == 0, 1.0, -1.0)


def interior_point(quadratic, linear, rows, bounds):
    """Minimises v Q v / 2 + c v subject to `rows @ v <= bounds`."""
    # The compiled module's names are invisible to the type checker.
    cl: Any = clarabel
    settings = cl.DefaultSettings()
    settings.verbose = False
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = 1e-12
    return cl.DefaultSolver(
        sparse.csc_matrix(quadratic),
        linear,
        sparse.csc_matrix(rows),
        bounds,
        [cl.NonnegativeConeT(len(bounds))],
        settings,
    ).solve()


def interior_point_max_margin(x, y):
    """`w` of least norm with `y * x @ w >= 1`."""
    n, d = x.shape
    solution = interior_point(np.eye(d), np.zeros(d), -y[:, None] * x, -np.ones(n))
    return np.array(solution.x)


@pytest.mark.parametrize(
    "data", [breast_cancer, iris, lambda: [np.asarray(a) for a in separable(40, 5)]]
)
def test_max_margin_agrees_with_an_interior_point_solver(data):
    x, y = data()
    w = interior_point_max_margin(x, y)
    found = gf.oracles.max_margin(x, y)
    assert np.isclose(found.margin, 1 / np.linalg.norm(w), rtol=1e-8)
    assert np.isclose(np.linalg.norm(found.direction), 1, rtol=1e-12)
    np.testing.assert_allclose(found.direction, w / np.linalg.norm(w), atol=1e-6)


def test_max_margin_of_breast_cancer_is_the_published_one():
    x, y = breast_cancer()
    found = gf.oracles.max_margin(x, y)
    assert np.isclose(found.margin, 0.00139251727, rtol=1e-8)
    margins = y * (x @ found.direction)
    # The optimality conditions, independent of any solver.
    assert np.isclose(margins.min(), found.margin, rtol=1e-12)
    np.testing.assert_allclose(margins[found.support], found.margin, rtol=1e-8)
    q = found.multipliers
    assert np.all(q >= 0) and np.isclose(q.sum(), 1, rtol=1e-12)
    stationary = q @ (y[:, None] * x) / found.margin
    np.testing.assert_allclose(stationary, found.direction, atol=1e-8)


def test_max_margin_of_two_points_is_in_closed_form():
    # y x = (2, 1), (2, -3): the segment's nearest point to the origin is (2, 0).
    x = np.array([[2.0, 1.0], [-2.0, 3.0], [30.0, 1.0]])
    found = gf.oracles.max_margin(x, np.array([1.0, -1.0, 1.0]))
    np.testing.assert_allclose(found.direction, [1, 0], atol=1e-12)
    assert np.isclose(found.margin, 2)
    assert found.support.tolist() == [0, 1]
    np.testing.assert_allclose(found.multipliers, [0.75, 0.25, 0], atol=1e-12)


def test_whole_numbers_of_one_sign_are_not_classes():
    x = np.array([[2.0, 1.0], [2.0, -3.0]])
    found = gf.oracles.max_margin(x, np.array([1, 1]))
    np.testing.assert_allclose(found.direction, [1, 0], atol=1e-12)
    assert np.isclose(found.margin, 2)


def three_classes():
    rng = np.random.default_rng(3)
    y = np.arange(15) % 3
    return np.eye(3)[y] @ rng.normal(size=(3, 4)) * 3 + rng.normal(size=(15, 4)), y


def test_max_margin_of_several_classes_agrees_with_an_interior_point_solver():
    x, y = three_classes()
    # One block of variables for each class, written out constraint by constraint.
    rows = np.zeros((30, 3, 4))
    for row, (i, j) in zip(
        rows, [(i, j) for i in range(15) for j in range(3) if j != y[i]]
    ):
        row[y[i]], row[j] = x[i], -x[i]
    flat = interior_point_max_margin(rows.reshape(30, 12), np.ones(30))
    found = gf.oracles.max_margin(x, y)
    assert np.isclose(found.margin, 1 / np.linalg.norm(flat), rtol=1e-8)
    w = flat.reshape(3, 4) / np.linalg.norm(flat)
    np.testing.assert_allclose(found.direction, w, atol=1e-6)
    gaps = np.take_along_axis(x @ w.T, y[:, None], 1) - x @ w.T
    gaps[np.arange(15), y] = np.inf
    touching = np.flatnonzero(gaps.min(axis=1) < found.margin * (1 + 1e-5))
    assert set(found.support) <= set(touching)
    assert np.isclose(found.multipliers.sum(), 1)
    assert np.all(found.multipliers[np.arange(15), y] == 0)


def test_flow_of_several_classes_goes_to_their_max_margin():
    x, y = three_classes()
    problem = gf.Problem(gf.models.Linear(4, classes=3), x, y)
    traj = gf.integrate(problem, 1e4, saveat=2, progress=False)
    best = gf.oracles.max_margin(x, y)
    share = traj["margins"][-1].min() / (traj["rho"][-1] * best.margin)
    assert 1 - 1e-3 < share <= 1 + 1e-9
    svm = gf.oracles.tangent_svm(problem, traj.model)
    assert np.isclose(svm.margin, best.margin, rtol=1e-8)
    np.testing.assert_allclose(svm.multipliers, best.multipliers, atol=1e-6)
    assert svm.support.tolist() == best.support.tolist()
    direction = traj.theta / np.linalg.norm(traj.theta)
    cosine = float(best.direction.ravel() @ direction)
    assert np.isclose(svm.cosine, cosine, rtol=1e-9)


def test_data_that_cannot_be_separated_is_an_error():
    with pytest.raises(ValueError, match="cannot be separated"):
        gf.oracles.max_margin(np.ones((3, 1)), np.array([0, 1, 2]))
    with pytest.raises(ValueError, match="must hold -1 and"):
        gf.oracles.max_margin(np.ones((3, 1)), np.array([1, 2, 2]))
    with pytest.raises(ValueError, match="one class only"):
        gf.oracles.max_margin(np.ones((3, 1)), np.array([0, 0, 0]))
    with pytest.raises(ValueError, match="cannot be separated"):
        gf.oracles.max_margin(np.array([[1.0], [2.0]]), np.array([1.0, -1.0]))
    with pytest.raises(ValueError, match="must hold -1 and"):
        gf.oracles.max_margin(np.array([[1.0], [2.0]]), np.array([1.0, 0.0]))
    with pytest.raises(ValueError, match="cannot be separated"):
        gf.oracles.diagonal_max_margin(np.array([[1.0], [2.0]]), np.array([1.0, -1.0]))


@pytest.mark.parametrize("depth", [2, 3])
def test_no_deep_linear_network_has_more_margin_than_the_bound(depth):
    x, y = separable(8, 3)
    widths = (3,) + (4,) * (depth - 1) + (1,)
    model = gf.models.DeepLinear(widths, key=jax.random.key(0))
    problem = gf.Problem(model, x, y)
    best = gf.oracles.max_margin(x, y)
    # The optimum in closed form: layers v_j v_{j-1}^T of one norm, v_0 the direction.
    rng = np.random.default_rng(0)
    v = [np.asarray(best.direction)] + [rng.normal(size=w) for w in widths[1:]]
    v = [a / np.linalg.norm(a) for a in v]
    v[-1] = np.ones(1)
    layers = [jnp.asarray(np.outer(b, a)).ravel() for a, b in zip(v, v[1:])]
    optimum = problem.model(jnp.concatenate(layers))
    found = gf.oracles.deep_linear(problem, optimum)
    assert np.isclose(found.cosine, 1, rtol=1e-12)
    assert np.isclose(found.normalized_margin, found.bound, rtol=1e-10)
    other = gf.oracles.deep_linear(problem, model)
    assert other.normalized_margin < other.bound
    with pytest.raises(ValueError, match="not linear"):
        relu = gf.models.MLP(widths, key=jax.random.key(0))
        gf.oracles.deep_linear(gf.Problem(relu, x, y), relu)
    flat = gf.oracles.deep_linear(problem, np.asarray(problem.theta))
    np.testing.assert_array_equal(flat.predictor, other.predictor)
    with pytest.raises(ValueError, match="predictor is zero"):
        gf.oracles.deep_linear(problem, 0 * problem.theta)


def test_diagonal_programs_in_closed_form():
    # One example: all weight on the largest coordinate, for every depth above one.
    x, y = np.array([[1.0, 2.0, -4.0]]), np.array([1.0])
    for depth in (2, 3, 4):
        found = gf.oracles.diagonal_max_margin(x, y, depth)
        assert found.exact
        np.testing.assert_allclose(found.predictor, [0, 0, -0.25], atol=1e-9)
        assert np.isclose(found.squared_norm, depth * 0.25 ** (2 / depth))
    one_layer = gf.oracles.diagonal_max_margin(x, y, 1)
    np.testing.assert_allclose(one_layer.predictor, x[0] / 21, atol=1e-12)


def test_l1_margin_agrees_with_an_interior_point_solver():
    x, y = (np.asarray(a) for a in separable(12, 4))
    found = gf.oracles.diagonal_max_margin(x, y, 2)
    z = y[:, None] * x
    # By an interior-point solver, over (beta, t) with |beta_j| <= t_j.
    d, n = 4, 12
    eye = np.eye(d)
    solution = interior_point(
        np.zeros((2 * d, 2 * d)),
        np.append(np.zeros(d), np.ones(d)),
        np.block([[eye, -eye], [-eye, -eye], [-z, np.zeros((n, d))]]),
        np.append(np.zeros(2 * d), -np.ones(n)),
    )
    assert np.isclose(found.power_sum, solution.obj_val, rtol=1e-7)


def test_vertices_beat_every_local_search_for_three_layers():
    x, y = (np.asarray(a) for a in separable(6, 3))
    found = gf.oracles.diagonal_max_margin(x, y, 3)
    assert found.exact and np.isclose(np.min(y * (x @ found.predictor)), 1)
    rng = np.random.default_rng(1)
    betas = rng.normal(size=(200_000, 3))
    margin = np.min(y * (betas @ x.T), axis=1)
    betas = betas[margin > 0] / margin[margin > 0, None]
    random_best = np.min(np.sum(np.abs(betas) ** (2 / 3), axis=1))
    assert found.power_sum <= random_best
    # The optimum is a vertex, which random points approach slowly.
    assert found.power_sum > 0.5 * random_best


def test_vertices_do_not_depend_on_the_unit_of_the_examples():
    """Regression: determinants of small features counted as zero."""
    x, y = np.random.default_rng(0).normal(size=(3, 4)), np.array([1.0, -1.0, 1.0])
    once = gf.oracles.diagonal_max_margin(x, y, 3)
    for c in (1e-7, 1e7):
        found = gf.oracles.diagonal_max_margin(c * x, y, 3)
        assert found.exact
        np.testing.assert_allclose(c * found.predictor, once.predictor, atol=1e-9)
        power = found.squared_norm * c ** (2 / 3)
        assert np.isclose(power, once.squared_norm, rtol=1e-9)


def test_tangent_kernel_is_the_gram_matrix_of_margin_gradients():
    x, y = separable(7, 3)
    model = gf.models.MLP((3, 4, 1), gf.models.SmoothReLU(0.1), key=jax.random.key(1))
    problem = gf.Problem(model, x, y)
    p = jax.jacrev(problem.margins)(problem.theta)
    expected = np.asarray(p @ p.T)
    for batch_size in (1, 3, 256):
        kernel = gf.tangent_kernel(problem, model, batch_size=batch_size)
        np.testing.assert_allclose(kernel, expected, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="batch_size"):
        gf.tangent_kernel(problem, model, batch_size=0)
    layers = [gf.models.Dense(3, 4, key=jax.random.key(0)), gf.models.BatchNorm(4)]
    last = gf.models.Dense(4, 1, key=jax.random.key(1))
    model = gf.models.Sequential([*layers, last])
    with pytest.raises(ValueError, match="couples the examples"):
        gf.tangent_kernel(gf.Problem(model, x, y, homogeneous=False), model)


def test_tangent_svm_of_a_linear_model_is_the_max_margin_classifier():
    x, y = separable(12, 4)
    best = gf.oracles.max_margin(x, y)
    weight = jnp.asarray(best.direction)[None]
    problem = gf.Problem(gf.models.Linear(4), x, y)
    found = gf.oracles.tangent_svm(problem, problem.model(weight.ravel()))
    assert np.isclose(found.margin, best.margin, rtol=1e-9)
    assert np.isclose(found.cosine, 1, rtol=1e-12)
    with pytest.raises(ValueError, match="all its parameters are zero"):
        gf.oracles.tangent_svm(problem, jnp.zeros(4))
    other = gf.oracles.tangent_svm(problem, problem.model(jnp.ones(4)))
    w = interior_point_max_margin(np.asarray(x), np.asarray(y))
    expected = float(np.sum(w) / np.linalg.norm(w) / 2)
    assert np.isclose(other.cosine, expected, rtol=1e-6)
    assert np.isclose(np.cos(other.angle), expected, rtol=1e-6)


def test_small_angles_to_the_tangent_svm_are_accurate():
    """Regression: from the cosine, none below 1e-8 could be told from zero."""
    x, y = separable(12, 4)
    problem = gf.Problem(gf.models.Linear(4), x, y)
    u = gf.oracles.max_margin(x, y).direction
    normal = np.linalg.svd(u[None])[2][1]
    found = gf.oracles.tangent_svm(problem, 7 * jnp.asarray(u + 1e-11 * normal))
    assert np.isclose(found.angle, 1e-11, rtol=1e-3)
    assert np.isclose(found.relative_distance, 1e-11, rtol=1e-3)
    assert found.cosine <= 1


def signs_of(model):
    assert isinstance(model.outer, gf.Fixed)
    return model.outer.value


def test_neuron_program_in_closed_form():
    # Neuron j sits on example j with the right sign: features are the identity, the
    # optimum shares the norm equally, and the margin is 1 / 4.
    x = jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    model = gf.models.TwoLayer(2, 4, key=jax.random.key(0))
    y = signs_of(model)
    problem = gf.Problem(model, x, y)
    optimum = problem.model(3.0 * x.ravel())
    found = gf.oracles.neuron_program(problem, optimum)
    np.testing.assert_allclose(found.features, np.eye(4), atol=1e-12)
    for value in (found.primal, found.dual, found.margin):
        assert np.isclose(value, 0.25, rtol=1e-9)
    assert abs(found.gap) < 1e-9
    np.testing.assert_allclose(found.weights, 0.25, atol=1e-9)
    # Unequal norms: the program is the same, the model's own margin is smaller.
    scales = jnp.array([1.0, 2.0, 3.0, 4.0])[:, None]
    worse = gf.oracles.neuron_program(problem, problem.model((x * scales).ravel()))
    assert np.isclose(worse.primal, 0.25, rtol=1e-9)
    assert np.isclose(worse.margin, 1 / 30, rtol=1e-9)


def test_neuron_program_of_two_trained_layers_and_vanished_neurons():
    x, y = separable(8, 3)
    model = gf.models.MLP((3, 5, 1), key=jax.random.key(2))
    problem = gf.Problem(model, x, y)
    found = gf.oracles.neuron_program(problem, model)
    # A naive transcription: neuron by neuron, with the model's own weights.
    inner, outer = (np.asarray(layer.weight) for layer in model.layers)
    active = np.maximum(np.asarray(x) @ inner.T, 0) * outer[0]
    squares = np.sum(inner**2, axis=1) + outer[0] ** 2
    np.testing.assert_allclose(
        found.features, np.asarray(y)[:, None] * active / squares, atol=1e-12
    )
    np.testing.assert_allclose(found.shares, squares / squares.sum(), rtol=1e-12)
    assert abs(found.gap) < 1e-9 and found.primal >= found.margin
    few = gf.oracles.neuron_program(problem, model, dead=0.25)
    assert np.all(few.features[:, few.shares < 0.25] == 0)


def test_infinite_width_margin_of_the_four_axes():
    # phi_i = y_i max(0, <x_i, theta>)^2 with alternating labels on the axes: a unit
    # vector serves at most cos^2 and sin^2, so a mass of 1 gives 1/4 to each example.
    x = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    found = gf.oracles.infinite_width_margin(x, np.array([1.0, -1.0, 1.0, -1.0]))
    assert np.isclose(found.margin, 0.25, rtol=1e-8)
    assert np.isclose(found.upper, 0.25, rtol=1e-8)
    assert np.isclose(np.abs(found.weights).sum(), 1, rtol=1e-8)


def test_programs_over_neurons_scale_with_the_examples():
    """Regression: the solver dropped features below 1e-9."""
    x, y = separable(6, 2)
    model = gf.models.TwoLayer(2, 6, key=jax.random.key(0))
    once, small = (
        gf.oracles.neuron_program(gf.Problem(model, c * x, y), model)
        for c in (1.0, 1e-6)
    )
    for of in ("primal", "dual"):
        value = getattr(small, of) * 1e12
        assert np.isclose(value, getattr(once, of), rtol=1e-9, atol=1e-12)
    wide = gf.oracles.infinite_width_margin(np.asarray(x), np.asarray(y))
    for c in (1e-6, 1e6):
        found = gf.oracles.infinite_width_margin(c * np.asarray(x), np.asarray(y))
        assert np.isclose(found.margin, c**2 * wide.margin, rtol=1e-8)
        assert np.isclose(found.upper, c**2 * wide.margin, rtol=1e-8)


def test_infinite_width_margin_names_bad_labels():
    x = np.eye(2)
    with pytest.raises(ValueError, match=r"`y` must hold -1 and \+1; got \[0.0, 1.0\]"):
        gf.oracles.infinite_width_margin(x, np.array([0, 1]))
    with pytest.raises(ValueError, match=r"`y` has shape \(3,\), expected \(2,\)"):
        gf.oracles.infinite_width_margin(x, np.array([1, 1, -1]))


def test_infinite_width_margin_in_space_brackets_its_value():
    x, y = (np.asarray(a) for a in separable(6, 3))
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    found = gf.oracles.infinite_width_margin(x, y)
    assert found.upper - found.margin < 1e-6
    features = y[:, None] * np.maximum(x @ found.directions.T, 0) ** 2
    assert np.isclose(np.min(features @ found.weights), found.margin, rtol=1e-7)


def test_covering_radius_in_closed_form():
    angles = 2 * np.pi * np.arange(12) / 12
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert np.isclose(gf.oracles.covering_radius(circle), 2 * np.sin(np.pi / 24))
    octahedron = np.vstack([np.eye(3), -np.eye(3)])
    expected = np.sqrt(2 - 2 / np.sqrt(3))  # the point (1, 1, 1) / sqrt(3)
    assert np.isclose(gf.oracles.covering_radius(octahedron), expected)
    assert gf.oracles.covering_radius(np.eye(3)) == 2
    assert gf.oracles.covering_radius(np.array([[1.0], [-1.0]])) == 0
    assert gf.oracles.covering_radius(np.array([[1.0], [1.0]])) == 2


def test_covering_radius_around_one_pole():
    """Regression: with the origin outside the hull no facet faces the deepest point."""
    w = np.random.default_rng(292).normal(size=(4, 3)) * 0.3 + [0, 0, 1.0]
    w /= np.linalg.norm(w, axis=1, keepdims=True)
    sides = np.linspace(0, np.pi, 400), np.linspace(0, 2 * np.pi, 800)
    polar, azimuth = (a.ravel() for a in np.meshgrid(*sides))
    sphere = np.stack(
        [
            np.sin(polar) * np.cos(azimuth),
            np.sin(polar) * np.sin(azimuth),
            np.cos(polar),
        ]
    )
    deepest = np.sqrt(np.max(2 - 2 * np.max(w @ sphere, axis=0)))
    assert np.isclose(gf.oracles.covering_radius(w), deepest, rtol=1e-4)


def test_covering_bound_of_a_fine_cover():
    # 200 neurons of each sign around the circle, moved by a hundredth of a radian.
    count = 200
    model = gf.models.TwoLayer(2, 2 * count, key=jax.random.key(0))
    signs = np.asarray(signs_of(model))
    weight = np.zeros((2 * count, 2))
    for sign in (-1, 1):
        own = np.flatnonzero(signs == sign)
        spread = 2 * np.pi * np.arange(len(own)) / len(own)
        weight[own] = np.stack([np.cos(spread), np.sin(spread)], axis=1)
    x = jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    problem = gf.Problem(model, x, jnp.array([1.0, -1.0, 1.0, -1.0]))
    start = problem.model(jnp.asarray(weight).ravel())
    c, s = np.cos(0.01), np.sin(0.01)
    turned = weight @ np.array([[c, s], [-s, c]])
    found = gf.oracles.covering_bound(
        problem, start, problem.model(jnp.asarray(turned).ravel())
    )
    fewest = min(np.sum(signs == 1), np.sum(signs == -1))
    hole = 2 * np.sin(np.pi / fewest / 2)
    assert np.isclose(found.epsilon, max(hole, 2 * np.sin(0.005)))
    assert np.isclose(found.stated_bound, 0.25 - 4 * found.epsilon, rtol=1e-7)
    assert found.holds == (found.margin >= found.bound)
    assert found.bound > found.stated_bound
    # phi has a slope of at most 1 in the angle, half of the paper's 2.
    assert found.cover_loss + found.movement_loss <= np.pi / fewest + 0.01


def _loss_of(atoms, x, first, last, signs):
    """The sums in the sharpened bound, term by term, for the cheapest neurons."""
    cover, movement = np.zeros(len(x)), np.zeros(len(x))
    for u, nu in atoms:
        best = None
        for j in range(len(first)):
            if signs[j] != np.sign(nu):
                continue
            terms = [
                tuple(max(0.0, float(a @ w)) ** 2 for w in (u, first[j], last[j]))
                for a in x
            ]
            parts = np.array([(abs(p - q), abs(q - r)) for p, q, r in terms])
            if best is None or parts.sum(1).max() < best.sum(1).max():
                best = parts
        assert best is not None
        cover += abs(nu) * best[:, 0]
        movement += abs(nu) * best[:, 1]
    worst = np.argmax(cover + movement)
    return cover[worst], movement[worst]


def test_covering_bound_of_a_planar_flow_is_not_vacuous():
    angles = np.random.default_rng(2).uniform(0, 2 * np.pi, 6)
    x = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    y = np.array([1.0, -1.0, 1.0, 1.0, -1.0, -1.0])
    start = gf.models.TwoLayer(2, 80, key=jax.random.key(2))
    problem = gf.Problem(start, x, y)
    limit = gf.integrate(problem, to=1000.0, saveat=2, diagnostics=()).model
    found = gf.oracles.covering_bound(problem, start, limit)
    assert found.stated_bound < 0 < found.bound <= found.margin and found.holds
    # The program of infinite width on 7200 directions of each sign, 9e-4 apart, each
    # of which is at most half of that off in angle, and phi has a slope of at most 1.
    grid = np.linspace(0, 2 * np.pi, 7200, endpoint=False)
    rows = np.maximum(x @ np.stack([np.cos(grid), np.sin(grid)]), 0) ** 2
    rows = y[:, None] * np.hstack([rows, -rows])
    value = -linprog(
        np.append(np.zeros(rows.shape[1]), -1.0),
        A_ub=np.hstack([-rows, np.ones((6, 1))]),
        b_ub=np.zeros(6),
        A_eq=np.append(np.ones(rows.shape[1]), 0.0)[None],
        b_eq=[1.0],
        bounds=[(0, None)] * rows.shape[1] + [(None, None)],
    ).fun
    wide = found.infinite_width
    assert value - 1e-9 <= wide.margin <= value + 4.4e-4
    first, last = (
        w / np.linalg.norm(w, axis=1, keepdims=True)
        for w in (np.asarray(m.inner.weight) for m in (start, limit))
    )
    atoms = list(zip(wide.directions, wide.weights))
    expected = _loss_of(atoms, x, first, last, np.asarray(signs_of(start)))
    np.testing.assert_allclose(
        (found.cover_loss, found.movement_loss), expected, rtol=1e-9
    )
    np.testing.assert_allclose(found.bound, wide.margin - sum(expected), rtol=1e-9)
    # Later on, neurons stand where they are needed and hardly move.
    late = gf.oracles.covering_bound(problem, limit, limit)
    assert late.movement_loss == 0
    assert found.bound < late.bound <= found.margin
