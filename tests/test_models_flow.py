"""Every family of models flows on small data and passes its certificate."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradflow as gf
from gradflow._arguments import warn_about_precision

M = gf.models
KEY = jax.random.key(3)
SMOOTH = M.SmoothReLU(0.1)


def flow(model, x, y, to=30.0, **options):
    problem = gf.Problem(model, x, y, **options)
    return problem, gf.integrate(problem, to=to, rtol=1e-5, saveat=10)


def vectors(n=8, d=6):
    x = jax.random.normal(jax.random.key(1), (n, d))
    return x, jnp.where(x[:, 0] > 0, 1.0, -1.0)


def cubic(theta, x):
    """Of degree 3: x in two quadratic features, times the last parameter."""
    return theta[4] * (theta[0] * x[0] * theta[1] + theta[2] * x[1] * theta[3])


# Every dense model that the papers name, and options; whether it is homogeneous.
DENSE = {
    "linear": (lambda: M.Linear(6), True),
    "deep_linear": (lambda: M.DeepLinear((6, 4, 4, 1), key=KEY), True),
    "mlp": (lambda: M.MLP((6, 5, 5, 1), SMOOTH, key=KEY), True),
    "squared_relu": (lambda: M.TwoLayer(6, 8, key=KEY), True),
    "mean_field": (
        lambda: M.TwoLayer(6, 8, SMOOTH, key=KEY, train_outer=True, mean_field=True),
        True,
    ),
    "tangent": (lambda: M.Tangent(M.TwoLayer(6, 8, key=KEY), 0.5), True),
    "linearized": (lambda: M.Linearized(M.TwoLayer(6, 8, key=KEY)), False),
    "diagonal": (lambda: M.Diagonal(6, 3, key=KEY), True),
    "sparse_shared": (
        lambda: M.SparseShared(
            [jnp.arange(24).reshape(4, 6) % 7, jnp.array([[1, 2, 0, 1]])],
            M.SmoothLeakyReLU(0.1, 0.2),  # See below for what ReLU does.
            key=KEY,
        ),
        True,
    ),
    "patches": (lambda: M.DisjointPatches(3, 2, 4, SMOOTH, key=KEY), True),
    "homogeneous": (lambda: M.Homogeneous(cubic, 3, jnp.ones(5)), True),
    "weight_norm": (
        lambda: M.Sequential(
            (M.WeightNorm(M.Dense(6, 8, key=KEY)), SMOOTH, M.Dense(8, 1, key=KEY))
        ),
        True,
    ),
}


@pytest.mark.parametrize("name", DENSE)
def test_dense_families(name):
    make, homogeneous = DENSE[name]
    _, traj = flow(make(), *vectors(), homogeneous=homogeneous)
    assert traj.certificate().passed, str(traj.certificate())
    assert ("euler_residual" in traj) == homogeneous


def test_an_example_that_loses_all_its_neurons_makes_the_flow_stationary():
    """Regression: `step_underflow`, when the square of the gradient underflowed.

    All preactivations of example 1 become negative, beyond the smoothed band too, so
    that its margin stays 0 and its loss ln 2, while the others' margins go on growing.
    """
    maps = [np.arange(24).reshape(4, 6) % 7, np.array([[1, 2, 0, 1]])]
    x, y = vectors()
    problem, traj = flow(M.SparseShared(maps, SMOOTH, key=KEY), x, y)
    assert traj.result is gf.Result.stationary
    np.testing.assert_allclose(traj.s[-1], np.log(8 / np.log(2)), rtol=1e-14)
    margins = traj["margins"][-1]
    assert margins[1] == 0 and np.delete(margins, 1).min() > 100
    # The gradient is about 1e-154, and its square underflows.
    assert np.all(np.abs(traj["alignment"]) <= 1)
    first, _ = traj.model.matrices()
    assert np.all(first @ x[1] < 0)
    # Where the smoothed band is wide enough the example is not lost.
    model = M.SparseShared(maps, M.SmoothReLU(0.5), key=KEY)
    _, traj = flow(model, x, y)
    assert traj.certificate().passed, str(traj.certificate())


# The papers' convolutional networks, narrow; the shape of an image; the number of
# layers of those that are homogeneous. Pools are smoothed too: exact ones have kinks of
# their own, for which ResNet-18 takes 4,919 steps instead of 735.
POOL, STEM = M.MaxPool(2, eps=0.1), M.MaxPool(3, 2, 1, eps=0.1)


def lyu_li(bias):
    return M.LyuLiCNN(SMOOTH, POOL, bias=bias, widths=(3, 4, 8), key=KEY)


def vgg(bias):
    widths, repeats = (2, 3, 4, 4, 4), (1, 1, 1, 1, 1)
    return M.VGG16(SMOOTH, POOL, bias=bias, widths=widths, repeats=repeats, key=KEY)


CONVOLUTIONAL = {
    "h_alexnet": (
        lambda: M.HAlexNet(SMOOTH, POOL, widths=(2, 3, 6, 5), key=KEY),
        (32, 32, 3),
        5,
    ),
    "lyu_li_none": (lambda: lyu_li("none"), (28, 28), 4),
    "lyu_li_first": (lambda: lyu_li("first"), (28, 28), 4),
    "lyu_li_all": (lambda: lyu_li("all"), (28, 28), None),
    "vgg_first": (lambda: vgg("first"), (32, 32, 3), 6),
    "vgg_all": (lambda: vgg("all"), (32, 32, 3), None),
    "resnet": (
        lambda: M.ResNet18(SMOOTH, STEM, widths=(2, 3), key=KEY),
        (32, 32, 3),
        None,
    ),
    "densenet": (
        lambda: M.DenseNet121(SMOOTH, STEM, blocks=(1, 1), growth=2, key=KEY),
        (32, 32, 3),
        None,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_convolutional_families(name):
    make, shape, layers = CONVOLUTIONAL[name]
    x, y = jax.random.normal(jax.random.key(1), (4, *shape)), jnp.arange(4) % 2
    problem = gf.Problem(make(), x, y, homogeneous=layers is not None)
    # The explicit solver compiles in half the time. Stability limits the steps of the
    # last two networks, whose certificates fail at the default tolerance.
    solver = diffrax.Bosh3()
    traj = gf.integrate(problem, to=10.0, rtol=1e-5, saveat=6, solver=solver)
    certificate = traj.certificate()
    assert certificate.passed, str(certificate)
    # From before separation to far past it: the least margin is nearly s.
    margins = traj["margins"].min(axis=1)
    assert margins[0] < 0 < 8 < margins[-1]
    names = {row.name for row in certificate.rows}
    assert {"clock drift", "growth of the norm"} <= names
    needs_homogeneity = {
        *("fall of the smoothed margin", "fall of the layerwise margin"),
        *("Euler's identity", "balance of layers", "growth of the margin"),
    }
    if layers is not None:
        assert problem.layer_degrees == (1,) * layers
        assert needs_homogeneity <= names
    else:
        assert not needs_homogeneity & names
        assert not {"normalized_margins", "beta", "euler_residual"} & set(traj)
        check_general_margins(traj, x, y)


def check_general_margins(traj, x, y):
    """Over their median (Ji and Telgarsky, Appendix A), and at unit norm (Vardi)."""
    for margins, by_median in zip(traj["margins"], traj["median_normalized_margins"]):
        positive = [p for p in margins if p >= 0]
        if positive:
            np.testing.assert_allclose(by_median * np.median(positive), margins)
    rho = traj["rho"][-1]
    unit = jax.tree.map(lambda a: a / rho if eqx.is_array(a) else a, traj.model)
    outputs = np.asarray(jax.jit(jax.vmap(unit, axis_name="batch"))(x))
    expected = [o[k] - np.delete(o, k).max() for o, k in zip(outputs, y)]
    # Margins at unit norm are small differences of outputs.
    atol = 1e-12 * np.abs(outputs).max()
    np.testing.assert_allclose(traj["unit_norm_margins"][-1], expected, atol=atol)


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
    np.testing.assert_allclose(
        traj["layer_normalized_smoothed_margin"][-1],
        traj["smoothed_margin"][-1] / (norms[0] * norms[1]),
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


def test_margins_over_layers_of_other_degrees():
    """Lyu and Li, Equation (4): norms to the degrees, here 2 and 1."""
    x, y = vectors()
    model = M.TwoLayer(6, 8, M.PowerReLU(2), key=KEY, train_outer=True)
    problem = gf.Problem(model, x, y)
    assert problem.layer_degrees == (2, 1)

    @eqx.filter_jit
    def standard(problem):
        return gf.diagnostics.standard(gf.diagnostics.snapshot(problem, problem.theta))

    found = standard(problem)
    outer = np.asarray(model.outer)
    scale = np.sum(np.asarray(model.inner.weight) ** 2) * np.linalg.norm(outer)
    margins = problem.margins(problem.theta)
    np.testing.assert_allclose(found["layer_normalized_margins"], margins / scale)
    alpha = problem.loss.inverse(problem.log_risk(problem.theta))
    np.testing.assert_allclose(found["layer_normalized_smoothed_margin"], alpha / scale)


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
    certificate = traj.certificate()
    assert certificate.passed, str(certificate)
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


def test_mexican_hat_circles_for_ever_in_its_valley():
    """The direction never settles: a full turn, aligned, of infinite path length."""
    degree = 1e-7  # ln rho goes like degree e^phi phi^5.
    problem = gf.Problem(
        M.MexicanHat(degree, r=0.2),
        jnp.ones((1, 1)),
        jnp.ones(1),
        loss=gf.Exponential(),
    )

    def path(snap):
        u, v, w = snap.theta / jnp.linalg.norm(snap.theta)
        return {"angle": jnp.arctan2(v, u), "inverse": 1 / w**2}

    # The margin is rho^degree times almost one: first the hat decays, then rho grows.
    end = 1 + 300 * degree
    saves = np.append(1 - np.geomspace(0.35, 1e-8, 150), np.linspace(1, end, 150))
    traj = gf.integrate(
        problem,
        to=end,
        clock=gf.LogNormTime(),
        rtol=1e-6,
        saveat=saves,
        diagnostics=[gf.diagnostics.standard, path],
    )
    angle = np.unwrap(traj["angle"])
    turns = (angle - angle[0]) / (2 * np.pi)
    assert np.diff(angle).max() < np.pi / 2  # Saved densely enough to count turns.
    assert turns[-1] > 1.2 and np.all(np.diff(turns[150:]) > 0)
    np.testing.assert_allclose((angle - traj["inverse"])[150:], -1.5 * np.pi, atol=1e-2)
    # The valley is stiff: from point to point rounding moves it by up to 1e-5.
    misalignment = traj["misalignment"][150::15]
    assert np.all(np.diff(misalignment) < 0) and misalignment[-1] < 1e-5
    certificate = traj.certificate()
    failed = [row.name for row in certificate.rows if not row.passed]
    assert failed == ["path length to come"], str(certificate)


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


def test_flow_of_a_bfloat16_network():
    """Rounding of 2^-8: fit for the fitting phase only, and the certificate says so."""
    x, y = vectors()
    base = M.MLP((6, 8, 1), SMOOTH, key=KEY)
    problem = gf.Problem(M.InPrecision(base, jnp.bfloat16), x, y)
    with pytest.warns(UserWarning, match="InPrecision"):
        traj = gf.integrate(problem, to=5.0, rtol=1e-2, saveat=10, throw=False)
    exact = gf.integrate(gf.Problem(base, x, y), to=5.0, rtol=1e-4, saveat=10)
    assert traj.theta.dtype == jnp.float64
    assert traj.result is gf.Result.reached
    # A few of the 28 products and sums of each margin are off by 2^-8.
    got, want = (t["normalized_margins"][-1] for t in (traj, exact))
    assert 1e-3 < np.abs(got / want - 1).max() < 0.1
    assert np.abs(traj["clock_correction"]).max() < 0.1
    assert not traj.certificate()["rounding of the margins"].passed


@pytest.mark.parametrize(
    ("dtype", "lower", "trusted"),
    [
        ("float32", None, 8389),
        ("float64", "float32", 8389),
        ("float64", "bfloat16", 0.128),
        ("float64", None, 4.5e12),
    ],
)
def test_warning_where_rounding_spoils_the_weights(dtype, lower, trusted):
    """A thousandth of accuracy in margins near s needs a rounding of 1e-3 / s."""
    model = M.Linear(6)
    model = eqx.tree_at(lambda m: m.weight, model, model.weight.astype(dtype))
    model = model if lower is None else M.InPrecision(model, jnp.dtype(lower))
    x, y = vectors()
    problem = gf.Problem(model, x.astype(dtype), y, homogeneous=False)
    warn_about_precision(problem, 0.9 * trusted)  # Silent: warnings are errors here.
    said = "InPrecision" if lower else f"In {dtype}"
    with pytest.warns(UserWarning, match=said):
        warn_about_precision(problem, 1.1 * trusted)


@pytest.mark.parametrize(("dtype", "trusted"), [("float32", 18.76), ("float64", 58.96)])
def test_warning_where_rounding_spoils_small_residuals(dtype, trusted):
    """At 1e-3 = 2 eps / sqrt(L), that is s = ln n + 2 ln(1e-3 / (2 eps))."""
    model = M.Linear(6)
    model = eqx.tree_at(lambda m: m.weight, model, model.weight.astype(dtype))
    x, y = vectors()
    problem = gf.Problem(model, x.astype(dtype), y, loss=gf.Squared())
    end = np.log(problem.n) + 2 * np.log(1e-3 / (2 * np.finfo(dtype).eps))
    np.testing.assert_allclose(end, trusted, rtol=1e-3)
    warn_about_precision(problem, end - 0.1)
    with pytest.warns(UserWarning, match=f"beyond log-risk time {end - 0.02:.1f}"):
        warn_about_precision(problem, end + 5)


def test_flow_of_a_float32_network_with_float64_margins_and_state():
    x, y = gf.datasets.iris()
    base = M.MLP((5, 8, 8, 1), M.SmoothReLU(1e-2), key=jax.random.key(0))
    exact, mixed = (
        gf.integrate(gf.Problem(model, x, y), to=1000.0, rtol=1e-4, saveat=10)
        for model in (base, M.InPrecision(base, jnp.float32))
    )
    assert mixed.theta.dtype == jnp.float64
    certificate = mixed.certificate()
    assert certificate.passed, str(certificate)
    # It speaks of float32: at s = 1000 margins are rounded to 1.2e-4, and the end of
    # the flow is found to a few of that.
    rounding = float(np.finfo(np.float32).eps)
    np.testing.assert_allclose(mixed.s[-1], 1000.0, rtol=64 * rounding)
    np.testing.assert_allclose(
        certificate["rounding of the margins"].value, mixed.s[-1] * rounding, rtol=1e-12
    )
    got, want = (t["normalized_margins"][-1] for t in (mixed, exact))
    assert not np.array_equal(got, want)
    # s fixes the least margin up to rounding; the others may differ by the tolerance.
    np.testing.assert_allclose(got.min(), want.min(), rtol=1e-5)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-3 * want.min())
