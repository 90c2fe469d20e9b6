"""A certificate passes on a good flow and catches planted faults, each by name."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradflow as gf

from .helpers import changed, failures, separable

X, Y = separable(n=6)


def _model(key=0):
    return gf.models.DeepLinear((3, 2, 1), key=jax.random.key(key))


PROBLEM = gf.Problem(_model(), X, Y)
LINEAR = gf.Problem(gf.models.Linear(3), X, Y)


@pytest.fixture(scope="module")
def traj():
    return gf.integrate(PROBLEM, to=100.0, saveat=30)


@pytest.fixture(scope="module")
def linear():
    return gf.integrate(LINEAR, to=1000.0, saveat=40)


def test_a_good_flow_passes(traj):
    assert traj.certificate(strict=True).passed
    assert failures(traj) == set()
    assert "passed" in repr(traj.certificate())


def test_clock_off_by_a_tenth(traj):
    off = changed(traj, {"clock_drift": traj["clock_drift"] + 0.1})
    assert failures(off) == {"clock drift", "clock at the start"}
    with pytest.raises(RuntimeError, match="FAIL  clock drift"):
        off.certificate(strict=True)


def test_clock_off_by_a_tenth_far_out():
    """The drift that is allowed grows with s; what s is by definition does not."""
    long = gf.integrate(LINEAR, to=1e5, saveat=40)
    assert failures(long) == set()
    for end in (1e4, 1e5):
        part = {k: v[: np.searchsorted(long.s, end) + 1] for k, v in long.items()}
        cut = changed(long, part)
        assert cut.s[-1] > 0.99 * end and not failures(cut) - {"reached"}
        for name in ("s", "log_risk"):
            for offset in (0.1, 0.1 * (cut.s > 0.5 * end)):
                off = changed(cut, {name: cut[name] + offset})
                assert "s + ln L - ln n" in failures(off)
        for name in ("clock_drift", "clock_correction"):
            off = changed(cut, {name: cut[name] + 0.1})
            assert "clock at the start" in failures(off)


def test_clock_corrected_by_more_than_a_step_may_be_off(traj):
    """Within what all steps together may be off by."""
    jump = 0.05 * (np.arange(len(traj.s)) >= 10)
    off = changed(traj, {"clock_correction": traj["clock_correction"] + jump})
    assert failures(off) == {"clock corrections between points"}


class WrongGradient(eqx.Module):
    """The first layer's gradient is 1.01 times too large, the values are right."""

    first: jax.Array
    second: jax.Array

    def __call__(self, x):
        first = self.first + 0.01 * (self.first - jax.lax.stop_gradient(self.first))
        return (self.second @ (first @ x))[0]


def test_wrong_gradient_of_one_layer():
    model = WrongGradient(*(layer.weight for layer in _model().layers))
    # Euler's identity alone would find degree 2.01; the values scale with degree 2.
    with pytest.raises(ValueError, match="not homogeneous"):
        gf.Problem(model, X, Y)
    unchecked = gf.Problem(model, X, Y, homogeneous=False)
    found = gf.integrate(unchecked, to=100.0, saveat=30, throw=False, patience=None)
    assert "clock correction" in failures(found)


class Biased(eqx.Module):
    """Not homogeneous: a layer without a bias and a constant."""

    weight: jax.Array

    def __call__(self, x):
        return self.weight @ x + 0.5


def test_non_homogeneous_model_declared_homogeneous():
    model = Biased(jnp.array([1.0, 0.3, 0.2]))
    with pytest.raises(ValueError, match="not homogeneous"):
        gf.Problem(model, X, Y, degree=1.0)
    # Forced past that check, the certificate finds it along the flow.
    problem = gf.Problem(model, X, Y, homogeneous=False)
    object.__setattr__(problem, "degree", 1.0)
    found = gf.integrate(problem, to=50.0, saveat=20)
    assert {"Euler's identity"} <= failures(found)


def test_trajectory_cut_and_spliced(traj):
    cut = changed(
        traj, {k: np.delete(v, slice(10, 15), axis=0) for k, v in traj.items()}
    )
    assert "saved points missing" in failures(cut)
    other = gf.integrate(gf.Problem(_model(key=3), X, Y), to=100.0, saveat=traj.s[1:-1])
    offset = len(other.s) - len(traj.s)  # The other flow starts at a point of its own.
    spliced = {
        k: np.concatenate([v[:12], other[k][12 + offset :]]) for k, v in traj.items()
    }
    assert "balance of layers" in failures(changed(traj, spliced))


def test_float32_past_its_range():
    model = jax.tree.map(lambda w: w.astype(jnp.float32), _model())
    problem = gf.Problem(model, X.astype(jnp.float32), Y)
    with pytest.warns(UserWarning, match="In float32 margins near"):
        found = gf.integrate(problem, to=1e5, saveat=30, throw=False)
    assert "rounding of the margins" in failures(found)


def test_tolerance_of_one():
    found = gf.integrate(
        gf.Problem(_model(), X, Y), to=100.0, rtol=1.0, saveat=30, throw=False
    )
    assert "tolerance" in failures(found)


FINAL = {
    "last s, computed anew",
    "last margins, computed anew",
    "gradient of ln L",
    "KKT epsilon",
    "KKT epsilon, explicit",
    "KKT delta, explicit",
    "balance of dual variables",
    "power of s in rho",
    "margin over the maximum",
    "distance to the best direction",
    "distance to the tangent SVM",
    "Hessian along theta",
    "growth of J",
    "Lipschitz margin over distance",
}


def test_a_good_flow_passes_with_its_problem(traj, linear, tmp_path):
    found = traj.certificate(strict=True, problem=PROBLEM)
    assert {row.name for row in found.rows} >= FINAL
    found = linear.certificate(strict=True, problem=LINEAR)
    new = {row.name for row in found.rows} - {r.name for r in linear.certificate().rows}
    assert new == FINAL | {"power of ln t in t L", "margin reached"}
    assert all(row.source and row.tolerance >= 0 for row in found.rows)
    linear.save(tmp_path / "traj.nc")
    loaded = gf.Trajectory.load(tmp_path / "traj.nc")
    assert repr(loaded.certificate(problem=LINEAR)) == repr(found)


@pytest.mark.parametrize(
    "model",
    [
        gf.models.TwoLayer(3, 6, key=jax.random.key(0)),
        gf.models.MLP((3, 6, 2), gf.models.SmoothReLU(1e-2), key=jax.random.key(1)),
        gf.models.Linear(3, 2),
    ],
)
def test_networks_and_classes_pass_with_their_problem(model):
    classes = eqx.filter_eval_shape(model, X[0]).shape
    problem = gf.Problem(model, X, Y if classes == () else (Y > 0).astype(int))
    traj = gf.integrate(problem, to=100.0, saveat=30)
    found = traj.certificate(problem=problem)
    assert found.passed, found
    names = {row.name for row in found.rows}
    assert {"gradient of ln L", "KKT epsilon", "KKT delta, explicit"} <= names
    assert "distance to the tangent SVM" in names


def test_several_classes_that_are_not_aligned():
    problem = gf.Problem(gf.models.Linear(3, 2), X, (Y > 0).astype(int))
    traj = gf.integrate(problem, to=100.0, saveat=30)
    noise = jax.random.normal(jax.random.key(5), traj.theta.shape)
    size = 0.1 * np.linalg.norm(traj.theta) / np.linalg.norm(noise)
    moved = changed(traj, {}, traj.theta + size * noise)
    assert "distance to the tangent SVM" in failures(moved, problem)


def test_float32_passes_with_its_problem():
    model = jax.tree.map(lambda w: w.astype(jnp.float32), _model())
    problem = gf.Problem(model, X.astype(jnp.float32), Y)
    found = gf.integrate(problem, to=50.0, saveat=30).certificate(problem=problem)
    assert found.passed, found
    assert FINAL <= {row.name for row in found.rows} | {"gradient of ln L"}


def test_a_run_without_diagnostics_is_still_computed_anew():
    found = gf.integrate(LINEAR, to=20.0, saveat=5, diagnostics=())
    assert "last s, computed anew" in repr(found.certificate(problem=LINEAR))
    other = changed(found, {}, theta=1.001 * found.theta)
    assert failures(other, LINEAR) == {"last s, computed anew"}


def test_another_problem_is_refused(traj):
    with pytest.raises(ValueError, match="has k = 3, but the trajectory"):
        traj.certificate(problem=LINEAR)


def test_wrong_gradient_is_seen_at_one_point(traj):
    """Found where it stands, without the flow that it spoils."""
    model = WrongGradient(*(layer.weight for layer in _model().layers))
    problem = gf.Problem(model, X, Y, homogeneous=False)
    for name in ("degree", "layers", "layer_degrees"):  # Past the check that sees it.
        object.__setattr__(problem, name, getattr(PROBLEM, name))
    failed = failures(traj, problem)
    assert {"gradient of ln L", "alignment of layers"} <= failed


class NoGradient(WrongGradient):
    """The first layer has no gradient at all: along G itself nothing is wrong."""

    def __call__(self, x):
        return (self.second @ (jax.lax.stop_gradient(self.first) @ x))[0]


def test_missing_gradient_of_one_layer(traj):
    model = NoGradient(*(layer.weight for layer in _model().layers))
    problem = gf.Problem(model, X, Y, homogeneous=False)
    right = changed(traj, {})
    right.config = traj.config | {"degree": None}
    assert "gradient of ln L" in failures(right, problem)


def test_final_parameters_of_another_point(traj):
    theta = traj.theta.at[0].multiply(1 + 1e-6)
    failed = failures(changed(traj, {}, theta=theta), PROBLEM)
    assert {"last s, computed anew", "last margins, computed anew"} <= failed


def test_data_of_another_problem(traj):
    other = gf.Problem(_model(), X.at[0, 0].add(1e-3), Y)
    assert "last margins, computed anew" in failures(traj, other)


def test_falsified_alignment(traj):
    off = changed(traj, {"misalignment": 0.98 * traj["misalignment"]})
    assert failures(off, PROBLEM) == {"KKT epsilon, explicit", "alignment of layers"}


def test_dual_weight_on_examples_of_large_margin(traj):
    """Margins given to other examples: their dual variables do not fit."""
    margins = traj["margins"].copy()
    margins[-1] = np.sort(margins[-1])[::-1][np.argsort(np.argsort(margins[-1]))]
    swapped = changed(traj, {"margins": margins})
    assert "balance of dual variables" in failures(swapped, PROBLEM)


def test_point_far_from_kkt(traj):
    """A flow whose parameters tremble, though its margin grows as it should."""
    noise = jax.random.normal(jax.random.key(5), traj.theta.shape)
    theta = traj.theta + 0.3 * jnp.linalg.norm(traj.theta) * noise / 3
    noisy = changed(traj, {"misalignment": traj["misalignment"] + 0.1}, theta)
    assert "KKT epsilon" in failures(noisy, PROBLEM)


def test_margins_later_than_the_parameters(traj):
    early = gf.integrate(PROBLEM, to=5.0, saveat=3)
    failed = failures(changed(traj, {}, theta=early.theta), PROBLEM)
    assert "KKT delta, explicit" in failed


def test_norm_and_time_of_other_powers(linear):
    faster = changed(linear, {"rho": linear["rho"] * np.maximum(linear.s, 1) ** 0.1})
    assert "power of s in rho" in failures(faster, LINEAR)
    later = linear["log_t"] + 0.1 * np.log(np.maximum(linear.s, 1))
    failed = failures(changed(linear, {"log_t": later}), LINEAR)
    assert failed == {"power of ln t in t L"}


def test_margin_above_the_maximum(linear):
    failed = failures(changed(linear, {"margins": 1.01 * linear["margins"]}), LINEAR)
    assert {"margin over the maximum", "distance to the best direction"} <= failed
    # A linear model's margin is the distance from the boundary times its norm.
    assert "Lipschitz margin over distance" in failed


def test_margin_below_what_the_flow_reaches(linear):
    failed = failures(changed(linear, {"margins": 0.95 * linear["margins"]}), LINEAR)
    assert "margin reached" in failed


def test_direction_worse_than_its_margin(linear):
    rho = jnp.linalg.norm(linear.theta)
    theta = linear.theta + 0.05 * rho * jnp.array([1.0, -1.0, 1.0])
    theta = theta * rho / jnp.linalg.norm(theta)
    failed = failures(changed(linear, {}, theta=theta), LINEAR)
    assert "distance to the best direction" in failed
