"""How fast do smoothed flows approach the one that slides along kinks?

    python -m benchmarks.sliding --json benchmarks/results/sliding.json

`gf.diagnostics.SlidingExample`: two ReLU neurons that slide from s = 1 on, with the
closed form of the differential inclusion. For widths eps of the smoothing: the relative
distance of theta from it at s = 20 and the largest over 0.5 <= s <= 20; work and steps
of `Rodas5P` at rtol 1e-8.
"""

import numpy as np

import gradflow as gf

from .common import options, work, write

WIDTHS = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 1e-4)


def main() -> None:
    settings = options(__doc__ or "")
    example, rows = gf.diagnostics.SlidingExample(), []
    for eps in WIDTHS:
        traj = gf.integrate(
            example.problem(eps),
            to=20.0,
            rtol=1e-8,
            saveat=100,
            diagnostics=[gf.diagnostics.standard, gf.diagnostics.parameters],
            progress=False,
        )
        exact = example.solution(traj.s)
        gaps = np.linalg.norm(traj["theta"] - exact, axis=1)
        gaps /= np.linalg.norm(exact, axis=1)
        row = {
            "eps": eps,
            "error at s = 20": gaps[-1],
            "largest error": gaps.max(),
            "steps": traj.stats["steps"],
            "work": work(traj.stats),
        }
        rows.append(row)
        print(row, flush=True)
    write(settings.json, rows)


if __name__ == "__main__":
    main()
