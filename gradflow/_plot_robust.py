"""Robust accuracy against the size of the perturbation, along a flow."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Array, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ._plot_theory import _STYLE, _axes
from .diagnostics.robustness import Robustness


def robust_accuracy(
    results: Sequence[Robustness],
    s: Float[Array | np.ndarray, " points"],
    radii: Float[Array | np.ndarray, " radii"],
    *,
    ax: Axes | None = None,
) -> Figure:
    r"""Share of examples that no perturbation of L2 norm $\epsilon$ gets wrong.

    One curve for each point of the flow, from dark to light in their order.

    **Arguments:**

    - `results`: `gf.diagnostics.along(gf.diagnostics.robustness, problem, traj, at)`.
    - `s`: their log-risk times, `traj.s[at]`.
    - `radii`: values of $\epsilon$, in units of the features, at which to evaluate.

    **Raises:** `ValueError` for no results, or for another number of times.

    **Source:** Lyu and Li, Appendix K.2, Figure 8.
    """
    if not results or len(results) != len(s):
        raise ValueError(
            f"`results` has {len(results)} entries and `s` has {len(s)}: pass one or "
            "more results, each with its time."
        )
    colours = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(results)))
    with plt.rc_context(_STYLE):
        ax, figure = _axes(ax, (4.6, 3.4))
        for found, time, colour in zip(results, np.asarray(s), colours):
            ax.plot(radii, found.accuracy(radii), color=colour, label=f"{time:.4g}")
        ax.set_xlabel(r"L2 norm of the perturbation, $\epsilon$")
        ax.set_ylabel("robust accuracy")
        ax.set_ylim(-0.02, 1.02)
        ax.grid(alpha=0.25)
        ax.legend(title=r"$s = \ln(n/L)$", fontsize=7)
    return figure
