"""Does the main job reach its targets? Digits, breast cancer, iris; steps, clock, time.

    python -m benchmarks.main_job --json benchmarks/results/main_job.json

Every line is measured against an answer that the flow does not know: the maximum
margin by non-negative least squares, or the clock of the flow itself.
"""

import jax
import numpy as np

import gradflow as gf

from . import problems
from .common import options, write


def digits(rtol: float) -> dict:
    """Digits to s = 1842: work, clock, certificate."""
    problem = problems.digits()
    traj = gf.integrate(problem, 1842.0, rtol=rtol)
    row = {"problem": "digits 65-64-32-1", "s": 1842.0, "rtol": rtol}
    row |= _counts(traj)
    row["certificate"] = traj.certificate().passed
    return row


def breast_cancer() -> dict:
    """Zero weights to s = 10,000 against the maximum margin."""
    problem = problems.breast_cancer()
    traj = gf.integrate(problem, to=1e4, rtol=1e-6)
    best = gf.oracles.max_margin(problem.x, problem.y).margin
    row = {"problem": "breast cancer, linear", "s": 1e4, "rtol": 1e-6}
    error = abs(float(traj["min_normalized_margin"][-1]) / float(best) - 1)
    return row | _counts(traj) | {"margin error, relative": error}


def iris_direction() -> dict:
    """Setosa against the rest, to s = 1e5: direction against max margin."""
    x, y = gf.datasets.iris()
    problem = gf.Problem(gf.models.Linear(x.shape[1]), x, y)
    traj = gf.integrate(problem, to=1e5, rtol=1e-6)
    best = np.asarray(gf.oracles.max_margin(x, y).direction)
    direction = np.asarray(traj.theta) / np.linalg.norm(traj.theta)
    row = {"problem": "iris, linear", "s": 1e5, "rtol": 1e-6}
    return row | _counts(traj) | {"direction error": np.linalg.norm(direction - best)}


def iris_network(scale: float) -> dict:
    """Two hidden layers of 8, from a smaller and smaller initialisation."""
    x, y = gf.datasets.iris()
    model = gf.models.MLP(
        (x.shape[1], 8, 8, 1),
        gf.models.SmoothReLU(1e-2),
        key=jax.random.key(0),
        scale=scale,
    )
    traj = gf.integrate(gf.Problem(model, x, y), to=1000.0, rtol=1e-5)
    row = {"problem": f"iris 5-8-8-1, scale {scale:g}", "s": 1e3, "rtol": 1e-5}
    return row | _counts(traj) | {"certificate": traj.certificate().passed}


def _counts(traj) -> dict:
    stats = traj.stats
    return {
        "result": traj.result.name,
        "steps": stats["steps"],
        "rejected": stats["rejected_steps"],
        "gradient evaluations": stats["gradient_evaluations"],
        "Jacobian products": stats["jacobian_products"],
        "clock drift": float(np.max(np.abs(traj["clock_drift"]))),
        "clock correction": float(np.max(np.abs(traj["clock_correction"]))),
        "wall seconds": stats["wall_seconds"],
        "compile seconds": stats["compile_seconds"],
    }


def main():
    parsed = options(__doc__ or "")
    rows = [
        *(digits(rtol) for rtol in (1e-4, 4e-5)),
        breast_cancer(),
        iris_direction(),
        *(iris_network(scale) for scale in (1.0, 1e-3, 1e-6)),
    ]
    for row in rows:
        print(f"{row['problem']}:")
        for key, value in row.items():
            shown = f"{value:.4g}" if isinstance(value, float) else value
            print(f"    {key}: {shown}")
    write(parsed.json, rows)


if __name__ == "__main__":
    main()
