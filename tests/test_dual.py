"""Flows of linear models in the span of the examples' gradients."""

import jax
import numpy as np
import pytest

import gradflow as gf
from gradflow import _arguments

KEY = jax.random.key(0)


def points(n, d):
    rng = np.random.default_rng(0)
    return rng.standard_normal((n, d)), np.where(np.arange(n) % 2 == 0, 1.0, -1.0)


def test_the_same_steps_as_in_all_dimensions_for_fewer_products():
    x, y = points(9, 20)[0], np.arange(9) % 3
    problem = gf.Problem(gf.models.Linear(20, classes=3, key=KEY), x, y)
    dual, dense = (
        gf.integrate(problem, 300, solver=solver, saveat=20, progress=False)
        for solver in (gf.solvers.DualRodas5P(), gf.solvers.Rodas5P())
    )
    assert dual.stats["steps"] == dense.stats["steps"]
    tries = dual.stats["steps"] + dual.stats["rejected_steps"]
    # With the norm of what lies outside the span.
    assert dual.stats["jacobian_products"] == (27 + 1) * tries
    assert dense.stats["jacobian_products"] == 60 * tries
    np.testing.assert_allclose(dual["margins"], dense["margins"], rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(dual.theta, dense.theta, rtol=0, atol=1e-8)
    # What is normal to the examples has not moved.
    normal = np.linalg.svd(x)[2][9:]
    moved = (dual.theta - problem.theta).reshape(3, 20)
    np.testing.assert_allclose(moved @ normal.T, 0, atol=1e-10)


def test_tangent_network_reaches_the_maximum_margin_of_its_kernel():
    x, y = points(20, 10)
    network = gf.models.MLP((10, 30, 1), key=KEY)
    problem = gf.Problem(gf.models.Tangent(network, factor=1 / 2), x, y)
    assert problem.k == 330
    traj = gf.integrate(problem, 1e4, rtol=1e-6, progress=False)
    assert "DualRodas5P" in traj.config["solver"]
    certificate = traj.certificate(problem=problem)
    assert certificate.passed, str(certificate)
    features = jax.jacrev(problem.outputs)(problem.theta)
    best = gf.oracles.max_margin(features, y)
    share = traj["margins"][-1].min() / (traj["rho"][-1] * best.margin)
    # What the flow starts with, normal to the gradients, is of the order of ln(n) / s.
    assert 1 - 1e-2 < share <= 1 + 1e-9


def test_a_flow_that_leaves_the_span_says_so(monkeypatch):
    x, y = points(6, 3)
    model = gf.models.MLP((3, 20, 1), gf.models.SmoothReLU(0.1), key=KEY)
    problem = gf.Problem(model, x, y)
    with pytest.raises(ValueError, match="linear in their parameters"):
        gf.integrate(problem, 50, solver=gf.solvers.DualRodas5P(), progress=False)
    # As for a model that is linear where it was tested only.
    monkeypatch.setattr(_arguments, "is_linear", lambda problem: True)
    with pytest.raises(gf.FlowError, match="step"):
        gf.integrate(problem, 50, solver=gf.solvers.DualRodas5P(), progress=False)


@pytest.mark.parametrize(
    ("make", "d", "n", "expected"),
    [
        (gf.models.Linear, 200, 20, "DualRodas5P"),
        (gf.models.Linear, 200, 200, "Rodas5P"),
        (gf.models.Linear, 100, 20, "Rodas5P"),
        (gf.models.Linear, 501, 501, "DeflatedRKC2"),
        (gf.models.Linear, 501, 500, "DualRodas5P"),
        (lambda d, key: gf.models.Linearized(relu(d, key)), 200, 20, "DualRodas5P"),
        # Of degree 1, but not linear.
        (lambda d, key: relu(d, key), 200, 20, "DeflatedRKC2"),
    ],
)
def test_choice(make, d, n, expected):
    model = make(d, key=KEY)
    homogeneous = not isinstance(model, gf.models.Linearized)
    problem = gf.Problem(model, *points(n, d), homogeneous=homogeneous)
    assert type(gf.solvers.choose(problem)).__name__ == expected


def relu(d, key):
    return gf.models.TwoLayer(d, 3, gf.models.ReLU(), key=key)
