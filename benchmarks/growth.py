"""How does the cost of a flow grow with the log-risk time it is to reach?

    python -m benchmarks.growth --json benchmarks/results/growth.json

Every solver from initialisation to s = 10, 100, ..., 100,000, each time from the start:
work (gradient evaluations, a Jacobian product counted as two), steps and wall seconds
after compilation. The flows of a solver are run in turns until they took `ENOUGH`
seconds, five times at most. Their seconds are the least, since what else a machine does
only adds to them; "runs" has all. Steps may leave out examples whose losses are below
rounding (`neglect`), and of an evaluation on m of n examples m/n is counted. A flow
that took longer than `SECONDS` is the solver's last.
"""

import numpy as np

import gradflow as gf

from .common import figure, integrated, options, work, write
from .problems import breast_cancer, digits, iris_deep_linear

SECONDS, ENOUGH, REPEATS = 120.0, 150.0, 5
FLOWS = {
    "breast cancer, linear": (breast_cancer, gf.solvers.Rodas5P()),
    "iris, deep linear": (iris_deep_linear, gf.solvers.Rodas5P()),
    "digits, DeflatedRKC2": (digits, gf.solvers.DeflatedRKC2()),
    "digits, RKC2": (digits, gf.solvers.RKC2(max_stages=3000)),
}


def grown(name: str) -> list[dict]:
    """A row for each s; later runs only add their seconds."""
    make, solver = FLOWS[name]
    problem = make()
    rows: dict[float, dict] = {}
    for _ in range(REPEATS):
        for to in list(rows) or 10.0 ** np.arange(1, 6):
            new = flow(name, problem, solver, float(to))
            row = rows.setdefault(float(to), {**new, "runs": []})
            row["runs"].append(new["seconds"])
            if new["result"] != gf.Result.reached.name:
                break
        if sum(sum(row["runs"]) for row in rows.values()) > ENOUGH:
            break
    for row in rows.values():
        row["seconds"] = min(row["runs"])
        print(row, flush=True)
    return list(rows.values())


def flow(name: str, problem, solver, to: float) -> dict:
    """What one flow took."""
    traj, seconds = integrated(
        problem,
        to,
        solver=solver,
        max_seconds=SECONDS,
        neglect=float(np.finfo(float).eps),
    )
    return {
        "flow": name,
        "s asked": to,
        "s": float(traj.s[-1]),
        "steps": traj.stats["steps"],
        "work": work(traj.stats),
        "evaluations": traj.stats["gradient_evaluations"]
        + 2 * traj.stats["jacobian_products"],
        "examples at the end": int(traj["active_examples"][-1]),
        "seconds": seconds,
        "result": traj.result.name,
    }


def plot(rows: list[dict], axes) -> None:
    """Work and seconds against s."""
    for name in FLOWS:
        mine = [row for row in rows if row["flow"] == name]
        for axis, what in zip(axes, ("work", "seconds")):
            axis.loglog(
                [r["s"] for r in mine], [r[what] for r in mine], "o-", label=name
            )
            axis.set(xlabel="s = ln(n/L)", ylabel=what)
    axes[0].legend(fontsize=7)


def main() -> None:
    settings = options(__doc__ or "")
    rows = [row for name in FLOWS for row in grown(name)]
    write(settings.json, rows)
    with figure(settings.json, 2) as axes:
        plot(rows, axes)


if __name__ == "__main__":
    main()
