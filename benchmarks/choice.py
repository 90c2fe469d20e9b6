"""Does `gf.solvers.choose` take the faster solver?

    python -m benchmarks.choice --json benchmarks/results/choice.json

Linear models and networks of some 100 to 1,000 parameters, flows near and far, at a
loose and a tight tolerance: seconds after compilation with a dense Jacobian (`Rodas5P`,
or `DualRodas5P` where there are fewer outputs than parameters) and with `DeflatedRKC2`,
and the s reached where `SECONDS` were not enough.
"""

import math

import jax
import numpy as np

import gradflow as gf

from .common import options, write
from .problems import breast_cancer

SECONDS = 30.0
# s to reach, rtol.
FLOWS = ((1e3, 1e-4), (1e5, 1e-4), (1e3, 1e-7))
KEY = jax.random.key(0)


def points(n: int, d: int):
    """Gaussian points, labels by a plane."""
    generator = np.random.default_rng(1)
    x = generator.standard_normal((n, d))
    return x, np.sign(x @ generator.standard_normal(d))


def linear(n: int, d: int):
    return gf.Problem(gf.models.Linear(d), *points(n, d))


def digits_linear():
    x, y = gf.datasets.digits(task="classes")
    return gf.Problem(gf.models.Linear(x.shape[1], 10), x, y)


def smooth(width: int):
    model = gf.models.MLP((8, width, 1), gf.models.SmoothReLU(0.1), key=KEY)
    return gf.Problem(model, *points(60, 8))


def deep_linear(width: int):
    model = gf.models.DeepLinear((8, width, width, 1), key=KEY)
    return gf.Problem(model, *points(50, 8))


def squared_relu(width: int):
    x, y = gf.datasets.plane(60)
    return gf.Problem(gf.models.TwoLayer(3, width, key=KEY, scale=0.1), x, y)


def digits(*widths: int):
    x, y = gf.datasets.digits(task="parity")
    model = gf.models.MLP((65, *widths, 1), gf.models.SmoothReLU(1e-2), key=KEY)
    return gf.Problem(model, x, y)


PROBLEMS = {
    "linear, breast cancer": breast_cancer,
    "linear, 2,000 points": lambda: linear(2000, 200),
    "linear, 3,000 points": lambda: linear(3000, 400),
    "linear, 4,000 points": lambda: linear(4000, 1000),
    "linear, 200 points": lambda: linear(200, 400),
    "linear, 800 points": lambda: linear(800, 1000),
    "linear, digits, 10 classes": digits_linear,
    "deep linear 8-4-4-1": lambda: deep_linear(4),
    "deep linear 8-16-16-1": lambda: deep_linear(16),
    "squared ReLU, 30 neurons": lambda: squared_relu(30),
    "squared ReLU, 100 neurons": lambda: squared_relu(100),
    "smoothed ReLU 8-12-1": lambda: smooth(12),
    "smoothed ReLU 8-60-1": lambda: smooth(60),
    "digits 65-4-1": lambda: digits(4),
    "digits 65-12-8-1": lambda: digits(12, 8),
}


def row(name: str, problem: gf.Problem, solver, to: float, rtol: float) -> dict:
    arguments = {"saveat": [to], "diagnostics": (), "progress": False, "throw": False}
    traj = gf.integrate(
        problem, to, solver=solver, rtol=rtol, max_seconds=SECONDS, **arguments
    )
    found = {
        "problem": name,
        "n": problem.n,
        "k": problem.k,
        "s asked": to,
        "rtol": rtol,
        "solver": type(solver).__name__,
        "chosen": isinstance(gf.solvers.choose(problem), type(solver)),
        "s": float(traj.s[-1]),
        "seconds": traj.stats["wall_seconds"],
        "steps": traj.stats["steps"],
        "result": traj.result.name,
    }
    print(found, flush=True)
    return found


def rows(name: str) -> list[dict]:
    problem = PROBLEMS[name]()
    outputs = problem.n * math.prod(problem.output_shape)
    dual = name.startswith("linear") and outputs < problem.k
    dense = gf.solvers.DualRodas5P() if dual else gf.solvers.Rodas5P()
    return [
        row(name, problem, solver, *flow)
        for flow in FLOWS
        for solver in (dense, gf.solvers.DeflatedRKC2())
    ]


def main() -> None:
    settings = options(__doc__ or "")
    write(settings.json, [found for name in PROBLEMS for found in rows(name)])


if __name__ == "__main__":
    main()
