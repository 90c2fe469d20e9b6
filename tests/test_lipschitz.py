"""Lipschitz bounds against the slopes of the margins themselves."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradflow as gf

M = gf.models
KEY = jax.random.key(0)
ACTIVATIONS = {
    "relu": M.ReLU(),
    "leaky": M.LeakyReLU(2.0),
    "smooth_relu": M.SmoothReLU(1.0, 1.0),
    "smooth_leaky": M.SmoothLeakyReLU(0.5, 0.3),
    "smooth_abs": M.SmoothAbs(1.0),
}


@eqx.filter_jit
def steepest(model, label, loss):
    """The greatest slope of a margin found among random points of many sizes."""
    points = jax.random.normal(jax.random.key(1), (2000, 4))
    points = points * jnp.logspace(-3, 3, 2000)[:, None]
    grads = jax.vmap(jax.grad(lambda x: loss.margin(model(x), label)))(points)
    return jnp.max(jnp.linalg.norm(grads, axis=1))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_no_margin_is_steeper(name):
    model = M.MLP((4, 8, 5, 3), ACTIVATIONS[name], key=KEY)
    bound = gf.diagnostics.lipschitz_bound(model)
    found = max(steepest(model, jnp.asarray(y), gf.CrossEntropy()) for y in range(3))
    assert 0.1 * bound < found <= bound


@pytest.mark.parametrize("eps", [0.0, 1.0])
def test_bound_of_one_neuron_is_nearly_reached(eps):
    """A neuron with a bias: its margin is steepest at u = 1 without smoothing, and with
    it the bound leaves at most the bump's share, 3/16, unused."""
    model = M.TwoLayer(4, 1, M.SmoothReLU(eps, 0.0), key=KEY, mean_field=True)
    model = eqx.tree_at(lambda m: m.inner.bias, model, jnp.ones(1), is_leaf=_is_none)
    model = eqx.tree_at(lambda m: m.outer.value, model, jnp.ones(1))
    bound = gf.diagnostics.lipschitz_bound(model)
    found = steepest(model, jnp.asarray(1.0), gf.Logistic())
    weight = float(jnp.linalg.norm(model.inner.weight))
    assert found <= bound
    np.testing.assert_allclose(found, weight, rtol=1e-2 if eps == 0 else 3 / 16)
    if eps == 0:
        np.testing.assert_allclose(bound, weight, rtol=1e-12)


def _is_none(leaf):
    return leaf is None


def test_products_of_matrices_and_one_layer():
    deep = M.DeepLinear((4, 3, 1), key=KEY)
    first, last = (np.asarray(layer.weight) for layer in deep.layers)
    expected = np.linalg.norm(first, 2) * np.linalg.norm(last)
    np.testing.assert_allclose(gf.diagnostics.lipschitz_bound(deep), expected)
    linear = M.Linear(4, key=KEY)
    expected = np.linalg.norm(linear.weight)
    np.testing.assert_allclose(gf.diagnostics.lipschitz_bound(linear), expected)


def test_a_power_has_no_constant():
    model = M.TwoLayer(3, 2, key=KEY)
    with pytest.raises(ValueError, match="pass `lipschitz`"):
        gf.diagnostics.lipschitz_bound(model)
    assert gf.diagnostics.lipschitz_bound(model, missing=7.0) == 7.0
