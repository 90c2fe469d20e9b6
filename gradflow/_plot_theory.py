"""Pictures of what a network has learnt: prediction surface, saliency, neurons."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Array, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ._compile import jitted
from ._problem import Problem
from .diagnostics.common import refuse_coupled
from .diagnostics.layers import neurons

_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "savefig.dpi": 150,
    "figure.dpi": 110,
}


def prediction_surface(
    problem: Problem,
    model: Any,
    *,
    resolution: int = 200,
    levels: int = 12,
    ax: Axes | None = None,
) -> Figure:
    r"""Contours of the prediction over the plane, with the examples.

    For examples in the plane, or in space with a constant third feature (the appended 1
    that gives a bias). Two classes: $\Phi/\rho^L$ for homogeneous models, with the
    decision boundary as a thick line; several classes: regions by predicted class.

    **Arguments:**

    - `model`: a module, or flat parameters of shape `(k,)`.
    - `resolution`: grid points along each side; `levels`: contours on either side.

    **Raises:** `ValueError` for other examples.

    **Source:** Ji and Telgarsky, Figure 1 and Appendix A.
    """
    theta = problem.theta_of(model)
    x = np.asarray(problem.x)
    bias = x.ndim == 2 and x.shape[1] == 3 and np.ptp(x[:, 2]) == 0
    if x.ndim != 2 or not (x.shape[1] == 2 or bias):
        raise ValueError(
            f"`problem.x` has shape {x.shape}: a prediction surface needs examples in "
            "the plane, (n, 2), or (n, 3) with a constant last feature."
        )
    (left, right), (low, high) = (_padded(x[:, i]) for i in (0, 1))
    first, second = np.meshgrid(
        np.linspace(left, right, resolution), np.linspace(low, high, resolution)
    )
    grid = np.stack([first.ravel(), second.ravel()], axis=1)
    if bias:
        grid = np.column_stack([grid, np.full(len(grid), x[0, 2])])
    out = np.asarray(problem.outputs(theta, jnp.asarray(grid, problem.x.dtype)))
    with plt.rc_context(_STYLE):
        ax, figure = _axes(ax, (4.6, 3.8))
        if out.ndim == 2 and out.shape[1] > 1:
            _draw_classes(ax, first, second, out.argmax(axis=1).reshape(first.shape))
        else:
            scale = float(jnp.linalg.norm(theta)) ** (problem.degree or 0) or 1.0
            _draw_levels(ax, first, second, out.reshape(first.shape) / scale, levels)
        labels = np.asarray(problem.y)
        for value, marker in zip(np.unique(labels), "osD^vP*X<>"):
            of = labels == value
            name = f"label {value:+.0f}" if value < 0 or labels.min() < 0 else value
            ax.scatter(
                x[of, 0], x[of, 1], marker=marker, s=18, c="white", edgecolors="black",
                linewidths=0.8, label=name, zorder=3,
            )  # fmt: skip
        ax.set_xlabel("first feature")
        ax.set_ylabel("second feature")
        ax.legend(loc="upper right", fontsize=7)
    return figure


def _padded(values):
    pad = 0.15 * max(float(np.ptp(values)), 1e-12)
    return float(values.min()) - pad, float(values.max()) + pad


def _draw_levels(ax, first, second, values, levels):
    # Symmetric, so that white is the boundary; the 95 % quantile, because a
    # homogeneous prediction is steep in the corners.
    size = float(np.quantile(np.abs(values), 0.95)) or 1.0
    steps = np.linspace(-size, size, 2 * levels + 1)
    drawn = ax.contourf(first, second, values, steps, cmap="RdBu", extend="both")
    if values.min() < 0 < values.max():
        ax.contour(first, second, values, [0.0], colors="black", linewidths=1.4)
    ax.figure.colorbar(drawn, ax=ax, label=r"prediction $\Phi(x)/\rho^L$")


def _draw_classes(ax, first, second, classes):
    count = int(classes.max()) + 1
    edges = np.arange(count + 1) - 0.5
    drawn = ax.contourf(first, second, classes, edges, cmap="Set3")
    ax.figure.colorbar(drawn, ax=ax, label="predicted class", ticks=range(count))


def saliency(
    problem: Problem, models: Sequence[Any], example: int
) -> Float[np.ndarray, "points ..."]:
    r"""Saliency maps $|\nabla_x p|/\lVert\nabla_x p\rVert$ of an example along a flow.

    Normalised, because the gradient itself grows with the parameters; the direction of
    $\theta$ converges, so the map does (Ji and Telgarsky, Section 1).

    **Arguments:**

    - `models`: modules or flat parameters, in the order of the flow; also an array of
        shape `(points, k)`.
    - `example`: index into `problem.x`.

    **Raises:** `ValueError` for a model that couples examples.
    """
    return np.abs(_margin_directions(problem, models, example))


def _margin_directions(problem, models, example):
    thetas = jnp.stack([problem.theta_of(model) for model in models])
    refuse_coupled(problem, thetas[-1], np.array([example]))
    grads = np.asarray(
        _input_gradients(problem, thetas, problem.x[example], problem.y[example])
    )
    flat = grads.reshape(len(grads), -1)
    norms = np.linalg.norm(flat, axis=1, keepdims=True)
    return (flat / np.where(norms > 0, norms, 1)).reshape(grads.shape)


@jitted
def _input_gradients(problem, thetas, x, y):
    def margin(x, theta):
        out = problem.outputs(theta, x[None])[0]
        return problem.loss.margin(out, y)

    return jax.vmap(jax.grad(margin), in_axes=(None, 0))(x, thetas)


def saliency_figure(
    problem: Problem,
    models: Sequence[Any],
    example: int,
    *,
    s: Float[Array | np.ndarray, " points"] | None = None,
    shape: tuple[int, int] | None = None,
    most: int = 5,
) -> Figure:
    r"""An example, its saliency map at several points of the flow, and its convergence.

    The lower panel shows $1 - \cos$ between the gradient $\nabla_x p$ at each point
    and at the last.

    **Arguments:**

    - `models`: at least two; see `saliency`.
    - `s`: their log-risk times, for titles and axis; numbers of the points otherwise.
    - `shape`: rows and columns of the example as a picture; its own shape, or a single
        row, by default. Features beyond `rows * columns` (a bias column) are left out.
    - `most`: how many maps to show, evenly chosen.
    """
    if len(models) < 2:
        raise ValueError(f"`models` has {len(models)} entries: pass at least two.")
    directions = _margin_directions(problem, models, example)
    where = np.arange(len(models)) if s is None else np.asarray(s)
    name = "point" if s is None else "$s = $"
    flat = directions.reshape(len(directions), -1)
    # For unit vectors 1 - <u, v> = |u - v|^2 / 2, without cancellation.
    distance = np.sum((flat - flat[-1]) ** 2, axis=1) / 2
    shown = np.unique(np.linspace(0, len(models) - 1, most).round().astype(int))
    picture = _picture(np.asarray(problem.x[example]), shape)
    with plt.rc_context(_STYLE):
        figure = plt.figure(figsize=(1.6 * (len(shown) + 1), 3.8), layout="constrained")
        grid = figure.add_gridspec(2, len(shown) + 1)
        _show(figure.add_subplot(grid[0, 0]), picture, "example", "gray_r")
        for column, i in enumerate(shown, start=1):
            image = _picture(np.abs(directions[i]), shape)
            title = f"{name} {where[i]:.4g}"
            _show(figure.add_subplot(grid[0, column]), image, title, "magma")
        ax = figure.add_subplot(grid[1, :])
        ax.semilogy(where[:-1], np.maximum(distance[:-1], 1e-18), marker=".", ms=3)
        if s is not None and where[0] > 0 and where[-1] > 50 * where[0]:
            ax.set_xscale("log")
        ax.set_xlabel("point" if s is None else r"$s = \ln(n/L)$")
        ax.set_ylabel(r"$1 - \cos$ to the last map")
        ax.grid(alpha=0.25)
    return figure


def _picture(values, shape):
    if shape is None:
        return values if values.ndim == 2 else values.reshape(1, -1)
    flat = values.ravel()
    if flat.size < shape[0] * shape[1]:
        raise ValueError(f"`shape={shape}` needs more than {flat.size} features.")
    return flat[: shape[0] * shape[1]].reshape(shape)


def _show(ax, image, title, colours):
    ax.imshow(image, cmap=colours, aspect="equal" if image.shape[0] > 1 else "auto")
    ax.set_title(title)
    ax.set_xticks([])
    ax.set_yticks([])


def neuron_directions(
    problem: Problem,
    models: Sequence[Any],
    *,
    layer: int = 0,
    signs: Float[Array | np.ndarray, " width"] | None = None,
    ax: Axes | None = None,
) -> Figure:
    r"""Directions of a layer's neurons along the flow, on the circle.

    The angle is that of $w_j$ (of its first two coordinates, where there is a third for
    the bias); the radius grows from the first model (inside) to the last (on the
    circle), where a dot's area is the neuron's share $\lVert w_j\rVert^2/\rho^2$. The
    examples' own directions are ticks outside.

    **Arguments:**

    - `models`: modules or flat parameters, in the order of the flow.
    - `layer`: as in `gf.diagnostics.neurons`; its neurons have two or three inputs.
    - `signs`: outer weights, for red (negative) and blue (positive).

    **Source:** Ji and Telgarsky, Proposition 4.3 (4.6 in the full version).
    """
    found = [neurons(problem, model, layer=layer) for model in models]
    rows = np.stack([f.directions for f in found])
    if rows.shape[2] not in (2, 3):
        raise ValueError(
            f"the neurons of layer {layer} have {rows.shape[2]} inputs: directions on "
            "the circle need two, or three with a bias."
        )
    angles = np.unwrap(np.arctan2(rows[:, :, 1], rows[:, :, 0]), axis=0)
    radii = np.linspace(0.35, 1, len(found)) if len(found) > 1 else np.ones(1)
    colours = np.full(rows.shape[1], "tab:grey", dtype=object)
    if signs is not None:
        colours = np.where(np.asarray(signs) > 0, "tab:blue", "tab:red")
    x = np.asarray(problem.x)
    with plt.rc_context(_STYLE):
        if ax is None:
            figure = plt.figure(figsize=(4.2, 4.2), layout="constrained")
            ax = figure.add_subplot(projection="polar")
        for j, colour in enumerate(colours):
            ax.plot(angles[:, j], radii, color=colour, lw=0.6, alpha=0.6)
        ax.scatter(
            angles[-1], np.ones(rows.shape[1]), s=4 + 400 * found[-1].shares,
            c=list(colours), alpha=0.7, edgecolors="black", linewidths=0.4, zorder=3,
        )  # fmt: skip
        if x.ndim == 2 and x.shape[1] == rows.shape[2]:
            marks = np.arctan2(x[:, 1], x[:, 0])
            for value, marker in ((1, "+"), (-1, "_")):
                of = np.asarray(problem.y) == value
                ax.scatter(marks[of], np.full(of.sum(), 1.12), marker=marker, c="black")
        ax.set_ylim(0, 1.18)
        ax.set_yticks([])
        ax.set_title(r"neuron directions, dots: share $\|w_j\|^2/\rho^2$")
        figure = ax.figure
    assert isinstance(figure, Figure)
    return figure


def _axes(ax, size) -> tuple[Axes, Figure]:
    if ax is None:
        figure, ax = plt.subplots(figsize=size, layout="constrained")
        return ax, figure
    figure = ax.figure
    assert isinstance(figure, Figure)
    return ax, figure
