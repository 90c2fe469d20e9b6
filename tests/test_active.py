"""Steps that leave out examples of no weight."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradflow as gf
from gradflow._active import Activity, fitting
from gradflow._arguments import checked_neglect


def _clouds(n=600):
    """Two clouds, one for each class, some 20 of whose points lie near the boundary."""
    rng = np.random.default_rng(0)
    y = np.where(np.arange(n) % 2 == 0, 1.0, -1.0)
    x = rng.normal(size=(n, 3)) + 1.5
    x[:, 0] = y * (0.3 + 2 * rng.random(n))
    return x, y


def _problem(dtype: type = np.float64):
    x, y = _clouds()
    model = gf.models.MLP(
        (3, 6, 1), gf.models.SmoothReLU(1e-1), key=jax.random.key(0), scale=2.0
    )
    model = jax.tree.map(lambda w: w.astype(dtype), model)
    return gf.Problem(model, x.astype(dtype), y.astype(dtype))


def _margins(snap):
    return {"margins": snap.margins, "rho": snap.rho}


def _share_left_out(margins, count):
    """Share of the risk of all examples but those with the `count` least margins."""
    log_losses = np.sort(-np.asarray(margins))[::-1]
    log_risk = np.logaddexp.reduce(log_losses)
    return np.exp(np.logaddexp.reduce(log_losses[count:]) - log_risk)


@pytest.mark.parametrize("solver", [gf.solvers.Rodas5P(), gf.solvers.DeflatedRKC2()])
def test_the_flow_is_the_same_to_rounding(solver):
    problem = _problem()
    options = {"to": 2e3, "saveat": 20, "solver": solver, "diagnostics": (_margins,)}
    every = gf.integrate(problem, **options)
    few = gf.integrate(problem, **options, neglect=2.2e-16)
    assert every.stats["passes"] == (
        every.stats["gradient_evaluations"] + 2 * every.stats["jacobian_products"]
    )
    assert few.stats["steps"] == every.stats["steps"]
    assert few.stats["passes"] < 0.8 * every.stats["passes"]
    for name in ("margins", "rho"):
        np.testing.assert_allclose(few[name], every[name], rtol=1e-8)
    # What was left out, from the margins of all examples.
    active = few["active_examples"]
    assert set(active) == {128, 600} and np.all(np.diff(active) <= 0)
    for margins, count in zip(few["margins"], active):
        assert _share_left_out(margins, count) <= 2.2e-16
    assert few.stats["neglected"] <= 2.2e-16
    assert few.certificate().passed


@pytest.mark.parametrize("blind", [False, True])
def test_examples_come_back_when_they_matter(blind, monkeypatch):
    """Far from the boundary at first, 500 examples support the solution in the end."""
    up = np.stack([np.linspace(0.02, 0.03, 20), np.linspace(1, 1.7, 20)], axis=1)
    down = np.stack([np.ones(500), -np.linspace(0.5, 0.501, 500)], axis=1)
    x = np.concatenate([up, down, -up[:1]])
    y = np.concatenate([np.ones(520), [-1.0]])
    model = gf.models.Linear(2)
    problem = gf.Problem(model, x, y)
    start = problem.model(jnp.array([100.0, 0.0]))
    problem = gf.Problem(start, x, y, loss=gf.Exponential())
    # The number of saved points tells the two compilations apart.
    options = {"to": 60.0, "saveat": 30 + blind, "diagnostics": (_margins,)}
    options["rtol"] = 3e-6
    if blind:
        # Without extrapolation to the end of the next step.
        after = Activity.after
        monkeypatch.setattr(
            Activity,
            "after",
            lambda *args, growth, **others: after(*args, growth=0 * growth, **others),
        )
    few = gf.integrate(problem, **options, neglect=1e-16)
    every = gf.integrate(problem, **options)
    assert few["active_examples"][0] == 64 or few["active_examples"][1] == 64
    assert few["active_examples"][-1] == 521
    # A step that misses them is rejected, so that the two runs' steps differ.
    assert every.stats["rejected_steps"] == 0
    assert (few.stats["rejected_steps"] > 0) == blind
    close = 1e-3 if blind else 1e-10
    np.testing.assert_allclose(few["margins"], every["margins"], rtol=close)
    assert few.stats["neglected"] <= 1e-16


def test_the_share_left_out_is_bounded_whatever_the_bound():
    problem = _problem()
    options = {"to": 300.0, "saveat": 20, "diagnostics": (_margins,)}
    every = gf.integrate(problem, **options)
    for neglect in (1e-3, 1e-8):
        few = gf.integrate(problem, **options, neglect=neglect)
        assert 0 < few.stats["neglected"] <= neglect
        gap = np.abs(few["margins"] - every["margins"]) / every["rho"][:, None] ** 2
        assert np.max(gap) <= 100 * few.stats["neglected"] + 1e-12
        row = "risk left out of the steps"
        assert few.certificate()[row].passed
        # Half of what may be lost to the tolerance.
        few.stats["neglected"] = 0.5 * few.config["rtol"]
        assert not few.certificate()[row].passed


def test_a_run_resumed_with_fewer_examples_is_bit_identical(tmp_path):
    options = {"to": 300.0, "saveat": 20, "diagnostics": (_margins,)}
    options["neglect"] = 2.2e-16
    unbroken = gf.integrate(_problem(), **options)
    changed = int(unbroken["steps"][unbroken["active_examples"] < 600][0])
    for stop in (changed - 2, changed + 2):
        folder = tmp_path / str(stop)
        gf.integrate(_problem(), **options, folder=folder, max_steps=stop)
        resumed = gf.integrate(_problem(), **options, folder=folder)
        for name in unbroken:
            np.testing.assert_array_equal(resumed[name], unbroken[name], err_msg=name)


def test_how_many_examples_a_step_takes():
    x, y = _clouds(1800)
    problem = gf.Problem(gf.models.Linear(3), x, y)
    assert fitting(problem, 1800, 1800) == 1800
    assert fitting(problem, 300, 1800) == 1800
    assert fitting(problem, 230, 1800) == 256
    assert fitting(problem, 50, 1800) == 64
    assert fitting(problem, 250, 256) == 256
    assert fitting(problem, 257, 256) == 1800
    assert fitting(problem, 70, 64) == 128
    assert fitting(problem, 20, 256) == 64
    batched = gf.Problem(gf.models.Linear(3), x, y, batch_size=100)
    assert fitting(batched, 50, 1800) == 100
    assert fitting(gf.Problem(gf.models.Linear(3), x[:200], y[:200]), 1, 200) == 200


def test_precision_and_batches():
    single, batched = _problem(np.float32), _problem()
    batched = gf.Problem(batched.model(batched.theta), *_clouds(), batch_size=70)
    for problem, eps in ((single, 1e-7), (batched, 2.2e-16)):
        # The explicit solver compiles in half the time.
        options = {"to": 60.0, "saveat": 5, "diagnostics": (_margins,), "rtol": 1e-3}
        options["solver"] = diffrax.Tsit5()
        few = gf.integrate(problem, **options, neglect=eps)
        assert few.result is gf.Result.reached
        assert few["active_examples"][-1] in (128, 140)
        for margins, count in zip(few["margins"], few["active_examples"]):
            assert _share_left_out(margins, count) <= eps


def test_coupled_models_and_bad_shares():
    x, y = _clouds()
    key = jax.random.key(0)
    layers = [gf.models.Dense(3, 4, key=key), gf.models.BatchNorm(4)]
    layers += [gf.models.Dense(4, 1, key=key)]
    coupled = gf.Problem(gf.models.Sequential(layers), x, y)
    solver = gf.solvers.DeflatedRKC2()
    with pytest.raises(ValueError, match="couples the examples"):
        checked_neglect(1e-16, coupled, 100.0, solver)
    assert checked_neglect(None, coupled, 1e12, solver) == 0
    assert checked_neglect(None, _problem(), 100.0, solver) == 0
    assert checked_neglect(None, _problem(), 1e12, solver) == np.finfo(float).eps
    assert checked_neglect(None, _problem(), 1e12, gf.solvers.DualRodas5P()) == 0
    for bad in (-1e-3, 1.0, float("nan")):
        with pytest.raises(ValueError, match="`neglect` must lie in"):
            gf.integrate(_problem(), to=10.0, neglect=bad)
