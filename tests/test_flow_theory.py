"""Flows reach what theory promises: deep linear chains, alignment, KKT points."""

import jax
import numpy as np

import gradflow as gf

from .helpers import separable
from .test_kkt import quadratic_program


def test_deep_linear_flow_reaches_the_maximum_margin_chain():
    depth = 3  # benchmarks/deep_linear.py has depths 2 to 4 on real data
    # In the plane two support vectors span the space, so the direction converges
    # like 1/s and not like s^(-1/depth).
    x, y = separable(n=12, d=2)
    w, dual = quadratic_program(np.asarray(y)[:, None] * np.asarray(x))
    assert np.sum(dual > 1e-6) == 2
    widths = (2, *[4] * (depth - 1), 1)
    model = gf.models.DeepLinear(widths, key=jax.random.key(0), scale=1e-4)
    problem = gf.Problem(model, x, y)
    traj = gf.integrate(problem, to=1e5, rtol=1e-6)
    chain = gf.diagnostics.chain(problem, traj.model, initial=model)
    direction = w / np.linalg.norm(w)
    assert np.linalg.norm(chain.product[0] - direction) < 1e-4
    assert np.linalg.norm(chain.vectors[0] - direction) < 1e-4
    assert np.max(chain.residuals) < 1e-3
    layers = gf.diagnostics.layers(problem, traj.model, initial=model)
    assert np.max(layers.rank_one_residual) < 1e-4
    assert np.max(layers.misalignment) < 1e-6
    np.testing.assert_allclose(layers.shares, depth**-0.5, rtol=1e-4)
    kkt = gf.diagnostics.kkt(problem, traj.model)
    assert kkt.relative_epsilon < 1e-4
    # Slack of order 1/s is all that is left at s = 1e5.
    assert kkt.delta < 1e-4


def test_squared_relu_flow_aligns_and_j_reaches_its_limit():
    x, y = gf.datasets.plane(60, seed=3)
    model = gf.models.TwoLayer(3, 40, key=jax.random.key(3), scale=1e-2)
    problem = gf.Problem(model, x, y)
    traj = gf.integrate(problem, to=1e4, rtol=1e-6)
    assert traj["misalignment"][-1] < 1e-6
    found = gf.diagnostics.potentials(problem, traj.model)
    limit = (2 * traj["min_normalized_margin"][-1]) ** 2
    np.testing.assert_allclose(found.j_potential, limit, rtol=1e-4)
    assert float(found.j_derivative) <= float(found.j_bound)
    # Corollary 4.5 and Proposition 4.3: two programs that do not come from the flow.
    assert gf.oracles.tangent_svm(problem, traj.model).relative_distance < 1e-3
    program = gf.oracles.neuron_program(problem, traj.model)
    np.testing.assert_allclose(program.margin, program.primal, rtol=1e-3)
    assert abs(program.gap) < 1e-3 * program.primal
    kkt = gf.diagnostics.kkt(problem, traj.model)
    assert kkt.relative_epsilon < 2e-3
    rates = gf.diagnostics.rates(traj)
    assert rates.norm.consistent
    assert abs(rates.risk.exponent + 1) < 0.01
