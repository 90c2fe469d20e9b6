"""What does smoothing the ReLU add to the cost of a gradient?

`MLP((65, 64, 32, 1))` on digits parity (n = 1797), float64: one jitted full-batch
gradient with `ReLU()` and with `SmoothReLU(1e-2)`, timed in turns, least and median of
many repeats, compilation left out. Run:

    python -m benchmarks.smoothing_cost --json benchmarks/results/smoothing_cost.json
"""

import time

import equinox as eqx
import jax
import numpy as np

from benchmarks.common import options, write

REPEATS = 300


def main() -> None:
    """Prints and saves the times of both activations and their ratio."""
    arguments = options(__doc__ or "")
    import gradflow as gf

    x, y = gf.datasets.digits(task="parity")
    direction = eqx.filter_jit(lambda p, theta: p.log_risk_and_direction(theta))
    problems = {}
    for activation in (gf.models.ReLU(), gf.models.SmoothReLU(1e-2)):
        model = gf.models.MLP((65, 64, 32, 1), activation, key=jax.random.key(0))
        problems[type(activation).__name__] = gf.Problem(model, x, y)
    seconds = {name: [] for name in problems}
    for repeat in range(REPEATS + 1):
        for name, problem in problems.items():
            start = time.perf_counter()
            jax.block_until_ready(direction(problem, problem.theta))
            if repeat > 0:
                seconds[name].append(time.perf_counter() - start)
    results = {
        name: {"least_ms": 1e3 * min(s), "median_ms": 1e3 * float(np.median(s))}
        for name, s in seconds.items()
    }
    for kind in ("least_ms", "median_ms"):
        exact, smooth = (results[name][kind] for name in ("ReLU", "SmoothReLU"))
        results[f"added_{kind.removesuffix('_ms')}"] = smooth / exact - 1
    print(results)
    write(arguments.json, results)


if __name__ == "__main__":
    main()
