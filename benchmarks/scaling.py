"""How does the cost of a unit of work grow with examples and parameters?

    python -m benchmarks.scaling --json benchmarks/results/scaling.json

Networks 64-m-m-1 with smoothed ReLU on n Gaussian points with labels by a plane, the
default solver for `SECONDS` from initialisation on: seconds per gradient evaluation of
the flow, beside those of the bare gradient timed in between, and per example and
parameter.
"""

import jax
import numpy as np

import gradflow as gf

from .common import figure, options, wall_over_gradients, write

SECONDS = 3.0
SIZES = [(n, m) for n in (500, 2000, 8000) for m in (8, 32, 128)]


def problem(n: int, width: int) -> gf.Problem:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((n, 64))
    y = np.sign(x @ generator.standard_normal(64))
    widths = (64, width, width, 1)
    model = gf.models.MLP(widths, gf.models.SmoothReLU(1e-2), key=jax.random.key(0))
    return gf.Problem(model, x, y)


def row(n: int, width: int) -> dict:
    flow = problem(n, width)
    ratio, seconds, traj = wall_over_gradients(
        flow,
        1e5,
        saveat=2,
        diagnostics=(),
        progress=False,
        throw=False,
        seconds=SECONDS,
    )
    found = {
        "n": n,
        "k": flow.k,
        "solver": traj.config["solver"],
        "s": float(traj.s[-1]),
        "seconds per gradient": seconds,
        "nanoseconds per example and parameter": 1e9 * seconds / (n * flow.k),
        "wall / gradients": ratio,
    }
    print(found, flush=True)
    return found


def plot(rows: list[dict], axes) -> None:
    """Both ratios against the number of parameters, a line for each of examples."""
    labels = ("nanoseconds per example and parameter", "wall / gradients")
    for n in dict.fromkeys(row["n"] for row in rows):
        mine = [row for row in rows if row["n"] == n]
        for axis, label in zip(axes, labels):
            axis.semilogx(
                [r["k"] for r in mine], [r[label] for r in mine], "o-", label=f"n = {n}"
            )
            axis.set(xlabel="parameters k", ylabel=label, ylim=(0, None))
    axes[0].legend()


def main() -> None:
    settings = options(__doc__ or "")
    rows = [row(*size) for size in SIZES]
    write(settings.json, rows)
    with figure(settings.json, 2) as axes:
        plot(rows, axes)


if __name__ == "__main__":
    main()
