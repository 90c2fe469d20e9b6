"""Exponential-tailed and square losses against mpmath."""

from typing import Any

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

import gradflow as gf

from .helpers import separable

mp.mp.dps = 60
EPS = {np.float32: 2.0**-23, np.float64: 2.0**-52}
# From log risk +1000 to -1e6, where ln l is about -q^3.
MARGINS = [-10.0, -3.0, -0.5, 0.1, 0.7, 1.9, 2.1, 5.0, 10.0, 100.0]


def log_loss(loss, q):
    if loss == "exp":
        return -(q**3)
    if loss == "log":
        return mp.log(mp.log1p(mp.exp(-(q**3))))
    return 2 * mp.log(abs(1 - q))


LOSSES = {
    "exp": gf.ExponentialTail.power(3),
    "log": gf.ExponentialTail.logistic_power(3),
    "squared": gf.Squared(),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", LOSSES)
def test_values_and_slopes(name, dtype):
    loss, eps = LOSSES[name], EPS[dtype]
    q = jnp.asarray(MARGINS, dtype)
    exact = [mp.mpf(float(v)) for v in q]
    values = np.array([float(log_loss(name, v)) for v in exact])
    slopes = np.array(
        [
            float(-mp.diff(lambda t: log_loss(name, t), v, h=mp.mpf(10) ** -20))
            for v in exact
        ]
    )
    assert loss.log_loss(q).dtype == dtype
    error = np.abs(np.asarray(loss.log_loss(q), np.float64) - values)
    assert np.all(error <= 8 * eps * (1 + np.abs(values)))
    for got in (loss.log_slope(q), -jax.vmap(jax.grad(loss.log_loss))(q)):
        np.testing.assert_allclose(np.asarray(got, np.float64), slopes, rtol=32 * eps)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", LOSSES)
def test_inverse_from_log_risk_1000_to_minus_a_million(name, dtype):
    loss, eps = LOSSES[name], EPS[dtype]
    log_risks = {"exp": [1000.0, 3.0, -0.7, -1e3, -1e6], "squared": [1.0, -0.5, -20.0]}
    for log_risk in log_risks.get(name, [5.0, 0.5, -0.9, -1e3, -1e6]):
        r = mp.mpf(float(dtype(log_risk)))
        if name == "squared":
            exact = 1 - mp.exp(r / 2)
        else:
            cube = -r if name == "exp" else -mp.log(mp.expm1(mp.exp(r)))
            exact = mp.sign(cube) * mp.cbrt(abs(cube))
        got = float(loss.inverse(jnp.asarray(log_risk, dtype)))
        assert abs(got - float(exact)) <= 16 * eps * (1 + abs(float(exact)))


@pytest.mark.parametrize("name", LOSSES)
def test_second_derivatives_are_finite_and_right(name):
    loss = LOSSES[name]
    for q in (-1.3, 0.4, 3.0):
        exact = mp.diff(lambda t: log_loss(name, t), mp.mpf(q), 2)
        got = jax.grad(jax.grad(loss.log_loss))(jnp.array(q))
        np.testing.assert_allclose(got, float(exact), rtol=1e-12)


def test_squared_loss_of_an_example_fitted_exactly():
    loss = gf.Squared()
    one = jnp.ones(())
    assert bool(jnp.isfinite(loss.log_loss(one)))
    assert jax.grad(loss.log_loss)(one) == 0
    # A fitted example beside another neither moves the flow nor poisons it.
    model = gf.models.Linear(2, key=jax.random.key(0))
    x = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    problem = gf.Problem(model, x, jnp.array([1.0, -1.0]), loss=loss)
    theta = jnp.array([1.0, -0.5])
    value, direction = problem.log_risk_and_direction(theta)
    np.testing.assert_allclose(value, np.log(0.25))
    np.testing.assert_allclose(direction, [0.0, -4.0], atol=1e-300)


def test_square_loss_is_the_residual_sum():
    model = gf.models.MLP((3, 4, 1), key=jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (5, 3))
    y = jnp.array([1.0, -1.0, 1.0, 1.0, -1.0])
    problem = gf.Problem(model, x, y, loss=gf.Squared())
    outputs = problem.outputs(problem.theta)
    expected = jnp.log(jnp.sum((y - outputs) ** 2))
    np.testing.assert_allclose(problem.log_risk(problem.theta), expected, rtol=1e-13)


def test_flow_of_the_square_loss_against_its_closed_form():
    """Linear: the residuals r obey dr/dt = -2 X X^T r."""
    x, y = separable(4, 6)
    problem = gf.Problem(gf.models.Linear(6), x, y, loss=gf.Squared())
    traj = gf.integrate(problem, to=25.0, rtol=1e-8, saveat=20)
    signed = np.asarray(x * y[:, None])
    rates, basis = np.linalg.eigh(signed @ signed.T)
    times = np.exp(traj["log_t"])[:, None]
    residuals = (np.exp(-2 * rates * times) * (basis.T @ np.ones(4))) @ basis.T
    np.testing.assert_allclose(traj["margins"], 1 - residuals, atol=1e-7)
    certificate = traj.certificate(problem=problem)
    assert certificate.passed, str(certificate)
    assert {"Euler's identity", "gradient of ln L"} <= {
        r.name for r in certificate.rows
    }
    # The smoothed margin belongs to losses with an exponential tail.
    assert not {"smoothed_margin", "beta", "lemma_3_4_residual"} & set(traj)


@pytest.mark.parametrize("s", [10.0, 30.0, 50.0])
def test_clock_of_the_square_loss_moves_by_its_rounding(s):
    """By no more than what is claimed, and by no less than a hundredth of it."""
    x, y = separable(4, 6)
    problem = gf.Problem(gf.models.Linear(6), x, y, loss=gf.Squared())
    residuals = np.exp(-s / 2) * np.random.default_rng(0).uniform(0.5, 1.5, 4)
    residuals *= np.exp(-s / 2) / np.sqrt(np.mean(residuals**2))
    signs = np.random.default_rng(1).choice([-1, 1], (1000, 4))
    rounded = 1 - (residuals - np.finfo(float).eps * signs)
    exact = np.log(np.sum(residuals**2))
    moved = np.log(np.sum((1 - rounded) ** 2, axis=1)) - exact
    claimed = float(problem.clock_rounding(jnp.asarray(s)))
    assert 0.01 * claimed < np.max(np.abs(moved)) < 2 * np.sqrt(4) * claimed


def test_flow_of_the_square_loss_to_the_end_of_its_range():
    """Late points are saved as closely as residuals are known, and pass as such."""
    x, y = separable(4, 6)
    problem = gf.Problem(gf.models.Linear(6), x, y, loss=gf.Squared())
    traj = gf.integrate(problem, to=55.0, saveat=10)
    certificate = traj.certificate()
    assert certificate.passed, str(certificate)
    off = np.abs(traj.s - traj.config["saves"])
    assert 1e-9 < off[-1] < 1e-2 and np.max(off[traj.s < 30]) < 1e-6
    row = certificate["rounding of the margins"]
    exact = 2 * np.finfo(float).eps / np.sqrt(np.exp(traj["log_risk"][-1]))
    np.testing.assert_allclose(row.value, exact, rtol=0.05)


@pytest.mark.parametrize("name", ["exp", "log"])
def test_flows_of_exponential_tails_pass_their_certificate(name):
    x, y = separable(4, 6)
    smooth = gf.models.SmoothReLU(0.1)
    model = gf.models.MLP((6, 5, 1), smooth, key=jax.random.key(3))
    problem = gf.Problem(model, x, y, loss=LOSSES[name])
    traj = gf.integrate(problem, to=100.0, rtol=1e-6, saveat=20)
    certificate = traj.certificate(problem=problem)
    assert certificate.passed, str(certificate)
    # The loss is of p^3, which rho^2 times the normalised margin reaches earlier.
    np.testing.assert_allclose(
        traj["margins"].min(axis=1)[-1], 100 ** (1 / 3), rtol=0.1
    )


def test_same_loss_twice_is_one_object_for_the_compiler():
    assert gf.ExponentialTail.power(3) is gf.ExponentialTail.power(3)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: gf.ExponentialTail.power(2), "`k` must be odd"),
        (lambda: tail(f_prime=lambda q: q), "`f_prime` does not belong"),
        (lambda: tail(g=lambda x: 2 * x), "`g` does not belong"),
        (lambda: tail(g_prime=lambda x: 2 + 0 * x), "`g_prime` does not belong"),
        (lambda: tail(b_f=-1.0), "`b_f` must not be negative"),
    ],
)
def test_errors(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def tail(**changes):
    """The exponential loss written as a member of the family, with changes."""
    parts: dict[str, Any] = dict(f=lambda q: q, g=lambda x: x, b_f=0.0)
    parts |= dict(f_prime=jnp.ones_like, g_prime=jnp.ones_like)
    return gf.ExponentialTail(**(parts | changes))


def test_exponential_loss_as_a_member_of_the_family():
    q = jnp.array([-3.0, 0.0, 1e6])
    np.testing.assert_array_equal(tail().log_loss(q), gf.Exponential().log_loss(q))
    np.testing.assert_array_equal(tail().inverse(q), gf.Exponential().inverse(q))
