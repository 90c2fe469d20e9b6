"""The certificate's row on the path length, on flows that converge and that do not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradflow as gf

from .helpers import changed, separable

X, Y = separable(n=6)
NAME = "path length to come"


@pytest.fixture(scope="module")
def linear():
    return gf.integrate(gf.Problem(gf.models.Linear(3), X, Y), to=1000.0, saveat=400)


def test_tail_of_a_linear_flow_is_the_distance_from_max_margin(linear):
    row = linear.certificate()[NAME]
    direction = np.asarray(linear.theta) / np.linalg.norm(linear.theta)
    distance = np.linalg.norm(direction - gf.oracles.max_margin(X, Y).direction)
    # A late path is straight to the order of its length, 1e-4.
    np.testing.assert_allclose(row.value, distance, rtol=1e-3)
    assert row.passed


def test_tail_of_a_network_is_what_comes():
    problem = gf.Problem(gf.models.DeepLinear((3, 2, 1), key=jax.random.key(0)), X, Y)
    flow = gf.integrate(problem, to=1e4, saveat=np.append(np.arange(3, 101), 1e3))
    points = int(np.searchsorted(flow.s, 100.5))
    cut = {name: value[:points] for name, value in flow.items()}
    early = changed(flow, cut).certificate()[NAME]
    came = flow["path_length"][-1] - flow["path_length"][points - 1]
    # What is still to come at s = 1e4 is a tenth of it, since it falls like s^(-1/2).
    assert early.passed
    assert abs(early.value * 0.9 - came) < early.tolerance
    assert early.tolerance < 0.2 * early.value


def test_mexican_hat_does_not_converge():
    problem = gf.Problem(
        gf.models.MexicanHat(0.125, r=0.2),
        jnp.ones((1, 1)),
        jnp.ones(1),
        loss=gf.Exponential(),
    )
    traj = gf.integrate(problem, to=1e4, rtol=1e-6)
    row = traj.certificate()[NAME]
    assert not row.passed and row.value == np.inf
    assert "FAIL  path length to come" in repr(traj.certificate())


def test_speeds_on_both_sides_of_the_border(linear):
    """Another speed of the direction, d zeta / d ln rho, in place of the flow's."""
    first = linear["rho"][linear["log_risk"] < np.log(np.log(2))][0]
    x = np.log(np.maximum(linear["rho"] / first, 1.1))

    def row(tangent, points=slice(None)):
        values = {
            "log_spherical_gradient": linear["log_radial_gradient"] + np.log(tangent)
        }
        cut = {k: v[points] for k, v in (dict(linear) | values).items()}
        return changed(linear, cut).certificate()

    for tangent in (np.ones_like(x), x**-0.5):
        assert not row(tangent)[NAME].passed
    assert row(x**-2)[NAME].passed
    falling = np.exp(-0.5 * x)
    np.testing.assert_allclose(row(falling)[NAME].value, falling[-1] / 0.5)
    # Before the norm has grown e^2 times neither can be told.
    early = x < 1.9
    assert NAME not in repr(row(np.ones_like(x), early))
    assert NAME not in repr(row(falling, early))


def test_a_direction_that_stands_still_has_no_path_left():
    x, y = jnp.array([[1.0], [-2.0]]), jnp.array([1.0, -1.0])
    traj = gf.integrate(gf.Problem(gf.models.Linear(1), x, y), to=100.0, saveat=10)
    row = traj.certificate()[NAME]
    assert row.passed and row.value == 0
