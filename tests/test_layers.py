"""Layers, chains, neurons and support examples, on hand-made weights and flows."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import gradflow as gf
from gradflow.diagnostics.snapshot import snapshot

from .helpers import separable


def flow(problem, to, points=60, rtol=1e-10):
    """theta at evenly spaced log-risk times, by SciPy's Radau method in s-time."""

    @jax.jit
    def field(theta):
        _, direction = problem.log_risk_and_direction(theta)
        return direction / jnp.vdot(direction, direction)

    start = float(np.log(problem.n) - problem.log_risk(problem.theta))
    s = np.linspace(start, to, points)
    out = solve_ivp(
        lambda _, y: np.asarray(field(y)), (start, to), np.asarray(problem.theta),
        method="LSODA", t_eval=s, rtol=rtol, atol=1e-12,
    )  # fmt: skip
    assert out.success
    return s, jnp.asarray(out.y.T)


@pytest.fixture(scope="module")
def deep():
    x, y = separable()
    model = gf.models.DeepLinear((3, 4, 2, 1), key=jax.random.key(2), scale=0.8)
    problem = gf.Problem(model, x, y)
    return problem, *flow(problem, 12.0)


def test_layer_norms_shares_and_alignment_against_naive_formulas(deep):
    problem, _, thetas = deep
    theta = thetas[20]
    found = gf.diagnostics.layers(problem, problem.model(theta))
    grad = jax.grad(problem.log_risk)(theta)
    weights = [layer.weight for layer in problem.model(theta).layers]
    gradients = [layer.weight for layer in problem.model(-grad).layers]
    assert len(found.names) == 3
    for k, (w, g) in enumerate(zip(weights, gradients)):
        cosine = jnp.vdot(w, g) / jnp.linalg.norm(w) / jnp.linalg.norm(g)
        values = np.sqrt(np.linalg.eigvalsh(np.asarray(w.T @ w))[::-1].clip(0))
        np.testing.assert_allclose(found.norms[k], jnp.linalg.norm(w), rtol=1e-12)
        np.testing.assert_allclose(found.alignment[k], cosine, rtol=1e-10)
        np.testing.assert_allclose(found.misalignment[k], 1 - cosine, atol=1e-12)
        np.testing.assert_allclose(
            found.gradient_shares[k],
            jnp.linalg.norm(g) / jnp.linalg.norm(grad),
            rtol=1e-12,
        )
        singular = np.asarray(found.singular_values[k])
        np.testing.assert_allclose(singular, values[: len(singular)], atol=1e-7)
        np.testing.assert_allclose(
            found.rank_one_residual[k] ** 2,
            np.sum(singular[1:] ** 2) / np.sum(singular**2),
            atol=1e-14,
        )


def test_balance_is_conserved_along_a_deep_linear_flow(deep):
    problem, _, thetas = deep
    found = gf.diagnostics.layers(problem, thetas[-1], initial=thetas[0])
    assert np.ptp(found.balance) > 0.1  # not balanced from the start
    assert found.balance_drift < 1e-7
    chain = gf.diagnostics.chain(problem, thetas[-1], initial=thetas[0])
    assert chain.balance_drift < 1e-7
    # and is not conserved by anything else
    moved = thetas[-1] * jnp.linspace(0.9, 1.1, problem.k)
    found = gf.diagnostics.layers(problem, moved, initial=thetas[0])
    assert found.balance_drift > 1e-2
    assert gf.diagnostics.chain(problem, moved, initial=thetas[0]).balance_drift > 1e-2


class TwoDegrees(eqx.Module):
    """Degree 2 in `a`, degree 1 in `b`."""

    a: jax.Array
    b: jax.Array

    def __call__(self, x):
        return jnp.vdot(self.b, (self.a @ x) ** 2)


def test_balance_divides_by_the_degree_of_each_array():
    x, y = separable()
    model = TwoDegrees(
        jax.random.normal(jax.random.key(0), (4, 3)), jnp.array([1.0, -1, 1, -1])
    )
    problem = gf.Problem(model, x, y)
    assert problem.layer_degrees == (2, 1)
    _, thetas = flow(problem, 8.0, points=5)
    found = gf.diagnostics.layers(problem, thetas[-1], initial=thetas[0])
    assert found.balance_drift < 1e-7
    np.testing.assert_allclose(found.balance, found.norms**2 / [2, 1], rtol=1e-12)


def test_chain_of_a_rank_one_network_and_its_failures():
    rng = np.random.default_rng(0)
    unit = [v / np.linalg.norm(v) for v in (rng.normal(size=3), rng.normal(size=4))]
    second, first = np.outer([1.0], unit[1]), np.outer(unit[1], unit[0])
    x, y = separable()
    problem = gf.Problem(gf.models.DeepLinear((3, 4, 1), key=jax.random.key(0)), x, y)

    def model(*matrices):
        return eqx.tree_at(
            lambda m: [layer.weight for layer in m.layers],
            problem.model(problem.theta),
            [jnp.asarray(a) for a in matrices],
        )

    found = gf.diagnostics.chain(problem, model(5 * first, -3 * second))
    np.testing.assert_allclose(found.residuals, 0, atol=1e-14)
    np.testing.assert_allclose(found.product_residual, 0, atol=1e-14)
    np.testing.assert_allclose(found.vectors[0], -unit[0], atol=1e-14)
    np.testing.assert_allclose(found.vectors[2], [1.0])
    # Rank one, but the layers' vectors do not meet: each residual is then the distance
    # of two unit vectors (times the shared one), here at 90 degrees.
    normal = rng.normal(size=4)
    normal -= (normal @ unit[1]) * unit[1]
    normal /= np.linalg.norm(normal)
    mixed = np.outer((unit[1] + normal) / np.sqrt(2), unit[0])
    found = gf.diagnostics.chain(problem, model(mixed, second))
    distance = np.linalg.norm((unit[1] + normal) / np.sqrt(2) - unit[1])
    np.testing.assert_allclose(found.residuals, [float(distance), 0], atol=1e-12)
    # Rank two in the first layer.
    other = np.array([0.0, 0, 1]) - unit[0][2] * unit[0]
    two = first + 0.1 * np.outer(normal, other / np.linalg.norm(other))
    found = gf.diagnostics.layers(problem, model(two, second))
    np.testing.assert_allclose(found.rank_one_residual[0], 0.1 / np.sqrt(1.01))
    assert found.rank_one_residual[1] == 0


def test_chain_refuses_arrays_that_do_not_multiply():
    x, y = separable()
    problem = gf.Problem(TwoDegrees(jnp.ones((4, 3)), jnp.ones(4)), x, y)
    with pytest.raises(ValueError, match="deep linear"):
        gf.diagnostics.chain(problem, problem.theta)


def test_neurons_of_a_two_layer_network():
    x, y = separable()
    model = gf.models.TwoLayer(3, 5, key=jax.random.key(0))
    model = eqx.tree_at(
        lambda m: m.inner.weight, model, model.inner.weight.at[2].set(0.0)
    )
    problem = gf.Problem(model, x, y)
    found = gf.diagnostics.neurons(problem, model)
    w = np.asarray(model.inner.weight)
    np.testing.assert_allclose(found.norms, np.linalg.norm(w, axis=1))
    np.testing.assert_allclose(found.shares.sum(), 1)
    np.testing.assert_allclose(found.directions * found.norms[:, None], w, atol=1e-15)
    np.testing.assert_array_equal(found.directions[2], 0)
    g = -np.asarray(jax.grad(problem.log_risk)(problem.theta)).reshape(5, 3)
    np.testing.assert_allclose(
        found.alignment[0], w[0] @ g[0] / np.linalg.norm(w[0]) / np.linalg.norm(g[0])
    )
    with pytest.raises(ValueError, match="1 trained matrices"):
        gf.diagnostics.neurons(problem, model, layer=1)


@pytest.mark.parametrize("loss", [gf.Exponential(), gf.Logistic()])
def test_support_against_the_definitions(loss):
    x, y = separable()
    problem = gf.Problem(gf.models.Linear(3), x, y, loss=loss)
    theta = jnp.array([4.0, 0.3, -0.2])
    found = gf.diagnostics.support(problem, theta, threshold=0.05, levels=(0.5, 2.0))

    def alpha(p):
        if isinstance(loss, gf.Exponential):
            return -jnp.log(jnp.sum(jnp.exp(-p)))
        return -jnp.log(jnp.expm1(jnp.sum(jnp.log1p(jnp.exp(-p)))))

    p = problem.margins(theta)
    q = np.asarray(jax.grad(alpha)(p))
    np.testing.assert_allclose(found.dual, q, rtol=1e-10)
    np.testing.assert_allclose(found.total, q.sum(), rtol=1e-10)
    np.testing.assert_array_equal(
        np.sort(found.examples), np.flatnonzero(q > 0.05 * q.sum())
    )
    assert found.examples[0] == np.argmax(q)
    low = float(p.min())
    assert list(found.counts) == [
        int((p <= low + 0.5).sum()),
        int((p <= low + 2).sum()),
    ]
    rho = float(jnp.linalg.norm(theta))
    np.testing.assert_allclose(found.balance, (q @ np.asarray(p) - low) / rho)


def test_lemma_e3_balance_tends_to_zero_and_the_duals_to_the_simplex():
    x, y = separable()
    problem = gf.Problem(gf.models.Linear(3), x, y)
    points = [
        gf.diagnostics.support(problem, c * jnp.array([1.0, 0.1, 0])) for c in (10, 1e3)
    ]
    assert abs(points[1].total - 1) < 1e-12
    assert 0 <= points[1].balance < 1e-2 * points[0].balance


def test_integrated_multipliers_of_a_linear_flow_are_its_coefficients():
    loss = gf.Logistic()
    x, y = separable(n=6)
    problem = gf.Problem(gf.models.Linear(3), x, y, loss=loss)
    s, thetas = flow(problem, 20.0, points=400)
    margins = jax.vmap(problem.margins)(thetas)
    norms = jnp.linalg.norm(jax.vmap(problem.log_risk_and_direction)(thetas)[1], axis=1)
    found = gf.diagnostics.integrated_multipliers(s, margins, norms, loss)
    rebuilt = found @ (np.asarray(y)[:, None] * np.asarray(x))
    # The interpolant through 400 points is accurate to about 1e-5 here.
    np.testing.assert_allclose(
        rebuilt, np.asarray(thetas) - np.asarray(thetas[0]), atol=1e-4
    )
    with pytest.raises(ValueError, match="must increase"):
        gf.diagnostics.integrated_multipliers(s[::-1], margins, norms, loss)


def _in_the_loss(snap):
    return {"soft_margins": snap.soft_margins, "norm": jnp.linalg.norm(snap.direction)}


def test_integrated_multipliers_of_several_classes_give_the_curve_back():
    """theta(s) - theta(0) is the integral of the soft margins' gradients."""
    rng = np.random.default_rng(0)
    y = np.arange(9) % 3
    x = rng.normal(size=(9, 4)) + 4 * np.eye(4)[y]
    model = gf.models.MLP((4, 5, 3), gf.models.SmoothReLU(0.1), key=jax.random.key(1))
    problem = gf.Problem(model, x, y)
    traj = gf.integrate(
        problem,
        20.0,
        saveat=400,
        diagnostics=(gf.diagnostics.parameters, _in_the_loss),
    )
    found = gf.diagnostics.integrated_multipliers(
        traj.s, traj["soft_margins"], traj["norm"], problem.loss
    )
    standard = jax.eval_shape(
        lambda theta: gf.diagnostics.standard(snapshot(problem, theta)), traj.theta
    )
    assert standard["soft_margins"].shape == (9,)
    slopes = jax.jit(jax.vmap(jax.jacrev(problem.soft_margins)))(traj["theta"])
    middle = (slopes[1:] + slopes[:-1]) / 2
    rebuilt = np.einsum("si,sik->k", np.diff(found, axis=0), middle)
    moved = traj["theta"][-1] - traj["theta"][0]
    far = float(np.linalg.norm(moved))
    np.testing.assert_allclose(rebuilt, moved, atol=2e-3 * far)
