"""Trajectories: files, labels, resuming, interrupts, certificates."""

import os
import signal
import threading
import time

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradflow as gf

from .helpers import separable


def _problem(key=0):
    x, y = separable(n=6)
    return gf.Problem(gf.models.DeepLinear((3, 2, 1), key=jax.random.key(key)), x, y)


@pytest.fixture(scope="module")
def traj():
    return gf.integrate(_problem(), to=60.0, saveat=20)


def test_names_dimensions_and_units(traj):
    dataset = traj.to_xarray()
    assert dataset.sizes == {"s": 20, "example": 6, "layer": 2}
    assert dataset["normalized_margins"].dims == ("s", "example")
    assert dataset["layer_norm"].dims == ("s", "layer")
    assert all(dataset[name].attrs["long_name"] for name in traj if name != "s")
    with pytest.raises(KeyError, match="no quantity 'margin' in this trajectory"):
        traj["margin"]
    assert "reached" in repr(traj) and "alignment" in repr(traj)


def test_save_and_load_keep_everything(traj, tmp_path):
    path = tmp_path / "flow.nc"
    traj.save(path)
    back = gf.Trajectory.load(path)
    assert set(back) == set(traj)
    for name in traj:
        np.testing.assert_array_equal(back[name], traj[name])
    assert back.result is traj.result
    assert back.stats == traj.stats and back.config == traj.config
    x = separable(n=6)[0][0]
    assert back.model(x) == traj.model(x)
    assert repr(back.certificate()) == repr(traj.certificate())
    (tmp_path / "other.nc").write_bytes(b"not netCDF")
    with pytest.raises(ValueError, match="not a readable netCDF file"):
        gf.Trajectory.load(tmp_path / "other.nc")


def test_a_flow_that_was_given_up_goes_on_with_more_patience(tmp_path):
    problem = gf.Problem(gf.models.Linear(3), *separable(n=6))

    def run(patience, folder=tmp_path):
        # So tight that the first step is a small one.
        return gf.integrate(
            problem,
            to=60.0,
            saveat=5,
            rtol=1e-12,
            patience=patience,
            folder=folder,
            throw=False,
        )

    given_up, same = run(1), run(1)
    assert given_up.result is same.result is gf.Result.chattering
    assert given_up.stats["steps"] == same.stats["steps"]
    resumed, whole = run(None), run(None, folder=None)
    assert resumed.result is gf.Result.reached
    np.testing.assert_array_equal(resumed.theta, whole.theta)


def test_a_resumed_run_is_bit_identical(tmp_path):
    unbroken = gf.integrate(_problem(), to=60.0, saveat=20)
    for stop in (3, 8, 12):
        partial = gf.integrate(
            _problem(), to=60.0, saveat=20, folder=tmp_path, max_steps=stop
        )
        assert partial.result is gf.Result.step_limit
        assert partial.stats["steps"] + partial.stats["rejected_steps"] == stop
    same = gf.integrate(_problem(), to=60.0, saveat=20, folder=tmp_path, max_steps=stop)
    assert same.stats["steps"] == partial.stats["steps"]
    resumed = gf.integrate(_problem(), to=60.0, saveat=20, folder=tmp_path)
    assert resumed.result is gf.Result.reached
    for name in unbroken:
        np.testing.assert_array_equal(resumed[name], unbroken[name])
    np.testing.assert_array_equal(resumed.theta, unbroken.theta)
    for key in ("steps", "rejected_steps", "gradient_evaluations"):
        assert resumed.stats[key] == unbroken.stats[key]
    # Once more: the finished run is handed back.
    again = gf.integrate(_problem(), to=60.0, saveat=20, folder=tmp_path)
    np.testing.assert_array_equal(again["margins"], unbroken["margins"])
    with pytest.raises(ValueError, match=r"configuration: .*rtol \(0.0001 there"):
        gf.integrate(_problem(), to=60.0, saveat=20, rtol=1e-5, folder=tmp_path)
    with pytest.raises(ValueError, match="another configuration: .*data"):
        gf.integrate(_problem(key=1), to=60.0, saveat=20, folder=tmp_path)
    # Its carry has other leaves, which is no damage.
    with pytest.raises(ValueError, match=r"configuration: solver \(.* there"):
        solver = gf.solvers.RKC2()
        gf.integrate(_problem(), to=60.0, saveat=20, solver=solver, folder=tmp_path)
    whole = (tmp_path / "checkpoint.eqx").read_bytes()
    other = whole.replace(b'"gradflow": "', b'"gradflow": "9.', 1)
    for written, message in (
        (whole[:-40], "the checkpoint is damaged"),
        (whole[1:], "the checkpoint is damaged"),
        (other[:-40], r"of another version: gradflow 9\.\S+ there, \S+ here"),
    ):
        (tmp_path / "checkpoint.eqx").write_bytes(written)
        with pytest.raises(ValueError, match=message):
            gf.integrate(_problem(), to=60.0, saveat=20, folder=tmp_path)
    # Another version whose carry is the same is read.
    (tmp_path / "checkpoint.eqx").write_bytes(other)
    again = gf.integrate(_problem(), to=60.0, saveat=20, folder=tmp_path)
    assert again.result is gf.Result.reached
    (tmp_path / "checkpoint.eqx").unlink()
    with pytest.raises(ValueError, match="holds a trajectory but no checkpoint"):
        gf.integrate(_problem(), to=60.0, saveat=20, folder=tmp_path)


def test_ctrl_c_keeps_everything_up_to_there(tmp_path):
    problem = _problem()
    # A method of low order at a tight tolerance: millions of steps.
    options = {"to": 60.0, "rtol": 1e-14, "solver": diffrax.Heun(), "folder": tmp_path}
    gf.integrate(problem, **options, max_steps=1)
    before = (tmp_path / "checkpoint.eqx").stat().st_mtime_ns
    sent = []

    def press():
        while (tmp_path / "checkpoint.eqx").stat().st_mtime_ns == before:
            time.sleep(0.01)
        time.sleep(0.5)  # The first chunk is a step only.
        sent.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    traj = gf.integrate(problem, **options)
    took = time.perf_counter() - sent[0]
    thread.join()
    assert traj.result is gf.Result.interrupted
    assert took < 3.0
    assert traj.stats["steps"] > 1 and traj.s[-1] > traj.s[0]
    on_disk = gf.Trajectory.load(tmp_path)
    np.testing.assert_array_equal(on_disk.s, traj.s)
    more = gf.integrate(problem, **options, max_steps=traj.stats["steps"] + 50)
    assert more.s[-1] > traj.s[-1]


def test_standard_quantities_against_naive_formulas():
    problem = _problem()
    traj = gf.integrate(problem, to=9.0, saveat=6)
    theta = np.asarray(traj.theta)
    n, degree, rho = 6, 2, np.linalg.norm(theta)
    p = np.asarray(problem.margins(traj.theta))
    risk = np.log1p(np.exp(-p)).sum()

    def risk_of(theta):
        return jnp.sum(jax.nn.softplus(-problem.margins(theta)))

    gradient = np.asarray(jax.grad(risk_of)(traj.theta))
    alpha = -np.log(np.expm1(risk))
    grad_alpha = -gradient / np.exp(-alpha) * (1 + np.exp(-alpha))
    unit = theta / rho
    radial = gradient @ unit
    expected = {
        "s": np.log(n / risk),
        "log_risk": np.log(risk),
        "margins": p,
        "normalized_margins": p / rho**degree,
        "min_normalized_margin": p.min() / rho**degree,
        "smoothed_margin": alpha,
        "normalized_smoothed_margin": alpha / rho**degree,
        "beta": theta @ grad_alpha / degree,
        "rho": rho,
        "alignment": -gradient @ unit / np.linalg.norm(gradient),
        "misalignment": 1 + gradient @ unit / np.linalg.norm(gradient),
        "j_potential": grad_alpha @ grad_alpha / rho ** (2 * degree - 2),
        "log_radial_gradient": np.log(abs(radial)),
        "log_spherical_gradient": np.log(np.linalg.norm(gradient - radial * unit)),
        "radial_smoothed_margin_gradient": abs(grad_alpha @ unit),
        "spherical_smoothed_margin_gradient": np.linalg.norm(
            grad_alpha - (grad_alpha @ unit) * unit
        ),
        "training_error": np.mean(p <= 0),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(traj[name][-1], value, rtol=1e-8, err_msg=name)
    assert np.nanmax(traj["lemma_3_4_residual"]) < 1e-12
    assert np.max(traj["euler_residual"]) < 1e-13


def test_diagnostics_of_ones_own_and_none():
    traj = gf.integrate(
        _problem(), to=5.0, saveat=4, diagnostics=(lambda snap: {"mine": snap.theta},)
    )
    work = {"steps", "rejected_steps", "gradient_evaluations"}
    work |= {"jacobian_products", "factorizations", "passes"}
    others = {"s", "log_risk", "active_examples"}
    assert set(traj) == {"mine"} | others | work
    for name in work:
        assert np.all(np.diff(traj[name]) >= 0)
        assert traj[name][-1] == traj.stats[name]
    np.testing.assert_array_equal(traj["mine"][-1], traj.theta)
    assert traj.to_xarray()["mine"].dims == ("s", "mine_0")
    bare = gf.integrate(_problem(), to=5.0, saveat=4, diagnostics=())
    assert set(bare) == others | work


def test_figures_show_what_there_is(traj):
    figure = gf.plot.margins(traj)
    assert len(figure.axes[0].lines) == 7  # Six examples and the least margin.
    assert sum(ax.get_visible() for ax in gf.plot.dashboard(traj).axes) == 6
    bare = gf.integrate(_problem(), to=5.0, saveat=4, diagnostics=())
    with pytest.raises(ValueError, match="no normalised margins"):
        gf.plot.margins(bare)
    with pytest.raises(ValueError, match="nothing to show"):
        gf.plot.dashboard(bare)
