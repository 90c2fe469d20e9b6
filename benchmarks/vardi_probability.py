"""How likely is Theorem 3.2? An ensemble of flows from random starts, as one vmap.

Question: two ReLU neurons on the two examples of Theorem 3.2 (Vardi, Shamir and
Srebro), from normal initial weights of variance 1/2 (inner) and 1 (outer). How often
does gradient flow converge to a KKT point of the margin problem that is no local
optimum?

The theorem's own event (neuron 1 active on both examples, neuron 2 on none, v_1 > 0)
has the probability (atan(1/4) / pi)^2 / 2, and twice that for either order of the
neurons: printed beside the measured frequencies, as a lower bound.

Flows run to L = 2 exp(-1000) or to a stationary point, with a smoothed ReLU (1e-3).
Ends are told apart by which neurons are active on which examples; up to five of each
kind are checked by `gf.oracles.local_optimality` with the exact ReLU.

Run: python -m benchmarks.vardi_probability [--json OUT]
"""

import math
import time

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import binomtest

import gradflow as gf
from gradflow._flow import measured_s

from .common import options, write

MEMBERS = 4000
MAX_STEPS = 4000
TO = 1000.0  # ln(n / L) at the end of every flow


def random_starts(count, key):
    """Flat parameters (w_1, w_2, v), shape `(count, 6)`: Xavier's variances."""
    deviation = jnp.array([2**-0.5] * 4 + [1.0] * 2)
    return deviation * jax.random.normal(key, (count, 6))


def flow(problem, theta):
    """Parameters where the flow ends, at s = TO or at a stationary point; steps."""

    def field(t, theta, args):
        del t, args
        _, g = problem.log_risk_and_direction(theta)
        return g / jnp.maximum(jnp.vdot(g, g), 1e-30)

    def stationary(t, theta, args, **kwargs):
        del t, args, kwargs
        _, g = problem.log_risk_and_direction(theta)
        return jnp.linalg.norm(g) * jnp.linalg.norm(theta) < 1e-4

    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        gf.solvers.Rodas5P(),
        measured_s(problem, theta),
        TO,
        1e-4,
        theta,
        stepsize_controller=diffrax.PIDController(rtol=1e-6, atol=1e-9),
        event=diffrax.Event(stationary),
        max_steps=MAX_STEPS,
        throw=False,
    )
    return solution.ys[0], solution.stats["num_steps"]


def activity(problem, theta):
    """Number of examples each neuron is active on, shape `(2,)`, fewest first."""
    w = theta[:4].reshape(2, 2)
    return jnp.sort(jnp.sum(problem.x @ w.T > 0, axis=0))


def theorem_event(problem, theta):
    """Whether Theorem 3.2 speaks of this start, in either order of the neurons."""
    z = problem.x @ theta[:4].reshape(2, 2).T
    on, off = jnp.all(z > 0, axis=0), jnp.all(z < 0, axis=0)
    return jnp.any(on & off[::-1] & (theta[4:] > 0))


def frequency(hits, among=None):
    """Count, share and 95 % interval."""
    count, total = int(np.sum(hits)), len(hits) if among is None else int(np.sum(among))
    interval = binomtest(count, total).proportion_ci()
    share = count / total
    return {"count": count, "share": share, "low": interval.low, "high": interval.high}


def verdicts(problem, ends, chosen):
    """Verdicts on up to five of the chosen ends."""
    return [
        gf.oracles.local_optimality(problem, problem.model(ends[i])).verdict
        for i in np.flatnonzero(chosen)[:5]
    ]


def main():
    arguments = options(__doc__)
    exact = gf.constructions.theorem_3_2().problem
    smooth = gf.constructions.theorem_3_2(activation=gf.models.SmoothReLU(1e-3)).problem
    starts = random_starts(MEMBERS, jax.random.key(0))
    run = jax.jit(jax.vmap(lambda theta: flow(smooth, theta)))
    begun = time.perf_counter()
    ends, steps = jax.block_until_ready(run(starts))
    seconds = time.perf_counter() - begun
    s = math.log(2) - np.asarray(jax.vmap(smooth.log_risk)(ends))
    reached = np.abs(s - TO) < 1
    active = np.asarray(jax.vmap(lambda theta: activity(exact, theta))(ends))
    kinds = {
        "one neuron on both, the other off": (0, 2),
        "both neurons on both": (2, 2),
        "one example each": (1, 1),
    }
    event = np.asarray(jax.vmap(lambda theta: theorem_event(exact, theta))(starts))
    results = {
        "members": MEMBERS,
        "seconds": seconds,
        "unfinished": int(np.sum(np.asarray(steps) >= MAX_STEPS)),
        "theorem's event, formula": (math.atan(0.25) / math.pi) ** 2,
        "theorem's event": frequency(event),
        "zero loss": frequency(reached),
    }
    for name, counts in kinds.items():
        chosen = reached & np.all(active == counts, axis=1)
        results[name] = frequency(chosen)
        results[name + ", given zero loss"] = frequency(chosen, reached)
        results[name + ", verdicts"] = verdicts(exact, ends, chosen)
    known = reached & np.any([np.all(active == c, 1) for c in kinds.values()], axis=0)
    results["other limits"] = frequency(reached & ~known)
    other = np.unique(active[reached & ~known], axis=0).tolist()
    results["other limits, activity"] = other
    for name, value in results.items():
        print(f"{name}: {value}")
    write(arguments.json, results)


if __name__ == "__main__":
    main()
