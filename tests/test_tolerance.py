"""What `rtol` promises: errors of margins, alignment and J, against a tight one."""

import jax
import numpy as np
import pytest

import gradflow as gf

# From s = 10 on. At s = 5, where the data are just fitted, errors reach 30 rtol.
SAVES = [10.0, 20.0, 40.0, 80.0, 160.0]


def _deep_linear():
    x, y = gf.datasets.iris()
    widths = (x.shape[1], 8, 8, 1)
    return gf.Problem(gf.models.DeepLinear(widths, key=jax.random.key(0)), x, y)


def _squared_relu():
    model = gf.models.TwoLayer(3, 16, key=jax.random.key(0), scale=0.1)
    return gf.Problem(model, *gf.datasets.plane(60))


def _flow(problem, solver, rtol):
    traj = gf.integrate(problem, SAVES[-1], solver=solver, rtol=rtol, saveat=SAVES)
    return {name: traj[name][1:] for name in traj}


@pytest.mark.slow
@pytest.mark.parametrize("make", [_deep_linear, _squared_relu])
def test_errors_follow_the_tolerance(make):
    problem = make()
    exact = _flow(problem, gf.solvers.Rodas5P(), 1e-10)
    margins = exact["normalized_margins"]
    least = margins.min(axis=1, keepdims=True)
    # Examples whose weight is not below e^-10 of the largest.
    carrying = exact["margins"] < exact["margins"].min(axis=1, keepdims=True) + 10

    def errors(solver, rtol):
        found = _flow(problem, solver, rtol)
        gaps = np.abs(found["normalized_margins"] - margins) / least
        return (
            np.max(gaps[carrying]),
            np.max(np.abs(found["misalignment"] - exact["misalignment"])),
            np.max(np.abs(found["j_potential"] / exact["j_potential"] - 1)),
        )

    for solver in (gf.solvers.Rodas5P(), gf.solvers.DeflatedRKC2()):
        rtols = np.array([1e-4, 1e-5])
        measured = np.array([errors(solver, rtol) for rtol in rtols])
        assert np.all(measured < 10 * rtols[:, None]), (solver, measured)
