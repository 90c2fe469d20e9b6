"""What every benchmark shares: options, the machine, saved results."""

import argparse
import json
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp

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


def gradient_seconds(problem, repeats: int = 200) -> float:
    """Seconds of one jitted gradient: the least of five means.

    Gradients are chained inside one compiled loop, as a solver chains them, so that
    dispatching from Python does not count.
    """

    @jax.jit
    def chain(problem, theta):
        def once(_, theta):
            _, direction = problem.log_risk_and_direction(theta)
            return theta + 1e-12 * direction

        return jax.lax.fori_loop(0, repeats, once, theta)

    theta = jnp.asarray(problem.theta)
    jax.block_until_ready(chain(problem, theta))
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        jax.block_until_ready(chain(problem, theta))
        best = min(best, time.perf_counter() - began)
    return best / repeats


def work(stats: dict) -> int:
    """Gradient evaluations, with a Jacobian product counted as two."""
    return stats["gradient_evaluations"] + 2 * stats.get("jacobian_products", 0)
