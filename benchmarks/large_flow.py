"""How does the error of a large flow follow the tolerance, and at what work?

    python -m benchmarks.large_flow --json benchmarks/results/large_flow.json

The digits network to s = 1842 with `DeflatedRKC2` and `RKC2`, against `RKC2` at rtol
1e-6: error of the least normalised margin and of all margins of the support (within 10
of the least), both relative to the least; sum of the clock's corrections; work in
gradient evaluations, a Jacobian product counted as two, and with the examples whose
losses are below rounding left out, where an evaluation on m of n examples counts m/n.
The last rows are in float32.
"""

import numpy as np

import gradflow as gf

from .common import figure, options, work, write
from .problems import PROBLEMS, digits


def run(problem, to: float, solver, rtol: float) -> tuple[np.ndarray, dict]:
    """Final normalised margins and a row of results."""
    eps = float(np.finfo(problem.theta.dtype).eps)
    every, traj = (
        gf.integrate(
            problem,
            to,
            solver=solver,
            rtol=rtol,
            saveat=[to],
            progress=False,
            throw=False,
            neglect=neglect,
        )
        for neglect in (0.0, eps)
    )
    row = {
        "method": type(solver).__name__,
        "rtol": rtol,
        "s": float(traj.s[-1]),
        "steps": traj.stats["steps"],
        "rejected": traj.stats["rejected_steps"],
        "work on all examples": work(every.stats),
        "work": work(traj.stats),
        "neglected": traj.stats["neglected"],
        "clock correction": float(traj["clock_correction"][-1]),
        "result": traj.result.name,
    }
    return traj["normalized_margins"][-1], row


def plot(rows: list[dict], axes) -> None:
    """Error against work, by method and precision."""
    for key in dict.fromkeys((row["method"], row["dtype"]) for row in rows):
        mine = [row for row in rows if (row["method"], row["dtype"]) == key]
        for axis, what in zip(axes, ("work", "work on all examples")):
            errors = [row["error on support"] for row in mine]
            axis.loglog([r[what] for r in mine], errors, "o-", label=", ".join(key))
            axis.set(xlabel=what, ylabel="error on support")
    axes[0].legend(fontsize=7)


def main() -> None:
    settings = options(__doc__ or "")
    make, to = PROBLEMS["digits"]
    problem = make()
    single = digits(np.float32)
    exact, row = run(problem, to, gf.solvers.RKC2(max_stages=2000), 1e-6)
    rows = [row]
    # The norm belongs to the least margin at s = to, up to ln n.
    support = exact < exact.min() * (1 + 10 / to)
    deflated, plain = gf.solvers.DeflatedRKC2(), gf.solvers.RKC2()
    for start, solver, rtol in (
        (problem, deflated, 1e-3),
        (problem, deflated, 1e-4),
        (problem, deflated, 4e-5),
        (problem, deflated, 1e-5),
        (problem, plain, 1e-3),
        (problem, plain, 1e-4),
        (single, deflated, 1e-3),
        (single, deflated, 1e-4),
    ):
        margins, row = run(start, to, solver, rtol)
        row["dtype"] = str(start.theta.dtype)
        row["error of least margin"] = float(margins.min() / exact.min() - 1)
        gaps = np.abs(margins - exact)[support] / exact.min()
        row["error on support"] = float(gaps.max())
        rows.append(row)
        print(row, flush=True)
    write(settings.json, rows)
    with figure(settings.json, 2) as axes:
        plot(rows[1:], axes)


if __name__ == "__main__":
    main()
