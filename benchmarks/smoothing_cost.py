"""What does smoothing the ReLU, and max-pooling, add to the cost of a gradient?

One jitted full-batch gradient, timed in turns, least and median of many repeats,
compilation left out: `MLP((65, 64, 32, 1))` on digits parity (n = 1797, float64) with
`ReLU()` and `SmoothReLU(1e-2)`; Lyu and Li's network on 100 MNIST images (float32) with
neither, the first, and both of ReLU and max-pooling smoothed. Run:

    python -m benchmarks.smoothing_cost --json benchmarks/results/smoothing_cost.json
"""

import time

import equinox as eqx
import jax
import numpy as np

import gradflow as gf

from .common import options, write

KEY = jax.random.key(0)
EXACT, SMOOTH = gf.models.ReLU(), gf.models.SmoothReLU(1e-2)


def mlp() -> tuple[dict[str, gf.Problem], int]:
    """Problems by name, the exact one first, and how often to time them."""
    x, y = gf.datasets.digits(task="parity")
    return {
        name: gf.Problem(gf.models.MLP((65, 64, 32, 1), activation, key=KEY), x, y)
        for name, activation in (("exact", EXACT), ("smooth ReLU", SMOOTH))
    }, 300


def cnn() -> tuple[dict[str, gf.Problem], int]:
    x, y = gf.datasets.mnist(n=100)
    x = np.moveaxis(x, 1, -1).astype(np.float32)
    parts = {
        "exact": (EXACT, gf.models.MaxPool(2)),
        "smooth ReLU": (SMOOTH, gf.models.MaxPool(2)),
        "smooth ReLU and pooling": (SMOOTH, gf.models.MaxPool(2, eps=1e-2)),
    }
    problems = {}
    for name, (activation, pool) in parts.items():
        model = gf.models.LyuLiCNN(activation, pool, key=KEY)
        model = jax.tree.map(
            lambda a: a.astype(np.float32) if eqx.is_inexact_array(a) else a, model
        )
        problems[name] = gf.Problem(model, x, y)
    return problems, 40


def row(network: str, problems: dict[str, gf.Problem], repeats: int) -> dict:
    """Least and median milliseconds, and what each adds to the exact network's."""
    direction = eqx.filter_jit(lambda p, theta: p.log_risk_and_direction(theta))
    seconds: dict[str, list[float]] = {name: [] for name in problems}
    for repeat in range(repeats + 1):
        for name, problem in problems.items():
            start = time.perf_counter()
            jax.block_until_ready(direction(problem, problem.theta))
            if repeat > 0:
                seconds[name].append(time.perf_counter() - start)
    found: dict = {"network": network}
    for kind, of in (("least", np.min), ("median", np.median)):
        times = {name: 1e3 * float(of(s)) for name, s in seconds.items()}
        found[f"{kind}_ms"] = times
        added = {n: t / times["exact"] - 1 for n, t in times.items() if n != "exact"}
        found[f"added_{kind}"] = added
    print(found, flush=True)
    return found


def main() -> None:
    arguments = options(__doc__ or "")
    rows = [row(make.__name__, *make()) for make in (mlp, cnn)]
    write(arguments.json, rows)


if __name__ == "__main__":
    main()
