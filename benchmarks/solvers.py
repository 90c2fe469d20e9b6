"""Work against precision: our solvers, Diffrax's, SciPy's and descent rules.

    python -m benchmarks.solvers --json benchmarks/results/solvers.json
        [--problems breast_cancer,digits] [--rtols 1e-2,1e-4] [--seconds 20]
        [--methods "Rodas5P;RK4, step 1/sharpness"]

Each method runs each problem to the same s, or as far as it comes in `--seconds`. The
error is that of the final normalised margins of the support (within 10 of the least
margin), relative to the least, at the s where the method truly stopped, against our own
solver at rtol 1e-9 (1e-6 for digits, 1e-5 for the CNN). Work is in gradient
evaluations, a Jacobian product counted as two; null where a method does not count. On
digits and the CNN our solvers leave out examples whose losses are below rounding: on m
of n, m/n is counted. Seconds are the least of `REPEATS` runs where one takes less than
`SHORT`, since what else a machine does only adds to them.

torchdiffeq is an extra (`pip install -e '.[benchmarks]'`), left out where it is not
installed.
"""

import argparse
import importlib.util
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from scipy.interpolate import CubicSpline

import gradflow as gf
from gradflow._flow import measured_s

from .common import figure, integrated, work, write
from .descent import DESCENT, descent
from .peers import SCIPY, kencarp4, scipy, torchdiffeq
from .problems import PROBLEMS

OURS = {
    "Rodas5P": gf.solvers.Rodas5P(),
    "RKC2": gf.solvers.RKC2(),
    "DeflatedRKC2": gf.solvers.DeflatedRKC2(),
}
DIFFRAX = {
    "Tsit5": diffrax.Tsit5(),
    "Dopri8": diffrax.Dopri8(),
    "Kvaerno3": diffrax.Kvaerno3(),
    "Kvaerno5": diffrax.Kvaerno5(),
}
TORCHDIFFEQ = "torchdiffeq dopri5"
METHODS = (*OURS, *DIFFRAX, "KenCarp4", *SCIPY, TORCHDIFFEQ, *DESCENT)
# Runs of fewer seconds are timed so often.
SHORT, REPEATS = 2.0, 5
# A dense Jacobian of more parameters does not pay.
LARGEST_DENSE = 1500
DENSE = {"Rodas5P", "Kvaerno3", "Kvaerno5"}


def flow(problem, solver, to: float, budget: float, rtol: float) -> dict:
    """A Diffrax solver through `gf.integrate`; Diffrax's own in log-risk time, as the
    other libraries' are."""
    own = type(solver).__name__ in OURS
    large = problem.k > LARGEST_DENSE
    traj, seconds = integrated(
        problem,
        to,
        solver=solver,
        rtol=rtol,
        max_seconds=budget,
        neglect=float(np.finfo(problem.theta.dtype).eps) if own and large else 0.0,
        clock=None if own else gf.LogRiskTime(),
    )
    counted = "gradient_evaluations" in traj.stats
    return {
        "theta": traj.theta,
        "work": work(traj.stats) if counted else None,
        "seconds": seconds,
        "compile_seconds": traj.stats["compile_seconds"],
        "result": traj.result.name,
    }


def normalised(problem, theta) -> np.ndarray:
    margins = problem.margins(jnp.asarray(theta))
    return np.asarray(margins / jnp.linalg.norm(jnp.asarray(theta)) ** problem.degree)


class Reference:
    """Normalised margins along the flow, by our own solver at a tight tolerance."""

    def __init__(self, problem, to: float, rtol: float | None = None, count: int = 400):
        tight = 1e-9 if problem.k <= LARGEST_DENSE else 1e-6
        tight = 1e-5 if problem.batch_size is not None else tight
        tight = tight if rtol is None else rtol
        points = np.geomspace(1.0, 1.01 * to, count)
        s0 = float(measured_s(problem, problem.theta))
        self.problem, self.rtol = problem, tight
        traj = gf.integrate(
            problem,
            points[-1],
            rtol=tight,
            saveat=points[points > s0],
            progress=False,
            throw=False,
        )
        margins = traj["normalized_margins"]
        finite = np.isfinite(margins).all(axis=1) & (traj.s > 0)
        self.s = traj.s[finite]
        self.along = CubicSpline(np.log(self.s), margins[finite])

    def error(self, theta) -> tuple[float, float | None]:
        """The true s, and the error there (none outside the reference)."""
        problem = self.problem
        s = float(measured_s(problem, jnp.asarray(theta)))
        if not self.s[0] < s < self.s[-1]:
            return s, None
        exact = self.along(np.log(s))
        least = exact.min()
        rho = float(jnp.linalg.norm(jnp.asarray(theta)))
        support = exact < least + 10 / rho**problem.degree
        gaps = np.abs(normalised(problem, theta) - exact)[support]
        return s, float(gaps.max() / abs(least))


def methods(problem, to: float, budget: float) -> dict[str, Callable[[float], dict]]:
    """By name, a function of rtol that runs the method."""
    dense = problem.k <= LARGEST_DENSE
    named: dict[str, Callable[[float], dict]] = {}
    for name, solver in {**OURS, **DIFFRAX}.items():
        if dense or name not in DENSE:
            named[name] = partial(flow, problem, solver, to, budget)
    if dense:
        named["KenCarp4"] = partial(kencarp4, problem, to)
        for name in SCIPY:
            named[name] = partial(scipy, problem, name, to, budget)
    if _torchdiffeq_installed():
        named[TORCHDIFFEQ] = partial(torchdiffeq, problem, to, budget)
    return named


def _torchdiffeq_installed() -> bool:
    return importlib.util.find_spec("torchdiffeq") is not None


def _repeated(run: Callable[[], dict]) -> dict:
    # What a run gave; the least of the seconds of several if it is short.
    outcome = run()
    if outcome["result"] != "reached" or outcome["seconds"] > SHORT:
        return outcome
    seconds = [run()["seconds"] for _ in range(REPEATS - 1)]
    return outcome | {"seconds": min(outcome["seconds"], *seconds)}


def compare(
    name: str, rtols: list[float], budget: float, chosen: list[str] | None
) -> list[dict]:
    """All methods, or the chosen ones, on one problem; a tighter tolerance only after a
    looser one reached the end."""
    make, to = PROBLEMS[name]
    problem = make()
    reference = Reference(problem, to)
    rows = []

    def record(method, rtol, run: Callable[[], dict]) -> bool:
        outcome = _repeated(run)
        s, error = reference.error(outcome.pop("theta"))
        row = {"problem": name, "method": method, "rtol": rtol, "s asked": to}
        rows.append(row | {"s true": s, "error": error} | outcome)
        print(*(f"{k}: {v}" for k, v in rows[-1].items()), sep="  ", flush=True)
        return outcome["result"] == "reached"

    for method, run in methods(problem, to, budget).items():
        for rtol in rtols if chosen is None or method in chosen else ():
            if not record(method, rtol, partial(run, rtol)):
                break
    for method in DESCENT:
        if chosen is None or method in chosen:
            record(method, None, partial(descent, problem, method, to, budget))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--problems", default=",".join(PROBLEMS))
    parser.add_argument("--rtols", default="1e-2,1e-3,1e-4,1e-6")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--methods", help="names separated by semicolons; all if none")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    rtols = [float(rtol) for rtol in options.rtols.split(",")]
    problems = options.problems.split(",")
    chosen = None if options.methods is None else options.methods.split(";")
    for option, names, known in (
        ("--problems", problems, PROBLEMS),
        ("--methods", chosen or (), METHODS),
    ):
        if unknown := [name for name in names if name not in known]:
            parser.error(f"{option}: {unknown} are none of {list(known)}.")
    if not _torchdiffeq_installed() and TORCHDIFFEQ in (chosen or METHODS):
        print(f"{TORCHDIFFEQ} is left out: pip install -e '.[benchmarks]'", flush=True)
    rows = []
    for name in problems:
        rows += compare(name, rtols, options.seconds, chosen)
        write(options.json, rows)
    if rows and options.json is not None:
        plot(rows, options.json)


def _arrived(row: dict) -> bool:
    """At the s asked for, as measured: a method's own clock may be wrong."""
    return row["result"] == "reached" and abs(row["s true"] / row["s asked"] - 1) < 0.1


def plot(rows: list[dict], path: Path) -> None:
    """Error against wall time, one panel a problem; crosses stopped on the way."""
    from matplotlib import colormaps
    from matplotlib.lines import Line2D
    from matplotlib.ticker import LogLocator, NullFormatter

    names = list(dict.fromkeys(row["problem"] for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    colours = dict(zip(methods, colormaps["tab20"].colors))
    columns = min(3, len(names))
    with figure(path, columns, -(-len(names) // columns)) as axes:
        for axis in axes[len(names) :]:
            axis.set_visible(False)
        for axis, name in zip(axes, names):
            mine = [row for row in rows if row["problem"] == name]
            for method, arrived in product(methods, (True, False)):
                points = [
                    (row["seconds"], row["error"])
                    for row in mine
                    if row["method"] == method and _arrived(row) == arrived
                    if row["error"]
                ]
                style = "o-" if arrived else "x"
                points = np.reshape(points, (-1, 2))
                axis.loglog(*points.T, style, color=colours[method], ms=4)
            axis.set(
                title=f"{name} to s = {mine[0]['s asked']:g}",
                xlabel="seconds",
                ylabel="relative error of margins",
            )
            axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.xaxis.set_major_formatter("{x:g}")
            axis.xaxis.set_minor_formatter(NullFormatter())
        handles = [Line2D([], [], color=colours[m], marker="o") for m in methods]
        axes[0].figure.legend(handles, methods, loc="outside right upper", fontsize=7)


if __name__ == "__main__":
    main()
