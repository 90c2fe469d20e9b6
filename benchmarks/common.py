"""What every benchmark shares: options, the machine, saved results and figures."""

import argparse
import contextlib
import json
import os
import platform
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import equinox as eqx
import jax
import numpy as np

import gradflow as gf

PACKAGES = ("jax", "diffrax", "equinox", "scipy", "numpy", "gradflow-jax")


def options(description: str) -> argparse.Namespace:
    """Parses `--json OUT` and turns on float64."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, help="write the results there")
    parsed = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    return parsed


def machine() -> dict:
    """Hardware, versions and precision, as JSON values."""
    return {
        "device": jax.devices()[0].device_kind,
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "x64": bool(jax.config.jax_enable_x64),
        **{name: version(name) for name in PACKAGES},
    }


def write(path: Path | None, results) -> None:
    """Saves results with the machine that made them."""
    if path is not None:
        record = {"machine": machine(), "results": results}
        path.write_text(json.dumps(record, indent=1) + "\n")


@contextlib.contextmanager
def figure(path: Path | None, columns: int, rows: int = 1):
    """Axes side by side, row after row; the figure is saved beside the results if these
    are."""
    import matplotlib.pyplot as plt

    drawn, axes = plt.subplots(
        rows,
        columns,
        figsize=(4.5 * columns, 3.6 * rows),
        squeeze=False,
        layout="constrained",
    )
    yield axes.ravel()
    if path is not None:
        drawn.savefig(path.with_suffix(".png"), dpi=120)
    plt.close(drawn)


def integrated(problem, to: float, **arguments):
    """A flow of which nothing but the end is saved.

    **Returns:** the trajectory, and the seconds that the call took, compiling apart:
    what a user waits, of which a small flow's computing (`wall_seconds`) is a part.
    """
    began = time.perf_counter()
    traj = gf.integrate(
        problem,
        to,
        saveat=[to],
        diagnostics=(),
        progress=False,
        throw=False,
        **arguments,
    )
    return traj, time.perf_counter() - began - traj.stats["compile_seconds"]


def wall_over_gradients(
    problem, to: float, segment: float = 0.6, seconds: float = np.inf, **arguments
):
    """A flow in segments of `segment` seconds, each between two timings of the bare
    gradient, since a shared machine changes its speed within seconds. Ends at `to`, or
    after about `seconds`.

    Gradients are chained inside one compiled loop, as a solver chains them, so that
    dispatching from Python does not count.

    **Returns:** wall seconds of the flow over (work x mean seconds of one gradient),
    those mean seconds, and the trajectory.
    """
    chain = gradient_chain(problem)
    timed(chain)
    gradients, limit = [timed(chain)], 0.0
    with tempfile.TemporaryDirectory() as folder:
        while True:
            limit += segment
            traj = gf.integrate(
                problem, to, folder=f"{folder}/run", max_seconds=limit, **arguments
            )
            gradients.append(timed(chain))
            if traj.result is not gf.Result.time_limit or limit >= seconds:
                break
    gradient = float(np.mean(gradients))
    ratio = traj.stats["wall_seconds"] / (work(traj.stats) * gradient)
    return ratio, gradient, traj


CHAINED = 500


def gradient_chain(problem):
    """A function that evaluates `CHAINED` gradients, each at a new point."""

    @eqx.filter_jit
    def chain(problem):
        def once(_, theta):
            _, direction = problem.log_risk_and_direction(theta)
            return theta + 1e-12 * direction

        return jax.lax.fori_loop(0, CHAINED, once, problem.theta)

    return lambda: chain(problem)


def timed(chain) -> float:
    """Seconds of each evaluation in a chain."""
    began = time.perf_counter()
    jax.block_until_ready(chain())
    return (time.perf_counter() - began) / CHAINED


def work(stats: dict) -> int:
    """Passes over all examples: gradient evaluations, a Jacobian product as two."""
    return round(stats["passes"])
