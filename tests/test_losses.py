"""Losses in the log domain against mpmath."""

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

import gradflow as gf

mp.mp.dps = 60
# From log risk +1000 (exponential loss) to -1e6.
MARGINS = [
    *(-1000.0, -100.0, -36.0, -5.0, -0.3, 0.0, 0.3, 1.0, 6.5, 7.5, 20.0, 36.75),
    *(88.0, 104.0, 354.0, 372.0, 708.0, 745.0, 1e4, 1e6),
]


def _exact(loss, p):
    """ln l, -l'/l and its derivative at p, in 60 digits."""
    p = mp.mpf(p)
    if isinstance(loss, gf.Exponential):
        return -p, mp.mpf(1), mp.mpf(0)
    e = mp.exp(-p)
    value = mp.log1p(e)
    slope = e / (1 + e) / value
    # (l'/l)' = l''/l - (l'/l)^2
    derivative = -(e / (1 + e) ** 2 / value - slope**2)
    return mp.log(value), slope, derivative


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
@pytest.mark.parametrize("loss", [gf.Exponential(), gf.Logistic()])
def test_log_loss_and_slopes_are_exact(loss, dtype):
    eps = float(jnp.finfo(dtype).eps)
    for p in MARGINS:
        p = float(dtype(p))
        value, slope, curvature = _exact(loss, p)
        x = dtype(p)
        # Relative, with an absolute floor where ln l passes through zero.
        assert abs(float(loss.log_loss(x)) - value) <= 4 * eps * (1 + abs(value))
        assert abs(float(loss.log_slope(x)) - slope) <= 8 * eps * slope
        assert abs(float(-jax.grad(loss.log_loss)(x)) - slope) <= 8 * eps * slope
        # The second derivative tends to zero: exact to rounding of the slope.
        assert abs(float(jax.grad(loss.log_slope)(x)) - curvature) <= 1e3 * eps


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
def test_inverse_is_exact(dtype):
    eps = float(jnp.finfo(dtype).eps)
    for log_risk in (
        -1e6,
        -800.0,
        -400.0,
        -100.0,
        -30.0,
        -6.9,
        -1.0,
        0.0,
        0.5,
        3.0,
        80.0,
    ):
        r = mp.exp(mp.mpf(float(dtype(log_risk))))
        exact = -mp.log(mp.expm1(r))
        found = float(gf.Logistic().inverse(dtype(log_risk)))
        # exp(log_risk) loses |log_risk| roundings when the log risk is positive.
        assert abs(found - exact) <= 4 * eps * (1 + abs(exact) * (1 + max(log_risk, 0)))
        assert float(gf.Exponential().inverse(dtype(log_risk))) == -float(
            dtype(log_risk)
        )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_slope_at_the_smoothed_margin_is_exact(dtype):
    eps = float(jnp.finfo(dtype).eps)
    for log_risk in (80.0, 3.0, 0.0, -1.0, -15.0, -17.0, -36.0, -80.0, -700.0, -1e6):
        r = mp.exp(mp.mpf(float(dtype(log_risk))))
        got = gf.Logistic().slope_at_risk(jnp.asarray(log_risk, dtype))
        assert got.dtype == dtype
        # exp(log_risk) is off by as much as its argument is large.
        tol = eps * (4 + 2 * max(log_risk, 0.0))
        assert abs(float(got) / float(-mp.expm1(-r) / r) - 1) <= tol
    by_definition = gf.AbstractLoss.slope_at_risk(gf.Logistic(), jnp.asarray(-0.3))
    got = gf.Logistic().slope_at_risk(jnp.asarray(-0.3))
    np.testing.assert_allclose(got, by_definition, rtol=1e-14)
    assert gf.Exponential().slope_at_risk(jnp.asarray(-0.3)) == 1


def test_inverse_of_an_overflowing_risk_is_minus_infinity():
    assert float(gf.Logistic().inverse(jnp.float64(1000.0))) == -np.inf


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
@pytest.mark.parametrize("shift", [0.0, 300.0, 1e5])
def test_cross_entropy_against_mpmath(dtype, shift):
    rng = np.random.default_rng(0)
    eps = float(jnp.finfo(dtype).eps)
    output = np.asarray(rng.normal(size=5) * 3, dtype)
    output[2] += dtype(shift)
    exact = [mp.mpf(float(v)) for v in output]
    value = mp.log(mp.log1p(sum(mp.exp(v - exact[2]) for v in exact[:2] + exact[3:])))
    loss, x = gf.CrossEntropy(), jnp.asarray(output)
    soft = loss.soft_margin(x, jnp.int32(2))
    assert abs(float(loss.log_loss(soft)) - value) <= 8 * eps * (1 + abs(value))
    hard = exact[2] - max(exact[:2] + exact[3:])
    assert float(loss.margin(x, jnp.int32(2))) == pytest.approx(
        float(hard), rel=4 * eps
    )
    assert hard - mp.log(4) <= float(soft) * (1 + 4 * eps) <= hard * (1 + 8 * eps)


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
@pytest.mark.parametrize("loss", [gf.Exponential(), gf.Logistic()])
@pytest.mark.parametrize("level", [-1000.0, 0.0, 100.0, 800.0, 1e6])
def test_risk_weights_and_direction_at_any_level(loss, dtype, level):
    """A linear model whose margins all lie near `level`: compare with mpmath."""
    if isinstance(loss, gf.Logistic) and level < 0:
        level = -80.0
    spread = np.array([0.0, 0.5, 1.0, 4.0])
    x = np.stack([level + spread, np.array([1.0, -1.0, 2.0, 0.5])], axis=1).astype(
        dtype
    )
    model = jax.tree.map(lambda w: w.astype(dtype), gf.models.Linear(2))
    problem = gf.Problem(model, x, np.array([1.0, 1.0, 1.0, -1.0]), loss=loss)
    theta = jnp.asarray([1.0, 0.0], dtype)
    x_exact = [[mp.mpf(float(v)) for v in row] for row in x]
    labels = [1, 1, 1, -1]
    p = [label * row[0] for label, row in zip(labels, x_exact)]
    values = [mp.exp(_exact(loss, v)[0]) for v in p]
    risk = sum(values)
    w = [_exact(loss, v)[1] * value / risk for v, value in zip(p, values)]
    direction = [
        sum(wi * label * row[j] for wi, label, row in zip(w, labels, x_exact))
        for j in range(2)
    ]
    log_risk, found = problem.log_risk_and_direction(theta)
    eps = float(jnp.finfo(dtype).eps)
    exact = mp.log(risk)
    assert abs(float(log_risk) - exact) <= 8 * eps * (1 + abs(exact))
    for f, e in zip(found, direction):
        assert abs(float(f) - e) <= 16 * eps * (abs(level) + 10)
    snap = gf.diagnostics.snapshot(problem, theta)
    weights = gf.diagnostics.weights(snap)
    # Weights below the smallest number are zero, and should be.
    tiny = float(jnp.finfo(dtype).tiny)
    np.testing.assert_allclose(
        weights, [float(v) for v in w], rtol=100 * eps, atol=tiny
    )


@pytest.mark.parametrize(
    "loss", [gf.Exponential(), gf.Logistic(), gf.ExponentialTail.power(3)]
)
def test_rules_of_the_total_against_plain_differentiation(loss):
    p = jnp.array([-3.0, -0.2, 0.4, 1.5, 1.6, 40.0])
    weights = jnp.array([0.0, -1.0, 0.0, 2.0, -jnp.inf, 0.0])

    def plain(p):
        return jax.scipy.special.logsumexp(loss.log_loss(p) + weights)

    def ours(p):
        return loss.log_total(p, weights)

    one, two = jax.grad, jax.hessian
    for derivative, same in (
        (ours, plain),
        (one(ours), one(plain)),
        (two(ours), two(plain)),
        (jax.jacfwd(two(ours)), jax.jacfwd(two(plain))),
        (jax.jacrev(two(ours)), jax.jacfwd(two(plain))),
    ):
        found, exact = jax.jit(derivative)(p), jax.jit(same)(p)
        scale = np.max(np.abs(exact))
        np.testing.assert_allclose(found, exact, rtol=1e-12, atol=1e-14 * scale)
    assert float(loss.log_total(p)) == pytest.approx(
        float(jax.scipy.special.logsumexp(loss.log_loss(p))), rel=1e-15
    )


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize(
    "loss", [gf.Exponential(), gf.Logistic(), gf.CrossEntropy(), gf.Squared()]
)
def test_scaled_losses_are_those_of_the_loss(loss, each):
    margins = np.concatenate([-np.logspace(-9, 3, 50), [0.0], np.logspace(-9, 5.5)])
    for p in margins:
        p = jnp.array([p, p + 0.3, p + 10])
        scale = loss.log_size(p) if each else jnp.max(loss.log_size(p))
        log, scaled = loss.log_loss(p), loss.scaled(p, scale)
        np.testing.assert_allclose(np.log(scaled) + scale, log, rtol=4e-15, atol=2e-14)
        assert 0.5 < np.max(scaled) < 2e3


def test_pulls_and_their_derivatives_are_exact():
    """Against mpmath, with margins near zero, where one exponential serves for the loss
    and its scale, and far on, where its digits are lost."""
    total = gf.Logistic().log_total
    for shift in (-800.0, -20.0, -0.3, 0.0, 3.0, 30.0, 60.0, 700.0, 800.0, 1e5):
        p = shift + np.array([0.0, 0.4, 7.0, 20.0])
        values = [mp.log1p(mp.exp(-mp.mpf(x))) for x in p]
        sizes = [1 / (1 + mp.exp(mp.mpf(x))) for x in p]
        risk = sum(values)
        exact = [-size / risk for size in sizes]
        found = jax.grad(total)(jnp.asarray(p))
        assert total(jnp.asarray(p)) == pytest.approx(float(mp.log(risk)), rel=1e-15)
        np.testing.assert_allclose(found, np.array(exact, float), rtol=1e-14)
        bends = [size * (1 - size) / risk for size in sizes]
        hessian = np.array(np.diag(bends) - np.outer(exact, exact), float)
        np.testing.assert_allclose(
            jax.hessian(total)(jnp.asarray(p)), hessian, rtol=1e-13, atol=1e-15
        )


def test_the_flow_follows_the_loss_whatever_its_slope_says():
    class Odd(gf.Exponential):
        def log_slope(self, p):
            return 2 * jnp.ones_like(p)

    p = jnp.array([0.3, 1.0, -2.0])
    found, exact = (jax.grad(loss().log_total)(p) for loss in (Odd, gf.Exponential))
    np.testing.assert_array_equal(found, exact)


@pytest.mark.parametrize("base", [gf.Logistic, gf.Exponential])
def test_a_loss_that_changes_half_of_another_is_refused(base):
    """Regression: the flow was that of the other loss, and nothing said so."""
    with pytest.raises(ValueError, match=r"changes `log_loss` but inherits \['log_sl"):
        type("Half", (base,), {"log_loss": lambda self, p: -2 * p})
