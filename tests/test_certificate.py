"""A certificate passes on a good flow and catches planted faults, each by name."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradflow as gf

from .helpers import separable

X, Y = separable(n=6)


def _model(key=0):
    return gf.models.DeepLinear((3, 2, 1), key=jax.random.key(key))


@pytest.fixture(scope="module")
def traj():
    return gf.integrate(gf.Problem(_model(), X, Y), to=100.0, saveat=30)


def _changed(traj, values):
    return gf.Trajectory(
        model=traj.model,
        theta=traj.theta,
        values=dict(traj) | values,
        result=traj.result,
        stats=traj.stats,
        config=traj.config,
    )


def _failed(traj):
    return {row.name for row in traj.certificate().rows if not row.passed}


def test_a_good_flow_passes(traj):
    assert traj.certificate(strict=True).passed
    assert _failed(traj) == set()
    assert "passed" in repr(traj.certificate())


def test_clock_off_by_a_tenth(traj):
    off = _changed(traj, {"clock_drift": traj["clock_drift"] + 0.1})
    assert _failed(off) == {"clock drift"}
    with pytest.raises(RuntimeError, match="FAIL  clock drift"):
        off.certificate(strict=True)


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
    assert "clock drift" in _failed(found)


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
    assert {"Euler's identity"} <= _failed(found)


def test_trajectory_cut_and_spliced(traj):
    cut = _changed(
        traj, {k: np.delete(v, slice(10, 15), axis=0) for k, v in traj.items()}
    )
    assert "saved points missing" in _failed(cut)
    other = gf.integrate(gf.Problem(_model(key=3), X, Y), to=100.0, saveat=traj.s[1:-1])
    offset = len(other.s) - len(traj.s)  # The other flow starts at a point of its own.
    spliced = {
        k: np.concatenate([v[:12], other[k][12 + offset :]]) for k, v in traj.items()
    }
    assert _failed(_changed(traj, spliced))


def test_float32_past_its_range():
    model = jax.tree.map(lambda w: w.astype(jnp.float32), _model())
    problem = gf.Problem(model, X.astype(jnp.float32), Y)
    with pytest.warns(UserWarning, match="In float32 margins near"):
        found = gf.integrate(problem, to=1e5, saveat=30, throw=False)
    assert "rounding of the margins" in _failed(found)


def test_tolerance_of_one():
    found = gf.integrate(
        gf.Problem(_model(), X, Y), to=100.0, rtol=1.0, saveat=30, throw=False
    )
    assert "tolerance" in _failed(found)
