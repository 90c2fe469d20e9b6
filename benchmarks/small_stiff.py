"""Seconds at equal error on a small stiff flow: breast cancer, linear, to s = 1000.

    python -m benchmarks.small_stiff --json benchmarks/results/small_stiff.json

`Rodas5P` through `gf.integrate`, SciPy's stiff solvers and Diffrax's Kvaerno5, each at
several tolerances, in turns (median of `REPEATS` runs after compilation). The end
forgets the way, so that every method's final margins are right to rounding; the error
is therefore also taken along the way: the largest, from s = 10 on, of the normalised
margins of the support (within 10 of the least margin), relative to the least, at the
solver's steps or at 300 saved points, against `Rodas5P` at rtol 1e-10. Kvaerno5 runs in
log-risk time, as SciPy's do: by `diffrax.diffeqsolve` itself, and through
`gf.integrate`, there also in the clock that it would choose.
"""

import time

import diffrax
import equinox as eqx
import jax.numpy as jnp
import numpy as np

import gradflow as gf
from gradflow._flow import measured_s

from .common import options, write
from .peers import atol_of, rate, scipy
from .problems import PROBLEMS
from .solvers import Reference

REPEATS = 7
FROM = 10.0


def along(to):
    """Where on the way a flow is saved."""
    return np.geomspace(FROM, to, 300)


def ours(problem, to, solver, rtol, clock=None):
    """A flow through `gf.integrate`: seconds, and the parameters on the way."""

    def run(**arguments):
        return gf.integrate(
            problem,
            to,
            solver=solver,
            clock=clock,
            rtol=rtol,
            progress=False,
            throw=False,
            max_seconds=20.0,
            **arguments,
        )

    def seconds():
        return run(saveat=[to], diagnostics=()).stats["wall_seconds"]

    def path():
        theta = (lambda snapshot: {"theta": snapshot.theta},)
        return run(saveat=along(to), diagnostics=theta)["theta"]

    return seconds, path


def peer(problem, to, name, rtol):
    """The same for a solver of SciPy."""

    def seconds():
        return scipy(problem, name, to, 20.0, rtol)["seconds"]

    def path():
        steps = []
        scipy(problem, name, to, 20.0, rtol, steps)
        return np.stack(steps)

    return seconds, path


def diffeqsolve(problem, to, rtol):
    """The same for Kvaerno5 in Diffrax alone."""
    atol = atol_of(problem, rtol)

    @eqx.filter_jit
    def solve(problem, points):
        return diffrax.diffeqsolve(
            diffrax.ODETerm(lambda s, theta, problem: rate(problem, theta)),
            diffrax.Kvaerno5(),
            measured_s(problem, problem.theta),
            to,
            1e-3,
            problem.theta,
            args=problem,
            saveat=diffrax.SaveAt(ts=points),
            stepsize_controller=diffrax.PIDController(rtol, atol),
            max_steps=20_000,
        ).ys

    def seconds():
        start = time.perf_counter()
        solve(problem, jnp.array([to])).block_until_ready()
        return time.perf_counter() - start

    return seconds, lambda: np.asarray(solve(problem, along(to)))


def methods(problem, to):
    """Name and tolerance to the two functions."""
    kvaerno5, plain = diffrax.Kvaerno5(), gf.LogRiskTime()
    found = {}
    for rtol in (1e-1, 3e-2, 1e-2, 1e-3):
        found["Rodas5P", rtol] = ours(problem, to, gf.solvers.Rodas5P(), rtol)
    for rtol in (3e-3, 1e-3, 3e-4, 1e-4, 1e-5):
        found["LSODA", rtol] = peer(problem, to, "LSODA", rtol)
    for name in ("BDF", "Radau"):
        for rtol in (1e-3, 1e-4, 1e-5):
            found[name, rtol] = peer(problem, to, name, rtol)
    for rtol in (1e-3, 1e-4, 1e-5):
        found["Kvaerno5 in Diffrax", rtol] = diffeqsolve(problem, to, rtol)
        found["Kvaerno5", rtol] = ours(problem, to, kvaerno5, rtol, plain)
        name = "Kvaerno5, gradflow's clock"
        found[name, rtol] = ours(problem, to, kvaerno5, rtol)
    return found


def main() -> None:
    settings = options(__doc__ or "")
    make, to = PROBLEMS["breast_cancer"]
    problem = make()
    reference, found = Reference(problem, to, 1e-10, 1500), methods(problem, to)
    for seconds, _ in found.values():
        seconds()
    took = {name: [] for name in found}
    for _ in range(REPEATS):
        for name, (seconds, _) in found.items():
            took[name].append(seconds())
    rows = []
    for (name, rtol), (_, path) in found.items():
        errors = np.array([reference.error(t) for t in path() if np.any(t)], float)
        inside = (errors[:, 0] >= FROM) & (errors[:, 0] <= 1.005 * to)
        row = {
            "method": name,
            "rtol": rtol,
            "seconds": float(np.median(took[name, rtol])),
            "s": float(errors[-1, 0]),
            "error along the way": float(errors[inside, 1].max()),
            "error at the end": float(errors[-1, 1]),
        }
        rows.append(row)
        print(row, flush=True)
    write(settings.json, rows)


if __name__ == "__main__":
    main()
