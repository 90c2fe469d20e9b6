"""The problems that solvers are compared on, and where each flow is to end."""

from collections.abc import Callable

import jax
import numpy as np

import gradflow as gf


def breast_cancer():
    x, y = gf.datasets.breast_cancer()
    return gf.Problem(gf.models.Linear(x.shape[1]), x, y)


def iris_deep_linear():
    x, y = gf.datasets.iris()
    model = gf.models.DeepLinear((x.shape[1], 8, 8, 1), key=jax.random.key(0))
    return gf.Problem(model, x, y)


def squared_relu():
    x, y = gf.datasets.plane(60)
    model = gf.models.TwoLayer(3, 40, key=jax.random.key(0), scale=0.1)
    return gf.Problem(model, x, y)


def smoothed_relu():
    x, y = gf.datasets.plane(60)
    model = gf.models.MLP((3, 20, 1), gf.models.SmoothReLU(1e-3), key=jax.random.key(0))
    return gf.Problem(model, x, y)


def digits(dtype=np.float64):
    """The demo's problem: parity, 65-64-32-1, smoothed ReLU of relative width 1e-2."""
    x, y = gf.datasets.digits(task="parity", dtype=dtype)
    model = gf.models.MLP(
        (65, 64, 32, 1), gf.models.SmoothReLU(1e-2), key=jax.random.key(0)
    )
    return gf.Problem(jax.tree.map(lambda w: w.astype(dtype), model), x, y)


def small_cnn(dtype=np.float64):
    """Two convolutions and a dense layer on 2,000 images of MNIST; 10 classes."""
    x, y = gf.datasets.mnist(n=2000, dtype=dtype)
    keys, smooth = jax.random.split(jax.random.key(0), 3), gf.models.SmoothReLU(1e-2)
    model = gf.models.Sequential(
        [
            gf.models.Conv(1, 4, 5, stride=2, padding="SAME", key=keys[0]),
            gf.models.MaxPool(2, eps=1e-2),
            smooth,
            gf.models.Conv(4, 8, 3, key=keys[1]),
            smooth,
            gf.models.Flatten(),
            gf.models.Dense(200, 10, key=keys[2]),
        ]
    )
    model = jax.tree.map(lambda w: w.astype(dtype), model)
    return gf.Problem(model, np.moveaxis(x, 1, -1), y, batch_size=250)


# Name: problem, and the s to reach.
PROBLEMS: dict[str, tuple[Callable[[], gf.Problem], float]] = {
    "breast_cancer": (breast_cancer, 1000.0),
    "iris_deep_linear": (iris_deep_linear, 100.0),
    "squared_relu": (squared_relu, 100.0),
    "smoothed_relu": (smoothed_relu, 100.0),
    "digits": (digits, 1842.0),
    "small_cnn": (small_cnn, 10.0),
}
