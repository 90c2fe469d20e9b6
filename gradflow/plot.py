"""Figures of trajectories. Each function returns a Matplotlib figure.

Losses appear as ln(n/L) or log10 L: float64 cannot hold 1e-800, and neither can a
logarithmic axis.
"""

import contextlib
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ._plot_robust import robust_accuracy as robust_accuracy
from ._plot_theory import (
    neuron_directions as neuron_directions,
    prediction_surface as prediction_surface,
    saliency as saliency,
    saliency_figure as saliency_figure,
)
from ._trajectory import Trajectory

_STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "font.size": 9,
    "axes.titlesize": 9,
    "savefig.dpi": 150,
    "figure.dpi": 110,
}


def _margin_name(traj: Trajectory) -> str:
    for name in ("normalized_margins", "median_normalized_margins"):
        if name in traj:
            return name
    raise ValueError(
        "the trajectory has no normalised margins: integrate with the standard "
        "diagnostics (`diagnostics=None`)"
    )


def margins(traj: Trajectory, *, ax: Axes | None = None, most: int = 400) -> Figure:
    """Normalised margin of every example against ln(n/L).

    One line per example, coloured by its rank in the final margin, smallest darkest;
    the least margin is drawn on top. With more than `most` examples, evenly ranked ones
    are shown.

    **Source:** Ji and Telgarsky, Figure 2 and Appendix A.
    """
    name = _margin_name(traj)
    values = traj[name]
    order = np.argsort(values[-1])
    count = values.shape[1]
    shown = order
    if count > most:
        shown = order[np.unique(np.linspace(0, count - 1, most).astype(int))]
    with plt.rc_context(_STYLE):
        ax, figure = _axes(ax, (6.0, 3.8))
        colours = plt.get_cmap("viridis")(np.linspace(0, 0.95, len(shown)))
        for index, colour in zip(shown[::-1], colours[::-1]):
            ax.plot(traj.s, values[:, index], color=colour, lw=0.5, alpha=0.7)
        least = values.min(axis=1)
        ax.plot(traj.s, least, color="crimson", lw=1.4, label="least margin")
        # The first points, where theta is small, may dwarf everything else.
        late = values[len(values) // 10 :]
        late = late[np.isfinite(late)]
        if late.size:  # None at zero weights.
            low, high = late.min(), late.max()
            ax.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
        by = r"\rho^L" if name == "normalized_margins" else r"\mathrm{median}"
        ax.set_ylabel(rf"margin $p_i / {by}$")
        _log_risk_axis(ax, traj)
        ax.legend(loc="upper left", framealpha=0.9)
        ax.set_title(_margin_title(traj, len(shown), count), pad=8)
    return figure


def _margin_title(traj, shown, count) -> str:
    which = f"{count} examples" if shown == count else f"{shown} of {count} examples"
    return f"margins of {which}, sorted by their final value"


def dashboard(traj: Trajectory) -> Figure:
    r"""Six panels: margins, alignment, $J$, norms, path length, clock.

    $J$ is shown with its limit $(aL)^2$, $a$ the final normalised smoothed margin
    (Ji and Telgarsky, Section 4.1); panels whose quantity is absent are left out.
    """
    panels = [
        (draw, needs)
        for draw, needs in (
            (_smoothed, "normalized_smoothed_margin"),
            (_alignment, "misalignment"),
            (_j_potential, "j_potential"),
            (_norms, "rho"),
            (_path_length, "path_length"),
            (_correction, "clock_correction"),
        )
        if needs in traj
    ]
    if not panels:
        raise ValueError(
            "the trajectory holds nothing to show: integrate with the standard "
            "diagnostics (`diagnostics=None`)"
        )
    rows = -(-len(panels) // 3)
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(
            rows, 3, figsize=(10.0, 2.8 * rows), layout="constrained", squeeze=False
        )
        for ax, (draw, _) in zip(axes.flat, panels):
            draw(ax, traj)
            ax.set_xlabel(r"$s = \ln(n/L)$")
        for ax in axes.flat[len(panels) :]:
            ax.set_visible(False)
    return figure


def _smoothed(ax, traj):
    late = traj["log_risk"] < traj.config["log_loss_at_zero"]
    s = traj.s[late]
    ax.plot(s, traj["min_normalized_margin"][late], label=r"$\min_i p_i / \rho^L$")
    ax.plot(s, traj["normalized_smoothed_margin"][late], label=r"$\alpha / \rho^L$")
    ax.set_title("normalised margin (from $L < \\ell(0)$)")
    ax.legend(frameon=False, loc="lower right")


def _alignment(ax, traj):
    ax.semilogy(traj.s, np.maximum(traj["misalignment"], 1e-17))
    ax.set_title(r"misalignment $1 - \cos(\theta, -\nabla L)$")


def _j_potential(ax, traj):
    late = traj["log_risk"] < traj.config["log_loss_at_zero"]
    limit = (traj["normalized_smoothed_margin"][-1] * traj.config["degree"]) ** 2
    with contextlib.suppress(ValueError):
        ax.set_yscale("log")
    ax.plot(traj.s[late], traj["j_potential"][late], label="$J$")
    ax.axhline(limit, color="k", ls="--", lw=0.9, label="$(aL)^2$")
    ax.set_title(r"$J = \|\nabla\alpha\|^2 / \rho^{2L-2}$")
    ax.legend(frameon=False)


def _norms(ax, traj):
    ax.plot(traj.s, traj["rho"], color="k", label=r"$\rho$")
    if traj["layer_norm"].shape[1] <= 8:
        for name, norm in zip(traj.config["layers"], traj["layer_norm"].T):
            ax.plot(traj.s, norm, lw=1, label=name)
    ax.set_title("norms")
    ax.legend(frameon=False, fontsize=7)


def _path_length(ax, traj):
    ax.plot(traj.s, traj["path_length"])
    ax.set_title(r"path length of $\theta / \rho$")


def _correction(ax, traj):
    ax.plot(traj.s, traj["clock_correction"])
    ax.set_title("clock correction (measured - integrated)")


def _axes(ax: Axes | None, size) -> tuple[Axes, Any]:
    if ax is None:
        figure, ax = plt.subplots(figsize=size, layout="constrained")
        return ax, figure
    return ax, ax.figure


def _log_risk_axis(ax, traj):
    """ln(n/L) below, log10 L above."""
    log_n, ln10 = np.log(traj.config["n"]), np.log(10)
    ax.set_xlabel(r"$s = \ln(n/L)$")
    ax.margins(x=0)
    above = ax.secondary_xaxis(
        "top",
        functions=(lambda s: (log_n - s) / ln10, lambda v: log_n - v * ln10),
    )
    above.set_xlabel(r"$\log_{10} L$")
