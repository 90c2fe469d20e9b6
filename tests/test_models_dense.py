"""Dense networks: degrees, layerwise degrees, the smoothing formula, no kinks left."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradflow as gf

from .model_properties import check_degrees

M = gf.models
KEY = jax.random.key(0)
SMOOTH = M.SmoothReLU(0.3)
# model, degree, degree in each trained array
DENSE = {
    "linear3": (M.Linear(4, 3, key=KEY), 1, (1,)),
    "deep_linear": (M.DeepLinear((4, 3, 2), key=KEY), 2, (1, 1)),
    "relu": (M.MLP((4, 6, 5, 1), key=KEY), 3, (1, 1, 1)),
    "smooth": (M.MLP((4, 6, 5, 3, 1), SMOOTH, key=KEY), 4, (1, 1, 1, 1)),
    "smooth_leaky": (M.MLP((4, 6, 5, 2), M.SmoothLeakyReLU(0.3), key=KEY), 3, (1,) * 3),
    "smooth_abs": (M.MLP((4, 6, 5, 1), M.SmoothAbs(0.3), key=KEY), 3, (1, 1, 1)),
    "quadratic": (M.MLP((4, 6, 5, 1), M.Power(2), key=KEY), 7, (4, 2, 1)),
    "squared_relu": (M.MLP((4, 6, 5, 1), M.PowerReLU(2), key=KEY), 7, (4, 2, 1)),
    "two_layer": (M.TwoLayer(4, 8, key=KEY), 2, (2,)),
    "two_layer_trained": (
        M.TwoLayer(4, 8, SMOOTH, key=KEY, train_outer=True, mean_field=True),
        2,
        (1, 1),
    ),
}
X = jax.random.normal(jax.random.key(1), (5, 4))


@pytest.mark.parametrize("name", DENSE)
def test_degrees(name):
    model, degree, layer_degrees = DENSE[name]
    check_degrees(model, degree, layer_degrees, X)


def test_problem_measures_the_degrees():
    model, degree, layer_degrees = DENSE["squared_relu"]
    problem = gf.Problem(model, X, jnp.where(X[:, 0] > 0, 1.0, -1.0))
    assert problem.degree == degree
    assert problem.layer_degrees == layer_degrees


@pytest.mark.parametrize("d", [1, 7, 8, 31])
def test_linear_model_written_out(d):
    """Features are filled up to a multiple of eight within, which nothing shows."""
    x = jax.random.normal(jax.random.key(2), (5, d))
    for classes in (1, 3):
        model = M.Linear(d, classes, key=KEY)
        expected = np.asarray(x) @ np.asarray(model.weight).T
        np.testing.assert_allclose(
            jax.vmap(model)(x), expected[:, 0] if classes == 1 else expected, rtol=1e-13
        )
        slope = jax.grad(lambda m: jnp.sum(m(x[0])))(model).weight
        np.testing.assert_allclose(slope, np.tile(x[0], (classes, 1)), rtol=1e-15)
        with pytest.raises(TypeError, match="dot_general"):
            model(jnp.ones(d + 1))


@pytest.mark.parametrize("train_outer", [False, True])
def test_two_layer_network_written_out(train_outer):
    """A mean over neurons with `mean_field`, a sum without; signs fixed or trained."""
    for mean_field in (False, True):
        model = M.TwoLayer(
            4, 8, key=KEY, train_outer=train_outer, mean_field=mean_field
        )
        outer = model.outer.value if isinstance(model.outer, gf.Fixed) else model.outer
        np.testing.assert_array_equal(np.abs(outer), 1)
        y = jnp.where(X[:, 0] > 0, 1.0, -1.0)
        problem = gf.Problem(model, X, y, homogeneous=False)
        assert problem.k == 8 * (4 + train_outer)
        w = np.asarray(model.inner.weight)
        terms = [a * np.maximum(X @ v, 0) ** 2 for a, v in zip(np.asarray(outer), w)]
        expected = sum(terms) / (8 if mean_field else 1)
        np.testing.assert_allclose(
            problem.outputs(problem.theta), expected, rtol=1e-12, atol=1e-14
        )


def naive_smooth_mlp(weights, x, eps, delta):
    """Neuron by neuron, r = eps |w| sqrt(|h|^2 + delta^2 |x|^2 prod |W|^2 / fan-in)."""
    h, product = np.asarray(x), float(np.sum(np.asarray(x) ** 2))
    for weight in weights[:-1]:
        new = []
        for w in weight:
            z = float(w @ h)
            r = eps * np.linalg.norm(w) * np.sqrt(h @ h + delta**2 * product)
            u = z / r
            new.append(
                z if u > 1 else 0.0 if u < -1 else r * (1 + u) ** 3 * (3 - u) / 16
            )
        product *= np.sum(weight**2) / weight.shape[1]
        h = np.array(new)
    return weights[-1] @ h


def test_smooth_mlp_is_the_formula_written_out():
    model = M.MLP((4, 6, 5, 2), M.SmoothReLU(0.3, delta=0.2), key=KEY)
    weights = [np.asarray(layer.weight) for layer in model.layers]
    call = jax.jit(lambda model, x: model(x))
    for x in X:
        expected = naive_smooth_mlp(weights, x, 0.3, 0.2)
        np.testing.assert_allclose(call(model, x), expected, rtol=1e-13, atol=1e-15)


def test_smoothing_error_is_proportional_to_eps():
    def outputs(eps):
        model = M.MLP((4, 16, 16, 1), M.SmoothReLU(eps), key=KEY)
        return jax.jit(jax.vmap(model))(
            jnp.tile(X, (8, 1)) + 0.1 * jnp.arange(40.0)[:, None]
        )

    exact = outputs(0.0)
    errors = [
        float(jnp.max(jnp.abs(outputs(eps) - exact))) for eps in (1e-1, 1e-2, 1e-3)
    ]
    assert errors[0] > 0
    assert errors[1] < 0.3 * errors[0]
    assert errors[2] < 0.3 * errors[1]


@jax.jit
def gradient_and_hessian_product(model, x, y):
    def risk(model):
        return jnp.sum(jnp.logaddexp(0.0, -y * jax.vmap(model)(x)))

    return jax.jvp(jax.grad(risk), (model,), (jax.tree.map(jnp.ones_like, model),))


@pytest.mark.parametrize("where", ["theta", "row", "hidden", "input"])
def test_gradients_and_hessian_products_have_no_nan(where):
    model = M.MLP((4, 6, 5, 1), SMOOTH, key=KEY)
    x, y = X, jnp.where(X[:, 0] > 0, 1.0, -1.0)
    first = model.layers[0].weight
    if where == "theta":
        model = jax.tree.map(lambda a: 0 * a, model)
    elif where == "row":
        model = set_first(model, first.at[0].set(0))
    elif where == "hidden":  # every neuron of the first layer off, far from the band
        model = set_first(model, -jnp.abs(first))
        x = jnp.abs(x)
    else:
        x = x.at[0].set(0)
    for leaf in jax.tree.leaves(gradient_and_hessian_product(model, x, y)):
        assert bool(jnp.all(jnp.isfinite(leaf)))


def set_first(model, weight):
    return eqx.tree_at(lambda m: m.layers[0].weight, model, weight)


@pytest.mark.parametrize(("delta", "smooth"), [(0.1, True), (0.0, False)])
def test_no_kink_where_the_hidden_layer_is_all_zero(delta, smooth):
    """Regression: with r proportional to |h| alone, examples stuck at h = 0."""
    layer = M.Dense(3, 4, key=KEY)
    activation = M.SmoothReLU(0.3, delta=delta)
    direction = jnp.array([0.3, -0.1, 0.5])

    def along(t):
        signal = M.Signal(t * direction, jnp.ones(()))
        z = layer(signal)
        return activation(z.value, z.scale)

    t = 1e-7
    right = (along(t) - along(0.0)) / t
    left = (along(0.0) - along(-t)) / t
    gap = float(jnp.max(jnp.abs(right - left)))
    assert gap < 1e-4 if smooth else gap > 0.1
