"""Normalisation layers, ResNet-18 and DenseNet-121."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradflow as gf
from gradflow.models.activations import Scale
from gradflow.models.layers import Signal
from gradflow.models.residual import _add

from .model_properties import check_degrees

M = gf.models
KEY = jax.random.key(0)


def batched(model, x):
    return jax.jit(jax.vmap(model, axis_name="batch"))(x)


@pytest.mark.parametrize("shape", [(7, 3), (4, 5, 6, 3)])
def test_batch_norm_standardises_each_channel_over_the_batch(shape):
    h = 2 + 3 * jax.random.normal(KEY, shape)
    layer = eqx.tree_at(
        lambda l: (l.weight, l.bias),
        M.BatchNorm(3, eps=0.1),
        (jnp.array([1.0, 2.0, -1.0]), jnp.array([0.5, 0.0, 1.0])),
    )
    out = batched(M.Sequential((layer,)), h)
    axes = tuple(range(len(shape) - 1))
    h = np.asarray(h)
    expected = (h - h.mean(axes)) / np.sqrt(h.var(axes) + 0.1)
    expected = expected * np.array([1.0, 2.0, -1.0]) + np.array([0.5, 0.0, 1.0])
    np.testing.assert_allclose(out, expected, rtol=1e-11, atol=1e-12)


def test_scale_of_a_sum_has_a_gradient_at_zero_weights():
    def weight_of_sum(weight):
        one = jnp.ones(())
        branch = Signal(jnp.ones(2), one, Scale(weight, one, one))
        scale = _add(branch, branch).scale
        assert scale is not None
        return scale.weight

    at = jnp.array([0.0, 3.0])
    np.testing.assert_allclose(weight_of_sum(at), 2**0.5 * at)
    slopes = jax.grad(lambda weight: jnp.sum(weight_of_sum(weight)))(at)
    np.testing.assert_allclose(slopes, [0, 2**0.5])


def test_normalised_layers_are_of_degree_zero():
    activation = M.SmoothReLU(0.3)
    k = jax.random.split(KEY, 3)
    x = jax.random.normal(k[2], (6, 4))
    batch = M.Sequential(
        (
            M.Dense(4, 5, key=k[0]),
            M.BatchNorm(5),
            activation,
            M.Dense(5, 1, key=k[1]),
        )
    )
    # weight; gamma and beta, which have a degree only together; last weight
    batch = eqx.tree_at(lambda m: m.layers[1].bias, batch, 0.3 * jnp.ones(5))
    problem = gf.Problem(batch, x, jnp.where(x[:, 0] > 0, 1.0, -1.0))
    assert problem.degree == 2
    assert problem.layer_degrees == (0, 1, 1)
    weight = M.Sequential(
        (M.WeightNorm(M.Dense(4, 5, key=k[0])), activation, M.Dense(5, 1, key=k[1]))
    )
    check_degrees(weight, 2, (0, 1, 1), x, examples=3)


def test_weight_norm_starts_as_the_layer_it_wraps():
    for layer, x in (
        (M.Dense(4, 5, key=KEY), jnp.arange(4.0)),
        (M.Conv(2, 3, 3, key=KEY), jax.random.normal(KEY, (5, 5, 2))),
    ):
        wrapped = M.Sequential((M.WeightNorm(layer),))
        np.testing.assert_allclose(wrapped(x), M.Sequential((layer,))(x), rtol=1e-13)


def test_a_constant_channel_gives_beta_and_no_nan():
    layer = M.Sequential((M.BatchNorm(2),))
    x = jnp.ones((3, 2))

    def total(x):
        return jnp.sum(jax.vmap(layer, axis_name="batch")(x))

    np.testing.assert_array_equal(batched(layer, x), 0)
    assert bool(jnp.all(jnp.isfinite(jax.grad(total)(x))))


def count(make):
    shapes = eqx.filter_eval_shape(make)
    return sum(a.size for a in jax.tree.leaves(shapes))


def test_parameters_are_torchvisions():
    # torchvision: 11,689,512 and 7,978,856 with 1000 classes.
    resnet, densenet = 11_689_512 - 990 * 513, 7_978_856 - 990 * 1025
    assert count(lambda: M.ResNet18(key=KEY)) == resnet
    assert count(lambda: M.DenseNet121(key=KEY)) == densenet


SMALL = {
    "resnet": lambda **k: M.ResNet18(widths=(4, 6), key=KEY, **k),
    "densenet": lambda **k: M.DenseNet121(blocks=(2, 1), growth=4, key=KEY, **k),
}


@pytest.mark.parametrize(("name", "norm"), [("resnet", False), ("densenet", True)])
def test_small_versions_run_and_are_not_homogeneous(name, norm):
    model = SMALL[name](norm=norm, activation=M.SmoothReLU(0.1))
    x = jax.random.uniform(KEY, (4, 32, 32, 3))
    params, static = eqx.partition(model, eqx.is_array)
    params = jax.tree.map(lambda a: a + 0.1 if a.ndim == 1 else a, params)

    @jax.jit
    def outputs(params):
        model = eqx.combine(params, static)
        return jax.vmap(model, axis_name="batch")(x)

    value = outputs(params)
    assert value.shape == (4, 10)
    # All outputs of a homogeneous network would grow by the same factor.
    growth = outputs(jax.tree.map(lambda a: 1.5 * a, params)) / value
    assert bool(jnp.all(jnp.isfinite(growth)))
    assert float(jnp.max(growth) - jnp.min(growth)) > 1e-3


def test_residual_block_adds_its_input():
    """With all convolutions of the branch at zero a block is the activation."""
    from gradflow.models.residual import BasicBlock

    block = BasicBlock(3, 3, 1, M.ReLU(), norm=False, key=KEY, scale=0.0)
    x = jax.random.normal(KEY, (5, 5, 3))
    np.testing.assert_array_equal(M.Sequential((block,))(x), jnp.maximum(x, 0))
