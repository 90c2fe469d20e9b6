"""How flows end before they get where they were asked to go."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradflow as gf

from .helpers import separable


def test_not_separable_ends_stationary_with_the_trajectory():
    x, y = separable(n=6)
    x = jnp.concatenate([x, x])
    y = jnp.concatenate([y, -y])  # Every point with both labels.
    problem = gf.Problem(gf.models.Linear(3, key=jax.random.key(0)), x, y)
    traj = gf.integrate(problem, to=100.0)
    assert traj.result is gf.Result.stationary
    # The minimum is theta = 0 with risk n ln 2.
    assert traj["log_risk"][-1] == pytest.approx(np.log(12 * np.log(2)), abs=1e-6)
    assert not traj.certificate().passed


@pytest.mark.parametrize("solver", [None, gf.solvers.DeflatedRKC2(), gf.solvers.RKC2()])
def test_a_minimum_that_log_risk_time_cannot_pass_is_stationary(solver):
    """In ln(n/L) the flow becomes infinitely fast there; its steps may underflow."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, 3))
    model = gf.models.MLP((3, 6, 1), gf.models.SmoothReLU(0.1), key=jax.random.key(0))
    problem = gf.Problem(model, x, np.sign(x[:, 0]), loss=gf.Squared())
    traj = gf.integrate(problem, to=40.0, solver=solver, throw=False)
    assert traj.result is gf.Result.stationary
    assert traj.s[-1] == pytest.approx(4.05043, abs=1e-4)


def test_an_example_that_lost_all_its_neurons_is_no_chattering():
    """Its margin stays zero, and the risk at its loss, however far the others get."""
    x = np.random.default_rng(0).normal(size=(4, 3))
    x[3] = x[2]
    model = gf.models.TwoLayer(
        3, 5, gf.models.PowerReLU(2), key=jax.random.key(3), train_outer=True
    )
    # At looser tolerances it ends up to 1e-5 before that, from one rounding to another,
    # as the neuron that the example is losing goes on and off.
    traj = gf.integrate(gf.Problem(model, x, [1.0, -1, 1, 1]), to=8.0, rtol=1e-5)
    assert traj.result is gf.Result.stationary
    assert traj.s[-1] == pytest.approx(np.log(4 / np.log(2)), abs=1e-6)


def test_steps_on_a_plateau_are_kept():
    """Regression: where s had not moved, the result had the initial parameters."""
    model = gf.models.DeepLinear((3, 2, 2, 1), key=jax.random.key(0), scale=1e-8)
    problem = gf.Problem(model, *separable(n=6))
    traj = gf.integrate(problem, to=20.0, saveat=5, max_steps=12)
    assert traj.result is gf.Result.step_limit and traj.s[-1] == traj.s[0]
    assert traj["steps"][-1] == traj.stats["steps"] > 5
    norm = np.linalg.norm(traj.theta)
    assert traj["rho"][-1] == pytest.approx(norm, rel=1e-12)
    assert norm > 1.1 * np.linalg.norm(problem.theta)


class Timid(diffrax.Heun):
    """Estimates errors so many times too large that no step comes anywhere."""

    factor: float = 1.0

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        y1, error, dense, state, result = super().step(
            terms, t0, t1, y0, args, solver_state, made_jump
        )
        error = jax.tree.map(lambda e: self.factor * e, error)
        return y1, error, dense, state, result


@pytest.mark.parametrize("factor", [1e12, 1e16, 1e30])
@pytest.mark.parametrize("scale", [0.0, 1e-6, 1.0])
def test_steps_that_come_to_nothing_while_the_risk_falls(factor, scale):
    """Regression: called `stationary`, and the data not separable."""
    model = gf.models.Linear(3, key=jax.random.key(0), scale=scale)
    problem = gf.Problem(model, *separable(n=6))
    traj = gf.integrate(problem, to=9.0, solver=Timid(factor=factor), throw=False)
    assert traj.result in (gf.Result.chattering, gf.Result.step_underflow)


def test_limits_end_a_flow_by_name():
    problem = gf.Problem(gf.models.Linear(3), *separable(n=6))
    traj = gf.integrate(problem, to=50.0, max_steps=10)
    assert traj.result is gf.Result.step_limit
    assert traj.stats["steps"] + traj.stats["rejected_steps"] == 10
    assert 0 < traj.s[-1] < 50.0
    assert str(traj.result).startswith("step_limit: ")
    none = gf.integrate(problem, to=50.0, max_steps=0)
    assert none.result is gf.Result.step_limit and len(none.s) == 1
    assert none.stats["steps"] + none.stats["rejected_steps"] == 0
    traj = gf.integrate(problem, to=50.0, max_seconds=0.0)
    assert traj.result is gf.Result.time_limit


def test_explicit_solver_is_caught_when_its_clock_is_lost():
    """Steps far beyond the stability limit end as an error, never as an s reached."""
    x, y = gf.datasets.iris()
    model = gf.models.MLP((x.shape[1], 8, 1), gf.models.ReLU(), key=jax.random.key(1))
    problem = gf.Problem(model, x, y)
    traj = gf.integrate(problem, to=30.0, rtol=1.0, solver=diffrax.Tsit5(), throw=False)
    corrected = np.max(np.abs(traj["clock_correction"]))
    assert corrected < 0.1 or not traj.certificate()["clock correction"].passed


@pytest.mark.parametrize("solver", [None, diffrax.Tsit5()], ids=["Rodas5P", "Tsit5"])
def test_plain_relu_that_chatters_is_named_with_the_remedy(solver):
    x, y = gf.datasets.iris("versicolor")
    model = gf.models.TwoLayer(
        5, 10, gf.models.ReLU(), key=jax.random.key(0), train_outer=True
    )
    with pytest.raises(gf.FlowError, match="chattering: .* smoothed") as caught:
        gf.integrate(gf.Problem(model, x, y), to=100.0, solver=solver)
    stats = caught.value.trajectory.stats
    assert stats["steps"] + stats["rejected_steps"] <= 1500
