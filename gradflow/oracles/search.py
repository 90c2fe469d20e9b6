"""Projected search for feasible parameters of smaller norm near a point."""

import dataclasses
import functools

import numpy as np
from scipy.optimize import minimize

from .program import MarginProgram

RADII = (1e-1, 1e-2, 1e-3)  # relative to the norm of the point
_LEAST_DECREASE = 1e-10  # relative decrease of the squared norm, far above rounding


@dataclasses.dataclass(frozen=True)
class Witness:
    """Feasible `u` with `decrease` = 1 - |u|^2 / |start|^2 within `distance`."""

    u: np.ndarray
    decrease: float
    distance: float


def search(
    program: MarginProgram,
    start: np.ndarray,
    directions: list[np.ndarray],
    *,
    n_random: int,
    seed: int,
) -> list[Witness]:
    """The best witness within each radius, largest first; stops where there is none.

    Sequential quadratic programming from the given directions, then random ones. Each
    witness is scaled along its ray to be feasible and its constraints evaluated anew.
    """
    rng = np.random.default_rng(seed)
    rho = np.linalg.norm(start)
    random = rng.standard_normal((n_random, len(start)))
    starts = [d / np.linalg.norm(d) for d in [*directions, *random]]
    found: list[Witness] = []
    for radius in RADII:
        best = None
        for direction in starts:
            u = _descend(program, start, direction, radius * rho)
            witness = _verified(program, u, start)
            if witness is not None and witness.distance <= 1.5 * radius:
                if best is None or witness.decrease > best.decrease:
                    best = witness
        if best is None:
            break
        found.append(best)
        # What worked at one radius is tried first at the next.
        starts.insert(0, (best.u - start) / np.linalg.norm(best.u - start))
    return found


def _descend(program, start, direction, radius):
    """Least norm in a ball around `start`, from a point half way out."""
    rho2 = start @ start
    scale = radius * np.sqrt(rho2)

    def at(e):
        return start + radius * e

    @functools.lru_cache(maxsize=1)
    def constraints(e: bytes):
        # Values and gradients come together, and are asked for one after the other.
        return program.constraints_and_jacobian(at(np.frombuffer(e)))

    result = minimize(
        lambda e: (at(e) @ at(e) - rho2) / (2 * scale),
        direction / 2,
        jac=lambda e: at(e) * radius / scale,
        method="SLSQP",
        constraints=[
            {
                "type": "ineq",
                "fun": lambda e: (constraints(e.tobytes())[0] - 1) / radius,
                "jac": lambda e: constraints(e.tobytes())[1],
            },
            {"type": "ineq", "fun": lambda e: 1 - e @ e, "jac": lambda e: -2 * e},
        ],
        options={"maxiter": 60, "ftol": 1e-12},
    )
    return at(result.x)


def _verified(program, u, start):
    least = np.min(program.values(u)) if np.all(np.isfinite(u)) else -np.inf
    if least <= 0:
        return None
    if least < 1:
        if not program.degree:
            return None
        # A little more than needed, so that rounding leaves it feasible.
        u = u * (1 / least) ** (1 / program.degree) * (1 + 1e-14)
        if np.min(program.values(u)) < 1 - 1e-13:
            return None
    decrease = 1 - (u @ u) / (start @ start)
    if decrease < _LEAST_DECREASE:
        return None
    distance = np.linalg.norm(u - start) / np.linalg.norm(start)
    return Witness(u, float(decrease), float(distance))
