"""Pictures: what they draw, against the functions that they picture."""

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest

import gradflow as gf

from .helpers import separable


@pytest.fixture(autouse=True)
def closing():
    yield
    plt.close("all")


def planar(bias):
    x, y = separable(n=10, d=2)
    if bias:
        x = jnp.concatenate([x, jnp.ones((10, 1))], axis=1)
    model = gf.models.TwoLayer(x.shape[1], 5, key=jax.random.key(0))
    return gf.Problem(model, x, y), model


def test_boundary_of_the_prediction_surface_is_where_the_model_vanishes():
    problem, model = planar(bias=True)
    figure = gf.plot.prediction_surface(problem, model, resolution=80)
    ax = figure.axes[0]
    boundary = ax.collections[1]  # filled contours come first
    vertices = np.concatenate([p.vertices for p in boundary.get_paths()])
    points = np.column_stack([vertices, np.ones(len(vertices))])
    values = np.asarray(jax.vmap(model)(jnp.asarray(points)))
    assert len(vertices) > 20
    # Linear interpolation on an 80 x 80 grid.
    assert np.max(np.abs(values)) < 0.02 * np.max(
        np.abs(problem.outputs(problem.theta))
    )
    counts = [np.shape(c.get_offsets())[0] for c in ax.collections[2:]]
    assert sum(counts) == 10


def test_prediction_surface_of_several_classes_and_of_high_dimension():
    x = jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    problem = gf.Problem(gf.models.Linear(2, 3, key=jax.random.key(0)), x, [0, 1, 2])
    gf.plot.prediction_surface(problem, problem.theta, resolution=20)
    problem = gf.Problem(gf.models.Linear(4), *separable(d=4))
    with pytest.raises(ValueError, match="in the plane"):
        gf.plot.prediction_surface(problem, problem.theta)


def test_margins_and_predictions_of_zero_weights():
    x, y = separable(n=4, d=2)
    problem = gf.Problem(gf.models.Linear(2), x, y)
    assert np.all(problem.theta == 0)
    gf.plot.prediction_surface(problem, problem.theta, resolution=5)
    traj = gf.integrate(problem, to=3.0, saveat=4, progress=False)
    low, high = gf.plot.margins(traj).axes[0].get_ylim()
    drawn = traj["normalized_margins"][1:]
    assert low <= drawn.min() and drawn.max() <= high


def test_saliency_is_the_normalised_gradient_of_the_margin():
    problem, model = planar(bias=True)
    thetas = jnp.stack([problem.theta, 3 * problem.theta, -problem.theta])
    found = gf.plot.saliency(problem, list(thetas), 4)
    step = 1e-6 * np.eye(3)
    x = np.asarray(problem.x[4])
    slopes = np.array(
        [
            (float(model(jnp.asarray(x + d))) - float(model(jnp.asarray(x - d))))
            for d in step
        ]
    )
    expected = np.abs(slopes) / np.linalg.norm(slopes)
    np.testing.assert_allclose(found[0], expected, atol=1e-7)
    # A multiple of the parameters has the same map.
    np.testing.assert_allclose(found[1], found[0], atol=1e-14)


def test_saliency_figure_shows_maps_and_convergence():
    problem, _ = planar(bias=False)
    thetas = [problem.theta * c + jnp.ones(problem.k) for c in (0.1, 1.0, 10.0, 100.0)]
    s = np.array([1.0, 10.0, 100.0, 1000.0])
    figure = gf.plot.saliency_figure(problem, thetas, 0, s=s, shape=(1, 2), most=3)
    images = [image for ax in figure.axes for image in ax.get_images()]
    assert len(images) == 4
    line = figure.axes[-1].get_lines()[0]
    np.testing.assert_array_equal(line.get_xdata(), s[:-1])
    values = np.asarray(line.get_ydata())
    assert values[-1] < values[0]
    with pytest.raises(ValueError, match="at least two"):
        gf.plot.saliency_figure(problem, thetas[:1], 0)
    with pytest.raises(ValueError, match="features"):
        gf.plot.saliency_figure(problem, thetas, 0, shape=(8, 8))


def test_neuron_directions_end_at_the_angles_of_the_weights():
    problem, model = planar(bias=False)
    thetas = [problem.theta, 2 * problem.theta]
    signs = np.array([1.0, -1, 1, -1, 1])
    figure = gf.plot.neuron_directions(problem, thetas, signs=signs)
    dots = np.asarray(figure.axes[0].collections[0].get_offsets())
    w = np.asarray(model.inner.weight)
    expected = np.arctan2(w[:, 1], w[:, 0])
    np.testing.assert_allclose(np.cos(dots[:, 0] - expected), 1, atol=1e-12)
    wide = gf.Problem(gf.models.TwoLayer(4, 3, key=jax.random.key(0)), *separable(d=4))
    with pytest.raises(ValueError, match="circle"):
        gf.plot.neuron_directions(wide, [wide.theta])


def test_robust_accuracy_curves_along_a_flow():
    x, y = separable(n=10, d=2)
    model = gf.models.MLP((2, 6, 1), gf.models.SmoothReLU(0.1), key=jax.random.key(0))
    problem = gf.Problem(model, x, y)
    traj = gf.integrate(
        problem, to=100.0, saveat=12, diagnostics=(gf.diagnostics.parameters,)
    )
    at, radii = [0, 4, -1], np.linspace(0, 2.5, 60)
    results = gf.diagnostics.along(gf.diagnostics.robustness, problem, traj, at)
    figure = gf.plot.robust_accuracy(results, traj.s[at], radii)
    curves = [np.asarray(line.get_ydata()) for line in figure.axes[0].get_lines()]
    for curve, i in zip(curves, at, strict=True):
        values = np.asarray(problem.margins(jnp.asarray(traj["theta"][i])))
        assert curve[0] == np.mean(values > 0)
        assert np.all(np.diff(curve) <= 0) and curve[-1] < 1
    assert curves[-1][0] == 1
    legend = figure.axes[0].get_legend()
    assert legend.get_texts()[-1].get_text() == "100"
    with pytest.raises(ValueError, match="each with its time"):
        gf.plot.robust_accuracy(results, traj.s, radii)
