"""Do flows end where Vardi, Shamir and Srebro say, with the optimality they say?

Every row of Tables 1 and 2 that has a construction: a flow from the theorem's start to
L = n exp(-1000) (Theorem 3.2: exp(-1e6), Theorem 3.1: exp(-1e5), see below), the angle
between its end and the limit in closed form, and the verdict of `gf.oracles` on it.
With "not locally optimal" comes the relative decrease of the squared norm at the
nearest witness, a thousandth of the norm away.

Directions approach their limits at different speeds: parameters that stop growing (a
neuron that no example activates, weights off the support vectors) leave an error
of s^(-1/depth), whatever the initial scale. Theorem 3.1 is therefore shown on iris in
two principal components, which its two support vectors span (`deep_linear` has all five
features too). Saddles are left again at a power of s, from rounding errors.

Run: python -m benchmarks.vardi_tables [--json OUT]
"""

import jax
import numpy as np

import gradflow as gf

from .common import options, write
from .deep_linear import reduced

# The rows whose limit is approached slowly.
FAR = {"Theorem 3.2": 1e6, "Theorem 3.1": 1e5}


def rows():
    con = gf.constructions
    linear, relu = gf.models.Identity(), gf.models.ReLU()
    x, y = reduced(*gf.datasets.iris()[:2], 2)
    key = jax.random.key(0)
    yield "linear", con.theorem_3_1(x, y, (2, 4, 1), key=key, scale=1e-4)
    yield "linear", con.theorem_3_1(x, y, (2, 4, 3, 1), key=key, scale=1e-3)
    yield "ReLU", con.theorem_3_2()
    for name, activation in (("linear", linear), ("ReLU", relu)):
        yield name, con.theorem_4_1(activation)
    yield "linear", con.theorem_4_2_1()
    yield "ReLU", con.theorem_4_2_2()
    yield "ReLU", con.theorem_4_3()
    for name, activation in (("linear", linear), ("ReLU", relu)):
        yield name, con.theorem_4_4(activation)
    for name, activation in (("linear", linear), ("ReLU", relu)):
        yield name, con.theorem_5_1(3, activation)
    yield "linear", con.theorem_5_1(4, linear)
    yield "linear", con.theorem_5_2(0)
    yield "linear", con.theorem_5_2(1)
    yield "ReLU", con.theorem_5_3()
    yield "ReLU", con.theorem_5_4()


def angle_to_limit(c, model):
    """Radians; for Theorem 3.1, whose limit may be rotated, the predictor's."""
    if c.limit is None:
        return float(
            np.arccos(min(1.0, gf.oracles.deep_linear(c.problem, model).cosine))
        )
    theta = np.asarray(c.problem.theta_of(model))
    limit = np.asarray(c.limit)
    difference = theta / np.linalg.norm(theta) - limit / np.linalg.norm(limit)
    return 2 * float(np.arcsin(np.linalg.norm(difference) / 2))


def judge(name, c):
    to = FAR.get(c.theorem, 1e3)
    traj = gf.integrate(c.problem, to=to, rtol=1e-6, saveat=2, diagnostics=())
    if c.layer is None:
        found = gf.oracles.local_optimality(c.problem, traj.model)
    else:
        found = gf.oracles.layer_optimality(c.problem, traj.model, c.layer)
    expected = "locally optimal" if c.locally_optimal else "not locally optimal"
    return {
        "theorem": c.theorem + ("" if c.layer is None else f", layer {c.layer}"),
        "network": name,
        "depth": len(c.problem.layout.shapes),
        "s": to,
        "steps": int(traj.stats["steps"]),
        "angle": angle_to_limit(c, traj.model),
        "verdict": found.verdict,
        "expected": expected,
        "agrees": found.verdict == expected,
        "global": found.global_optimum,
        "decrease": found.decrease,
        "reason": found.reason,
    }


def main():
    arguments = options(__doc__ or "")
    results = []
    for name, c in rows():
        row = judge(name, c)
        results.append(row)
        print(
            f"{row['theorem']:22} {name:6} depth {row['depth']} s {row['s']:.0e} "
            f"steps {row['steps']:4} angle {row['angle']:.1e} {row['verdict']:19} "
            f"{'as stated' if row['agrees'] else 'NOT as stated'} "
            f"decrease {row['decrease']:.1e}"
        )
    write(arguments.json, results)


if __name__ == "__main__":
    main()
