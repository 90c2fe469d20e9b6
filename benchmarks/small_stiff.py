"""Seconds at equal error on a small stiff flow: breast cancer, linear, to s = 1000.

    python -m benchmarks.small_stiff --json benchmarks/results/small_stiff.json

`Rodas5P` through `gf.integrate`, SciPy's stiff solvers and Diffrax's Kvaerno5, each at
several tolerances, in turns. Seconds are those of the whole call after compilation, the
least of `REPEATS` runs, since what else a machine does only adds to them; the median is
there too, and what computing alone took, without checks and results. The end
forgets the way, so that every method's final margins are right to rounding; the error
is therefore also taken along the way: the largest, from s = 10 on, of the normalised
margins of the support (within 10 of the least margin), relative to the least, at the
solver's steps or at 300 saved points, against `Rodas5P` at rtol 1e-10. Kvaerno5 runs in
log-risk time, as SciPy's do: by `diffrax.diffeqsolve` itself, and through
`gf.integrate`, there also in the clock that it would choose.

"of Rodas5P" is how many times the seconds of `Rodas5P` with the same error another
method took: these are interpolated between the tolerances of `Rodas5P` (in logarithms,
over the least seconds for an error as small), and where a method's error is larger than
any of them, those of the loosest are taken. A method that did not arrive (20,000 steps,
20 seconds) has the s where it stopped, and no such number.
"""

import time

import diffrax
import equinox as eqx
import jax.numpy as jnp
import numpy as np

import gradflow as gf
from gradflow._flow import measured_s

from .common import figure, integrated, options, write
from .peers import SCIPY, atol_of, rate, scipy
from .problems import PROBLEMS
from .solvers import Reference

REPEATS = 7
FROM = 10.0


def along(to):
    """Where on the way a flow is saved."""
    return np.geomspace(FROM, to, 300)


def ours(problem, to, solver, rtol, clock=None):
    """A flow through `gf.integrate`: seconds of the call and of its computing, and the
    parameters on the way."""

    how = {"solver": solver, "clock": clock, "rtol": rtol, "max_seconds": 20.0}

    def seconds():
        traj, took = integrated(problem, to, **how)
        return took, traj.stats["wall_seconds"]

    def path():
        theta = (lambda snapshot: {"theta": snapshot.theta},)
        return gf.integrate(
            problem,
            to,
            saveat=along(to),
            diagnostics=theta,
            progress=False,
            throw=False,
            **how,
        )["theta"]

    return seconds, path


def peer(problem, to, name, rtol):
    """The same for a solver of SciPy."""

    def seconds():
        took = scipy(problem, name, to, 20.0, rtol)["seconds"]
        return took, took

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
            throw=False,
        ).ys

    def seconds():
        start = time.perf_counter()
        solve(problem, jnp.array([to])).block_until_ready()
        took = time.perf_counter() - start
        return took, took

    def path():
        thetas = np.asarray(solve(problem, along(to)))
        return thetas[np.isfinite(thetas).all(axis=1)]  # Infinite where it did not get.

    return seconds, path


def methods(problem, to):
    """Name and tolerance to the two functions."""
    kvaerno5, plain = diffrax.Kvaerno5(), gf.LogRiskTime()
    found = {}
    for rtol in (0.3, 0.2, 0.1, 0.03, 0.01, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7):
        found["Rodas5P", rtol] = ours(problem, to, gf.solvers.Rodas5P(), rtol)
    for name in SCIPY:
        for rtol in (1e-3, 1e-4, 1e-5, 1e-6, 1e-7):
            found[name, rtol] = peer(problem, to, name, rtol)
    for rtol in (1e-3, 1e-4, 1e-5, 1e-6):
        found["Kvaerno5 in Diffrax", rtol] = diffeqsolve(problem, to, rtol)
    for rtol in (1e-3, 1e-4, 1e-5):
        found["Kvaerno5", rtol] = ours(problem, to, kvaerno5, rtol, plain)
        name = "Kvaerno5, gradflow's clock"
        found[name, rtol] = ours(problem, to, kvaerno5, rtol)
    return found


def at_error(rows: list[dict], error: float) -> float | None:
    """Seconds of `rows` for an error as small; none where no row has one."""
    rows = sorted(rows, key=lambda row: row["error along the way"])
    errors = [row["error along the way"] for row in rows]
    seconds = np.minimum.accumulate([row["seconds"] for row in rows])
    if error < errors[0]:
        return None
    return float(np.exp(np.interp(np.log(error), np.log(errors), np.log(seconds))))


def plot(rows: list[dict], axes) -> None:
    """Error against seconds, and seconds over those of `Rodas5P` at equal error."""
    for name in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == name]
        errors = [row["error along the way"] for row in mine]
        axes[0].loglog([row["seconds"] for row in mine], errors, "o-", label=name)
        ratios = np.array([row["of Rodas5P"] for row in mine], float)
        axes[1].loglog(errors, ratios, "o-", label=name)
    axes[0].set(xlabel="seconds", ylabel="error along the way")
    axes[1].legend(fontsize=6, loc="upper left")
    for aim in (4, 50):
        axes[1].axhline(aim, color="grey", linestyle="--", linewidth=1)
    axes[1].set(
        xlabel="error along the way", ylabel="seconds over Rodas5P at equal error"
    )


def main() -> None:
    settings = options(__doc__ or "")
    make, to = PROBLEMS["breast_cancer"]
    problem = make()
    reference, found = Reference(problem, to, 1e-12, 6000), methods(problem, to)
    for seconds, _ in found.values():
        seconds()
    took = {name: [] for name in found}
    for _ in range(REPEATS):
        for name, (seconds, _) in found.items():
            took[name].append(seconds())
    rows = []
    for (name, rtol), (_, path) in found.items():
        calls, computing = zip(*took[name, rtol])
        errors = np.array([reference.error(t) for t in path() if np.any(t)], float)
        inside = (errors[:, 0] >= FROM) & (errors[:, 0] <= 1.005 * to)
        row = {
            "method": name,
            "rtol": rtol,
            "seconds": min(calls),
            "median": float(np.median(calls)),
            "computing": min(computing),
            "s": float(errors[-1, 0]),
            "error along the way": float(errors[inside, 1].max()),
            "error at the end": float(errors[-1, 1]),
        }
        rows.append(row)
    best = [row for row in rows if row["method"] == "Rodas5P"]
    for row in rows:
        arrived = row["s"] > 0.99 * to
        ours_at_it = at_error(best, row["error along the way"]) if arrived else None
        row["of Rodas5P"] = ours_at_it and row["seconds"] / ours_at_it
        print(row, flush=True)
    write(settings.json, rows)
    with figure(settings.json, 2) as axes:
        plot(rows, axes)


if __name__ == "__main__":
    main()
