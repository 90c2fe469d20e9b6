"""Diagnostics along a flow, against the same at its end, and files that keep them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradflow as gf

from .helpers import separable

WITH_PARAMETERS = (gf.diagnostics.standard, gf.diagnostics.parameters)


@pytest.fixture(scope="module")
def flow():
    x, y = separable(n=6)
    model = gf.models.MLP((3, 4, 1), gf.models.SmoothReLU(0.1), key=jax.random.key(1))
    problem = gf.Problem(model, x, y)
    traj = gf.integrate(problem, to=20.0, saveat=5, diagnostics=WITH_PARAMETERS)
    return problem, traj


def same(a, b):
    return all(
        np.array_equal(p, q, equal_nan=True)
        for p, q in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@pytest.mark.parametrize(
    "function",
    [
        functools.partial(gf.diagnostics.spectrum, count=1),
        functools.partial(gf.diagnostics.robustness, steps=5),
    ],
)
def test_the_last_point_is_the_final_model(flow, function):
    problem, traj = flow
    first, last = gf.diagnostics.along(function, problem, traj, [0, -1])
    assert same(last, function(problem, traj.model))
    assert same(first, function(problem, jnp.asarray(traj["theta"][0])))
    assert not same(first, last)


def test_points_come_in_the_order_asked_for(flow):
    problem, traj = flow

    def log_risk(problem, model):
        return float(problem.log_risk(problem.theta_of(model)))

    # Compiled and uncompiled sums differ by rounding.
    everywhere = gf.diagnostics.along(log_risk, problem, traj)
    np.testing.assert_allclose(everywhere, traj["log_risk"], rtol=1e-12)
    some = gf.diagnostics.along(log_risk, problem, traj, np.array([3, 0, -1]))
    assert some == [everywhere[i] for i in (3, 0, 4)]
    assert gf.diagnostics.along(log_risk, problem, traj, []) == []


def test_progress_bar_says_where_it_is_and_interrupts_pass(flow, capsys):
    problem, traj = flow

    def stopped(problem, model):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gf.diagnostics.along(stopped, problem, traj, [-1], progress=True)
    assert "s = 20" in capsys.readouterr().err
    with pytest.raises(KeyboardInterrupt):
        gf.diagnostics.along(stopped, problem, traj)
    assert capsys.readouterr().err == ""


def test_errors_say_what_to_pass(flow):
    problem, traj = flow
    along = functools.partial(gf.diagnostics.along, lambda problem, model: None)
    bare = {"s": traj.s, "log_risk": traj["log_risk"]}
    with pytest.raises(ValueError, match="gf.diagnostics.parameters"):
        along(problem, bare)
    other = gf.Problem(gf.models.Linear(3), problem.x, problem.y)
    with pytest.raises(ValueError, match="that was integrated"):
        along(other, traj)
    with pytest.raises(ValueError, match="searchsorted"):
        along(problem, traj, np.array([10.0]))
    with pytest.raises(ValueError, match="5 saved points"):
        along(problem, traj, [5])


def test_files_keep_the_parameters_of_all_points(flow, tmp_path):
    problem, traj = flow
    assert traj.to_xarray()["theta"].dims == ("s", "parameter")
    traj.save(tmp_path / "flow.nc")
    back = gf.Trajectory.load(tmp_path / "flow.nc")
    np.testing.assert_array_equal(back["theta"], traj["theta"])
    np.testing.assert_array_equal(back.theta, traj.theta)


def test_a_resumed_run_keeps_them_too(flow, tmp_path):
    problem, traj = flow

    def run(max_steps):
        return gf.integrate(
            problem,
            to=20.0,
            saveat=5,
            diagnostics=WITH_PARAMETERS,
            folder=tmp_path,
            max_steps=max_steps,
        )

    assert run(int(traj["steps"][2])).result is gf.Result.step_limit
    resumed = run(None)
    np.testing.assert_array_equal(resumed["theta"], traj["theta"])
