"""Every family of models flows on small data and passes its certificate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradflow as gf

M = gf.models
KEY = jax.random.key(3)
SMOOTH = M.SmoothReLU(0.1)


def flow(model, x, y, to=30.0, **options):
    problem = gf.Problem(model, x, y, **options)
    return problem, gf.integrate(problem, to=to, rtol=1e-5, saveat=10)


def vectors(n=8, d=6):
    x = jax.random.normal(jax.random.key(1), (n, d))
    return x, jnp.where(x[:, 0] > 0, 1.0, -1.0)


DENSE = {
    "patches": lambda: M.DisjointPatches(3, 2, 4, SMOOTH, key=KEY),
    "weight_norm": lambda: M.Sequential(
        (M.WeightNorm(M.Dense(6, 8, key=KEY)), SMOOTH, M.Dense(8, 1, key=KEY))
    ),
}


@pytest.mark.parametrize("name", DENSE)
def test_dense_families(name):
    _, traj = flow(DENSE[name](), *vectors())
    assert traj.certificate().passed, str(traj.certificate())


def test_convolutional_network():
    x = jax.random.uniform(KEY, (6, 8, 8, 1))
    k = jax.random.split(KEY, 2)
    model = M.Sequential(
        (
            M.Conv(1, 3, 3, padding="SAME", bias=True, key=k[0]),
            M.MaxPool(2, eps=0.1),
            SMOOTH,
            M.Flatten(),
            M.Dense(48, 3, key=k[1]),
        )
    )
    problem, traj = flow(model, x, jnp.arange(6) % 3)
    certificate = traj.certificate()
    assert certificate.passed, str(certificate)
    # The bias counts as a weight of the first layer, in norms, balance and margins.
    assert problem.layer_names == (
        "layers[0].weight + layers[0].bias",
        "layers[4].weight",
    )
    conv, dense = traj.model.layers[0], traj.model.layers[4]
    norms = [np.hypot(norm(conv.weight), norm(conv.bias)), norm(dense.weight)]
    assert norm(conv.bias) > 1e-2 * norms[0]
    np.testing.assert_allclose(traj["layer_norm"][-1], norms, rtol=1e-12)
    np.testing.assert_allclose(
        traj["layer_normalized_margins"][-1],
        traj["margins"][-1] / (norms[0] * norms[1]),
        rtol=1e-12,
    )
    names = [row.name for row in certificate.rows]
    assert "balance of layers" in names and "fall of the layerwise margin" in names
    # Without the bias the balance is lost by more than the certificate allows.
    weight = np.sum(conv.weight**2) - norms[1] ** 2
    start = np.subtract(*traj["layer_norm"][0] ** 2)
    assert (
        abs(weight - start)
        > 10 * certificate["balance of layers"].value * norms[1] ** 2
    )


def norm(array):
    return float(jnp.linalg.norm(jnp.ravel(array)))


def test_skip_connection_margin_falls_to_one_half():
    """Vardi et al., Theorem 6.1: monotonically, from above 0.9."""
    x, y = jnp.ones((1, 1)), jnp.ones(1)
    problem = gf.Problem(M.SkipScalar(), x, y, homogeneous=False)

    def unit_margin(snap):
        theta = snap.theta / jnp.linalg.norm(snap.theta)
        return {"unit_margin": snap.problem.margins(theta)[0]}

    traj = gf.integrate(
        problem, to=1e6, rtol=1e-6, saveat=20, diagnostics=[unit_margin]
    )
    margins = np.asarray(traj["unit_margin"])
    np.testing.assert_allclose(margins[0], 4 / 12 + 2 / np.sqrt(12))
    assert margins[0] > 0.9
    assert np.all(np.diff(margins) < 0)
    assert 0.5 < margins[-1] < 0.51
    # du = dv / v and v = w all along.
    model = traj.model
    np.testing.assert_allclose(model.v, model.w, rtol=1e-12)
    np.testing.assert_allclose(model.u, 2 + np.log(model.v / 2), rtol=1e-4)


def test_mexican_hat_circles_as_far_as_rounding_lets_it():
    problem = gf.Problem(
        M.MexicanHat(0.125, r=0.2), jnp.ones((1, 1)), jnp.ones(1), loss=gf.Exponential()
    )

    def path(snap):
        u, v, w = snap.theta / jnp.linalg.norm(snap.theta)
        phi = 1 / w**2
        return {"phi": phi, "psi": jnp.sin(jnp.arctan2(v, u) - phi)}

    # Deviations grow about like exp(phi^4): errors of 1e-12 spoil the path near 2.7.
    traj = gf.integrate(
        problem,
        to=1.02,
        clock=gf.LogNormTime(),
        rtol=1e-12,
        saveat=10,
        diagnostics=[path],
    )
    assert np.all(np.diff(traj["phi"]) > 0)
    assert 2.0 < traj["phi"][-1] < 3.0
    assert np.max(np.abs(traj["psi"])) < 1e-6


def test_low_precision_network_keeps_margins_to_its_rounding():
    x, y = vectors()
    base = M.MLP((6, 8, 1), SMOOTH, key=KEY)
    exact = gf.Problem(base, x, y)
    rounded = gf.Problem(M.InPrecision(base, jnp.float32), x, y, homogeneous=False)
    assert rounded.theta.dtype == jnp.float64
    for method in ("margins", "log_risk"):
        a, b = (getattr(p, method)(exact.theta) for p in (exact, rounded))
        assert b.dtype == jnp.float64
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        assert not np.array_equal(a, b)
