"""Convolution, pooling and the papers' convolutional networks."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import correlate

import gradflow as gf
from gradflow.models.convolution import convolve_natively, convolve_patches

from .model_properties import check_degrees

M = gf.models
KEY = jax.random.key(0)
IMAGE = jax.random.normal(jax.random.key(1), (6, 7, 2))


def as_one(layer):
    return jax.jit(M.Sequential((layer,)).__call__)


@pytest.mark.parametrize(("padding", "mode"), [("VALID", "valid"), ("SAME", "same")])
def test_convolution_is_scipys_correlation(padding, mode):
    layer = M.Conv(2, 3, 3, padding=padding, bias=True, key=KEY)
    layer = eqx.tree_at(lambda l: l.bias, layer, jnp.array([1.0, 2.0, 3.0]))
    out = as_one(layer)(IMAGE)
    for j, (weight, bias) in enumerate(zip(layer.weight, (1.0, 2.0, 3.0))):
        expected = sum(
            correlate(IMAGE[..., c], weight[..., c], mode=mode) for c in range(2)
        )
        np.testing.assert_allclose(out[..., j], expected + bias, rtol=1e-12, atol=1e-14)


def test_stride_and_padding():
    full = as_one(M.Conv(2, 3, 3, padding=1, key=KEY))(IMAGE)
    strided = as_one(M.Conv(2, 3, 3, padding=1, stride=2, key=KEY))(IMAGE)
    np.testing.assert_allclose(strided, full[::2, ::2], rtol=1e-13)


@pytest.mark.parametrize(
    ("size", "stride", "padding"), [(1, 2, 0), (3, 1, 1), (3, 2, 1)]
)
def test_patches_and_the_native_convolution_agree(size, stride, padding):
    weight = jax.random.normal(KEY, (4, size, size, 2))
    patches = convolve_patches(IMAGE, weight, stride, padding)
    native = convolve_natively(IMAGE, weight, stride, padding)
    np.testing.assert_allclose(patches, native, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("size", "stride"), [(3, 2), (3, None)])
def test_pooling_takes_the_maximum_and_the_mean_of_windows(size, stride):
    step = stride or size
    windows = np.lib.stride_tricks.sliding_window_view(IMAGE, (size, size), axis=(0, 1))
    windows = windows[::step, ::step]
    out = as_one(M.MaxPool(size, stride))(IMAGE)
    np.testing.assert_array_equal(out, windows.max((-1, -2)))
    if stride is None:
        out = as_one(M.AvgPool(size))(IMAGE)
        np.testing.assert_allclose(out, windows.mean((-1, -2)), rtol=1e-12)


def test_padded_maximum():
    out = as_one(M.MaxPool(3, 2, padding=1))(IMAGE)
    padded = np.pad(IMAGE, [(1, 1), (1, 1), (0, 0)], constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(0, 1))
    np.testing.assert_array_equal(out, windows[::2, ::2].max((-1, -2)))


@pytest.mark.parametrize(
    ("size", "stride", "padding", "rounds"), [(2, 2, 0, 2), (3, 2, 1, 4)]
)
def test_smoothed_pooling_is_close_to_the_maximum_and_above_it(
    size, stride, padding, rounds
):
    conv = M.Conv(2, 3, 3, key=KEY)
    x = jax.random.normal(KEY, (18, 18, 2))
    signal = eqx.filter_jit(conv)(M.Signal.of(x))
    exact = eqx.filter_jit(M.MaxPool(size, stride, padding))(signal)
    assert signal.scale is not None
    errors = []
    for eps in (1e-1, 1e-2, 1e-3):
        smooth = eqx.filter_jit(M.MaxPool(size, stride, padding, eps=eps))(signal)
        error = np.asarray(smooth.value - exact.value)
        assert error.min() > -1e-14
        # Each round at most 3/16 of the band; the mean of the inputs' squared norms
        # is at most the largest.
        largest = jnp.sqrt(jnp.max(signal.scale.inputs) + 0.01 * signal.scale.reference)
        band = eps * signal.scale.weight * largest
        assert np.all(error <= rounds * 3 / 16 * band[None, None])
        errors.append(error.max())
    assert errors[0] > errors[1] > errors[2] > 0


def small_images(shape):
    return jax.random.uniform(jax.random.key(2), (3, *shape))


SMOOTH = dict(activation=M.SmoothReLU(0.1), pool=M.MaxPool(2, eps=0.1))


def biased(model):
    """The model with its zero biases moved away from zero."""
    return jax.tree.map(
        lambda a: a + 0.1 if eqx.is_array(a) and a.ndim == 1 else a, model
    )


def small_cnn(pool, activation, key):
    """conv, pool, conv, average pool, flatten, dense: every layer, but tiny."""
    k = jax.random.split(key, 3)
    return M.Sequential(
        (
            M.Conv(2, 4, 3, padding="SAME", bias=True, key=k[0]),
            pool,
            activation,
            M.Conv(4, 5, 3, key=k[1]),
            activation,
            M.AvgPool(2),
            M.Flatten(),
            M.Dense(20, 3, key=k[2]),
        )
    )


def test_small_network_is_homogeneous_in_all_and_in_each_layer():
    eps = 0.2
    model = small_cnn(M.MaxPool(2, eps=eps), M.SmoothReLU(eps), KEY)
    x = small_images((12, 12, 2))
    # The first layer counts as one with its bias, which together have a degree.
    problem = gf.Problem(model, x, jnp.arange(3))
    assert problem.degree == 3
    assert problem.layers == ((0, 1), (2,), (3,))
    assert problem.layer_degrees == (1, 1, 1)
    unbiased = eqx.tree_at(lambda m: m.layers[0].bias, model, None)
    check_degrees(unbiased, 3, (1, 1, 1), x, examples=3)


def test_batches_of_images_give_the_gradient_of_all():
    """Five examples of three classes, two at a time: the last batch is not full."""
    model = small_cnn(M.MaxPool(2, eps=0.2), M.SmoothReLU(0.2), KEY)
    x, y = jax.random.uniform(KEY, (5, 12, 12, 2)), jnp.arange(5) % 3

    def of(batch_size):
        problem = gf.Problem(model, x, y, homogeneous=False, batch_size=batch_size)
        return jax.jit(lambda theta: problem.log_risk_and_direction(theta))(
            problem.theta
        )

    (value, direction), (batched_value, batched_direction) = of(None), of(2)
    np.testing.assert_allclose(batched_value, value, rtol=1e-14)
    atol = 1e-14 * float(jnp.linalg.norm(direction))
    np.testing.assert_allclose(batched_direction, direction, rtol=0, atol=atol)


def test_gradients_have_no_nan_at_zero():
    model = small_cnn(M.MaxPool(2, eps=0.2), M.SmoothReLU(0.2), KEY)
    model = jax.tree.map(lambda a: 0 * a if eqx.is_array(a) else a, model)
    x = small_images((12, 12, 2)).at[0].set(0)

    @jax.jit
    def derivatives(model):
        def total(model):
            return jnp.sum(jax.vmap(model)(x))

        params = eqx.filter(model, eqx.is_array)
        return jax.jvp(
            jax.grad(total), (model,), (jax.tree.map(jnp.ones_like, params),)
        )

    for leaf in jax.tree.leaves(derivatives(model)):
        assert bool(jnp.all(jnp.isfinite(leaf)))


def parameters(model):
    return sum(a.size for a in jax.tree.leaves(eqx.filter(model, eqx.is_array)))


def euler(model, x):
    """Degree by Euler's identity over all parameters, and its residual."""
    params, static = eqx.partition(model, eqx.is_array)

    @jax.jit
    def both(params):
        def outputs(params):
            return jax.vmap(eqx.combine(params, static))(x)

        return jax.jvp(outputs, (params,), (params,))

    value, radial = both(params)
    degree = float(jnp.vdot(value, radial) / jnp.vdot(value, value))
    return degree, float(
        jnp.max(jnp.abs(radial - degree * value)) / jnp.abs(value).max()
    )


@pytest.mark.parametrize(
    ("make", "shape", "degree", "count", "smooth"),
    [
        (M.HAlexNet, (32, 32, 3), 5, 450 + 2400 + 48000 + 10080 + 840, True),
        (M.LyuLiCNN, (28, 28), 4, 832 + 18432 + 3136 * 1024 + 10240, False),
    ],
)
def test_named_networks(make, shape, degree, count, smooth):
    model = biased(make(key=KEY, **(SMOOTH if smooth else {})))
    assert parameters(model) == count
    measured, residual = euler(model, small_images(shape))
    np.testing.assert_allclose(measured, degree, rtol=1e-12)
    assert residual < 1e-12


def test_vgg16():
    model = biased(M.VGG16(key=KEY, widths=(4, 6, 8, 8, 8)))
    measured, residual = euler(model, small_images((32, 32, 3)))
    np.testing.assert_allclose(measured, 14, rtol=1e-12)
    assert residual < 1e-12
    shapes = eqx.filter_eval_shape(lambda: M.VGG16(key=KEY, bias="all"))
    # torchvision's vgg16 features hold 14,714,688 numbers; fc-10 adds 5,130.
    assert (
        sum(a.size for a in jax.tree.leaves(shapes) if hasattr(a, "size")) == 14719818
    )


def test_biases_everywhere_break_homogeneity():
    model = biased(M.LyuLiCNN(bias="all", key=KEY))
    assert all(layer.bias is not None for layer in (*model.convs, *model.dense))
    assert euler(model, small_images((28, 28)))[1] > 1e-3


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: M.LyuLiCNN(bias="some", key=KEY), "`bias` must be one of"),
        (lambda: M.HAlexNet(key=KEY)(jnp.zeros((3, 32, 32))), "channels last"),
        (lambda: M.Conv(1, 1, 2, padding="SAME", key=KEY), "filters of odd size"),
        (lambda: M.MaxPool(2, padding=2), "every window meets the image"),
        (lambda: as_one(M.MaxPool(2, eps=0.1))(IMAGE), "needs the scale"),
        (lambda: as_one(M.Conv(3, 1, 2, key=KEY))(IMAGE), "A convolution of 3"),
        (lambda: as_one(M.Dense(3, 1, key=KEY))(IMAGE), "put `Flatten"),
    ],
)
def test_errors(make, match):
    with pytest.raises(ValueError, match=match):
        make()
