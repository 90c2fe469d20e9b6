"""Work against precision: our solvers, Diffrax's, SciPy's and descent rules.

    python -m benchmarks.solvers --json benchmarks/results/solvers.json
        [--problems breast_cancer,digits] [--rtols 1e-3,1e-4,1e-6] [--seconds 20]

Each method runs each problem to the same s, or as far as it comes in `--seconds`. The
error is that of the final normalised margins of the support (within 10 of the least
margin), relative to the least, against our own solver at rtol 1e-9 evaluated at the s
where the method truly stopped. Work is in gradient evaluations, a Jacobian product
counted as two; null where a method does not count.
"""

import argparse
from pathlib import Path

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from scipy.interpolate import CubicSpline

import gradflow as gf

from .common import work, write
from .peers import DESCENT, SCIPY, descent, scipy
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
# A dense Jacobian of more parameters does not pay.
LARGEST_DENSE = 1500


def integrated(problem, solver, to: float, rtol: float, budget: float) -> dict:
    """A Diffrax solver through `gf.integrate`."""
    traj = gf.integrate(
        problem,
        to,
        solver=solver,
        rtol=rtol,
        saveat=[to],
        diagnostics=(),
        progress=False,
        max_seconds=budget,
        throw=False,
    )
    counted = "gradient_evaluations" in traj.stats
    return {
        "theta": traj.theta,
        "work": work(traj.stats) if counted else None,
        "seconds": traj.stats["wall_seconds"],
        "compile_seconds": traj.stats["compile_seconds"],
        "result": traj.result.name,
    }


def normalised(problem, theta) -> np.ndarray:
    margins = problem.margins(jnp.asarray(theta))
    return np.asarray(margins / jnp.linalg.norm(jnp.asarray(theta)) ** problem.degree)


class Reference:
    """Normalised margins along the flow, by our own solver at a tight tolerance."""

    def __init__(self, problem, to: float):
        tight = 1e-9 if problem.k <= LARGEST_DENSE else 1e-6
        points = np.geomspace(1.0, 1.01 * to, 400)
        s0 = float(jnp.log(problem.n) - problem.log_risk(problem.theta))
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
        finite = np.isfinite(margins).all(axis=1)
        self.s = traj.s[finite]
        self.along = CubicSpline(np.log(self.s), margins[finite])

    def error(self, theta) -> tuple[float, float | None]:
        """The true s, and the error there (none outside the reference)."""
        problem = self.problem
        s = float(jnp.log(problem.n) - problem.log_risk(jnp.asarray(theta)))
        if not self.s[0] < s < self.s[-1]:
            return s, None
        exact = self.along(np.log(s))
        least = exact.min()
        rho = float(jnp.linalg.norm(jnp.asarray(theta)))
        support = exact < least + 10 / rho**problem.degree
        gaps = np.abs(normalised(problem, theta) - exact)[support]
        return s, float(gaps.max() / abs(least))


def methods(problem, to: float, rtols: list[float], budget: float):
    """Yields name, rtol and a function that runs the method."""
    dense = problem.k <= LARGEST_DENSE
    ours = OURS if dense else {k: v for k, v in OURS.items() if k != "Rodas5P"}
    peers = DIFFRAX if dense else {k: DIFFRAX[k] for k in ("Tsit5", "Dopri8")}
    for rtol in rtols:
        for name, solver in {**ours, **peers}.items():
            yield (
                name,
                rtol,
                lambda s=solver, r=rtol: integrated(problem, s, to, r, budget),
            )
        if dense:
            for name in SCIPY:
                yield (
                    name,
                    rtol,
                    lambda n=name, r=rtol: scipy(problem, n, to, r, budget),
                )
    for name in DESCENT:
        yield name, None, lambda n=name: descent(problem, n, to, budget)


def compare(name: str, rtols: list[float], budget: float) -> list[dict]:
    """All methods on one problem."""
    make, to = PROBLEMS[name]
    problem = make()
    reference = Reference(problem, to)
    rows = []
    for method, rtol, run in methods(problem, to, rtols, budget):
        outcome = run()
        s, error = reference.error(outcome.pop("theta"))
        row = {"problem": name, "method": method, "rtol": rtol, "s asked": to}
        rows.append(row | {"s true": s, "error": error} | outcome)
        print(*(f"{k}: {v}" for k, v in rows[-1].items()), sep="  ", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--problems", default=",".join(PROBLEMS))
    parser.add_argument("--rtols", default="1e-3,1e-4,1e-6")
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    rtols = [float(rtol) for rtol in options.rtols.split(",")]
    rows = [
        row
        for name in options.problems.split(",")
        for row in compare(name, rtols, options.seconds)
    ]
    write(options.json, rows)
    if options.json is not None:
        plot(rows, options.json.with_suffix(".png"))


def plot(rows: list[dict], path: Path) -> None:
    """Error against wall time, one panel a problem."""
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(row["problem"] for row in rows))
    figure, axes = plt.subplots(
        1, len(names), figsize=(4.2 * len(names), 4), squeeze=False
    )
    for axis, name in zip(axes[0], names):
        finished = [
            r for r in rows if r["problem"] == name and r["result"] == "reached"
        ]
        for method in dict.fromkeys(r["method"] for r in finished):
            points = [r for r in finished if r["method"] == method and r["error"]]
            axis.loglog(
                [r["seconds"] for r in points],
                [r["error"] for r in points],
                "o-",
                label=method,
            )
        axis.set(title=name, xlabel="seconds", ylabel="relative error of margins")
        axis.legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
