"""The main jobs on real data reach their figures; maximum margins are independent."""

import clarabel
import jax
import numpy as np
import pytest
import scipy.sparse as sp

import gradflow as gf


def _max_margin(x, y):
    """Margin and direction of min |w|^2 s.t. y <w, x> >= 1, by an interior point."""
    rows = -np.asarray(y)[:, None] * np.asarray(x)
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    settings.tol_gap_rel = settings.tol_gap_abs = settings.tol_feas = 1e-12
    n, d = rows.shape
    solution = clarabel.DefaultSolver(
        sp.eye(d, format="csc"),
        np.zeros(d),
        sp.csc_matrix(rows),
        -np.ones(n),
        [clarabel.NonnegativeConeT(n)],
        settings,
    ).solve()
    w = np.array(solution.x)
    return 1 / np.linalg.norm(w), w / np.linalg.norm(w)


def test_breast_cancer_reaches_the_maximum_margin():
    x, y = gf.datasets.breast_cancer()
    problem = gf.Problem(gf.models.Linear(x.shape[1]), x, y)
    traj = gf.integrate(problem, to=1e4, rtol=1e-6, saveat=20)
    margin, _ = _max_margin(x, y)
    assert margin == pytest.approx(0.00139251727, rel=1e-6)
    assert traj["min_normalized_margin"][-1] == pytest.approx(margin, rel=1e-3)
    assert traj.stats["steps"] <= 500
    assert traj.certificate().passed


def test_iris_reaches_the_maximum_margin_direction():
    x, y = gf.datasets.iris()
    problem = gf.Problem(gf.models.Linear(x.shape[1]), x, y)
    traj = gf.integrate(problem, to=1e5, rtol=1e-6, saveat=20)
    _, direction = _max_margin(x, y)
    found = np.asarray(traj.theta) / np.linalg.norm(traj.theta)
    np.testing.assert_allclose(found, direction, atol=1e-4)


@pytest.mark.slow
def test_digits_reach_1e_800_within_their_work():
    x, y = gf.datasets.digits(task="parity")
    model = gf.models.MLP(
        (65, 64, 32, 1), gf.models.SmoothReLU(1e-2), key=jax.random.key(0)
    )
    problem = gf.Problem(model, x, y)
    traj = gf.integrate(problem, to=1842.0, rtol=3e-5, saveat=20, neglect=2.2e-16)
    assert traj.stats["passes"] <= 5_000
    assert np.max(np.abs(traj["clock_drift"])) <= 1e-2
    assert np.max(np.abs(traj["clock_correction"])) <= 0.3
    assert traj.certificate().passed
