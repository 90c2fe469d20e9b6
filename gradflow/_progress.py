"""The progress line of `integrate`."""

import math
import sys

from tqdm import tqdm

from ._state import solver_counts

_FORMAT = "s = {n:.6g}/{total:.6g} |{bar}| {desc} [{elapsed}<{remaining}]"


class Progress:
    """Shows s, log10 L, normalised margin, steps and gradients a second, time left."""

    def __init__(self, shown: bool | None, settings):
        shown = sys.stderr.isatty() if shown is None else shown
        self.bar = None
        self.first: tuple[float, int, int] | None = None
        self.solver = settings.solver
        self.log_n = math.log(settings.flow.problem.n)
        if shown:
            self.bar = tqdm(total=float(settings.saves[-1]), bar_format=_FORMAT)

    def update(self, carry, points, seconds: float):
        """Redraws the line after a chunk; `points` are those saved so far."""
        if self.bar is None:
            return
        s, last = float(carry.s), points.last()
        parts = [f"log10 L = {(self.log_n - s) / math.log(10):.4g}"]
        if "min_normalized_margin" in last:
            parts.append(f"margin = {float(last['min_normalized_margin']):.4g}")
        counts = solver_counts(self.solver, carry.solver_state)
        work = int(counts.get("gradient_evaluations", 0))
        # A resumed run has steps behind it that this clock has not seen.
        self.first = self.first or (seconds, int(carry.steps), work)
        span = seconds - self.first[0]
        if span > 0:
            parts.append(f"{(int(carry.steps) - self.first[1]) / span:.3g} steps/s")
            if "gradient_evaluations" in counts:
                parts.append(f"{(work - self.first[2]) / span:.4g} gradients/s")
        self.bar.set_description_str(", ".join(parts), refresh=False)
        self.bar.n = min(max(s, 0.0), self.bar.total)
        self.bar.refresh()

    def close(self):
        if self.bar is not None:
            self.bar.close()
