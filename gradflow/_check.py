"""What a certificate is made of: rows that compare a value with what is expected."""

from typing import NamedTuple

import numpy as np


class Check(NamedTuple):
    """One line of a certificate.

    `value` is measured, `expected` says in words what it is to be (`"0"`, `"<= 1"`),
    and it may miss that by `tolerance`, in its own units.
    """

    name: str
    value: float
    expected: str
    tolerance: float
    passed: bool
    source: str


class Certificate:
    """A table of checks; printable.

    **Attributes:** `rows` (`Check`s), `passed` (all of them).
    """

    def __init__(self, rows: list[Check]):
        self.rows = rows

    @property
    def passed(self) -> bool:
        """Whether every check that applies holds."""
        return all(row.passed for row in self.rows)

    def __getitem__(self, name: str) -> Check:
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"no check {name!r}; there are {[r.name for r in self.rows]}")

    def __repr__(self) -> str:
        cells = [(row.name, *_cells(row), row.source) for row in self.rows]
        wide = [max(len(cell[i]) for cell in cells) for i in range(4)]
        lines = [f"Certificate: {'passed' if self.passed else 'FAILED'}"]
        for row, (name, value, expected, tolerance, source) in zip(self.rows, cells):
            lines.append(
                f"  {'pass' if row.passed else 'FAIL'}  {name:<{wide[0]}}  "
                f"{value:>{wide[1]}}  {expected:<{wide[2]}}  "
                f"{tolerance:<{wide[3]}}  {source}"
            )
        return "\n".join(lines)


def _cells(row: Check) -> tuple[str, str, str]:
    tolerance = f"+- {row.tolerance:.2g}" if row.tolerance else ""
    return f"{row.value:.6g}", row.expected, tolerance


def at_most(name, value, bound, source, *, tolerance=0.0) -> Check:
    """The value is to be at most `bound`, within `tolerance`; NaN fails."""
    good = bool(value <= bound + tolerance)
    return Check(name, float(value), f"<= {bound:.6g}", float(tolerance), good, source)


def at_least(name, value, bound, source, *, tolerance=0.0) -> Check:
    """The value is to be at least `bound`, within `tolerance`; NaN fails."""
    good = bool(value >= bound - tolerance)
    return Check(name, float(value), f">= {bound:.6g}", float(tolerance), good, source)


def near(name, value, expected, tolerance, source) -> Check:
    """The value is to be `expected`, within `tolerance`; NaN fails."""
    good = bool(abs(value - expected) <= tolerance)
    # Adding zero turns -0.0 into 0.0.
    text = f"{expected + 0.0:.6g}"
    return Check(name, float(value), text, float(tolerance), good, source)


def after_separation(traj) -> np.ndarray:
    """Saved points with L < l(0), where the theory's assertions begin."""
    return traj["log_risk"] < traj.config["log_loss_at_zero"]


def eps_of(traj) -> float:
    """Relative rounding of the run: that of the lowest precision in the model."""
    return traj.config.get("rounding", float(np.finfo(traj.config["dtype"]).eps))


def clock_rounding(traj, s) -> np.ndarray:
    """By how much the log-risk times `s` of the run may be off through rounding."""
    known = traj.config.get("clock_rounding")
    if known is None:
        return np.asarray(eps_of(traj) * np.abs(s))
    return np.asarray(np.exp(np.interp(s, traj.config["saves"], np.log(known))))
