"""How fast is a flow on an accelerator, in float64 and in float32?

    python -m benchmarks.gpu --json benchmarks/results/gpu.json

The digits network to s = 1842 and a small CNN on MNIST to s = 10, with the default
solver at rtol 1e-3, on whatever device JAX chooses: seconds of the flow and of a bare
gradient timed in between, work, and in float32 the largest difference of a support
margin from float64's, relative to the least. On a machine without an accelerator it
runs on the CPU, and says so; no results of one are committed yet.
"""

import jax
import numpy as np

from .common import figure, options, wall_over_gradients, work, write
from .problems import PROBLEMS

RTOL = 1e-3


def row(name: str, dtype) -> tuple[dict, np.ndarray]:
    """One flow, and the normalised margins that it ends with."""
    make, to = PROBLEMS[name]
    problem = make(dtype)
    ratio, gradient, traj = wall_over_gradients(
        problem, to, segment=10.0, rtol=RTOL, saveat=2, progress=False, throw=False
    )
    found = {
        "problem": name,
        "device": jax.devices()[0].device_kind,
        "dtype": str(problem.theta.dtype),
        "result": traj.result.name,
        "s": float(traj.s[-1]),
        "steps": traj.stats["steps"],
        "work": work(traj.stats),
        "seconds": traj.stats["wall_seconds"],
        "seconds per gradient": gradient,
        "wall / gradients": ratio,
    }
    return found, traj["normalized_margins"][-1]


def plot(rows: list[dict], axes) -> None:
    """Seconds of each flow and of a gradient."""
    names = [f"{row['problem']}\n{row['dtype']}" for row in rows]
    for axis, what in zip(axes, ("seconds", "seconds per gradient")):
        axis.bar(names, [row[what] for row in rows])
        axis.set(ylabel=what, yscale="log", title=rows[0]["device"])
        axis.tick_params(axis="x", labelsize=7)


def main() -> None:
    settings = options(__doc__ or "")
    if jax.default_backend() == "cpu":
        print("no accelerator: these are figures of the CPU")
    rows = []
    for name in ("digits", "small_cnn"):
        _, to = PROBLEMS[name]
        double, exact = row(name, np.float64)
        single, margins = row(name, np.float32)
        support = exact < exact.min() + 10 / to * abs(exact.min())
        gap = np.abs(margins - exact)[support].max() / abs(exact.min())
        rows += [double, single | {"difference on support": float(gap)}]
        print(*rows[-2:], sep="\n", flush=True)
    write(settings.json, rows)
    with figure(settings.json, 2) as axes:
        plot(rows, axes)


if __name__ == "__main__":
    main()
