"""What do the integrator and the network's bookkeeping add to the arithmetic?

    python -m benchmarks.overhead --json benchmarks/results/overhead.json

On the digits network: wall time of a flow over its gradient evaluations (a Jacobian
product counted as two) times the bare gradient, with and without 200 saved points, five
times each; and the rate of a bare gradient over that of its matrix products alone, for
smoothed ReLU, exact ReLU and no activation. What is compared is timed in turns.
"""

import jax
import jax.numpy as jnp
import numpy as np

import gradflow as gf

from .common import (
    CHAINED,
    figure,
    gradient_chain,
    options,
    timed,
    wall_over_gradients,
    write,
)
from .problems import PROBLEMS

REPEATS = 5
WIDTHS = (65, 64, 32, 1)


def integrator() -> list[dict]:
    make, to = PROBLEMS["digits"]
    problem, rows = make(), []
    for name, arguments in (
        ("bare", {"diagnostics": (), "saveat": 2}),
        ("with 200 saved points", {"saveat": 200}),
    ):
        ratios = [
            wall_over_gradients(problem, to, progress=False, **arguments)[0]
            for _ in range(REPEATS)
        ]
        rows.append({"wall / gradients": name, "ratios": sorted(ratios)})
        print(rows[-1], flush=True)
    return rows


def products(x):
    """The matrix products of one gradient, chained as `gradient_chain` does."""
    weights = [jnp.full(shape, 0.01) for shape in zip(WIDTHS, WIDTHS[1:])]

    def once(_, weights):
        signals = [x]
        for weight in weights:
            signals.append(signals[-1] @ weight)
        back, gradient = signals.pop(), []
        for signal, weight in zip(signals[::-1], weights[::-1]):
            gradient.insert(0, signal.T @ back)
            back = back @ weight.T
        return [w + 1e-12 * g for w, g in zip(weights, gradient)]

    chain = jax.jit(lambda w: jax.lax.fori_loop(0, CHAINED, once, w))
    return lambda: chain(weights)


def rates() -> list[dict]:
    x, y = gf.datasets.digits(task="parity")
    plain, rows = products(jnp.asarray(x)), []
    timed(plain)
    operations = 6 * len(x) * sum(a * b for a, b in zip(WIDTHS, WIDTHS[1:]))
    operations -= 2 * len(x) * WIDTHS[0] * WIDTHS[1]  # None back to the inputs.
    for name, activation in (
        ("smoothed ReLU", gf.models.SmoothReLU(1e-2)),
        ("ReLU", gf.models.ReLU()),
        ("none", gf.models.Identity()),
    ):
        model = gf.models.MLP(WIDTHS, activation, key=jax.random.key(0))
        chain = gradient_chain(gf.Problem(model, x, y))
        timed(chain)
        seconds = np.array([(timed(chain), timed(plain)) for _ in range(REPEATS)])
        gradient, alone = np.median(seconds, axis=0)
        rows.append(
            {
                "activation": name,
                "microseconds per gradient": 1e6 * gradient,
                "microseconds of its products": 1e6 * alone,
                "GFLOP/s of the gradient": operations / gradient / 1e9,
                "products / gradient": sorted(seconds[:, 1] / seconds[:, 0]),
            }
        )
        print(rows[-1], flush=True)
    return rows


def plot(flows: list[dict], gradients: list[dict], axes) -> None:
    """Every run's ratio, and what it should be at most or at least."""
    panels = (
        (flows, "wall / gradients", "ratios", 1.05),
        (gradients, "activation", "products / gradient", 0.4),
    )
    for axis, (rows, name, what, aim) in zip(axes, panels):
        for place, row in enumerate(rows):
            axis.plot([place] * len(row[what]), row[what], "o", alpha=0.6)
        axis.axhline(aim, color="grey", linestyle="--", linewidth=1)
        axis.set_xticks(range(len(rows)), [row[name] for row in rows])
        axis.margins(x=0.3)
        axis.set(title=f"aim {aim:g} dashed", ylim=(0, None))
    axes[0].set_ylabel("wall / (work x bare gradient)")
    axes[1].set_ylabel("matrix products alone / gradient")


def main() -> None:
    settings = options(__doc__ or "")
    flows, gradients = integrator(), rates()
    write(settings.json, flows + gradients)
    with figure(settings.json, 2) as axes:
        plot(flows, gradients, axes)


if __name__ == "__main__":
    main()
