"""The table of models in `docs/models.md` says what the models are."""

import math
import pathlib

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradflow as gf

from . import test_models_flow as flows

M = gf.models
KEY = jax.random.key(0)
ROOT = pathlib.Path(__file__).parents[1]
BASE = M.TwoLayer(4, 8, key=KEY)
MAPS = (np.array([[1, 0, 2, 3], [0, 3, 3, 1]]), np.array([[1, 2]]))
VECTOR, PHOTO, GRAY = (4,), (32, 32, 3), (28, 28)
NARROW = {
    "HAlexNet": dict(widths=(2, 3, 4, 3)),
    "LyuLiCNN": dict(widths=(2, 3, 4)),
    "VGG16": dict(widths=(2, 2, 2, 2, 2)),
    "ResNet18": dict(widths=(2, 2), norm=False),
    "DenseNet121": dict(blocks=(1, 1), growth=2, norm=False),
}
# First column: a small model, an input's shape; degree and parameters where the table
# has formulas.
SMALL = {
    "Linear(d, classes)": (lambda: M.Linear(4, 3, key=KEY), VECTOR, 1, 4 * 3),
    "DeepLinear(widths)": (
        lambda: M.DeepLinear((4, 3, 2), key=KEY),
        VECTOR,
        2,
        4 * 3 + 3 * 2,
    ),
    "MLP(widths, activation)": (
        lambda: M.MLP((4, 6, 5, 1), key=KEY),
        VECTOR,
        3,
        4 * 6 + 6 * 5 + 5,
    ),
    "TwoLayer(d, m, PowerReLU(2))": (lambda: BASE, VECTOR, 2, 8 * 4),
    "TwoLayer(..., train_outer=True, mean_field=True)": (
        lambda: M.TwoLayer(4, 8, key=KEY, train_outer=True, mean_field=True),
        VECTOR,
        2 + 1,
        8 * (4 + 1),
    ),
    "Tangent(model, factor)": (lambda: M.Tangent(BASE, 0.5), VECTOR, 1, 8 * 4),
    "Linearized(model)": (lambda: M.Linearized(BASE), VECTOR, None, 8 * 4),
    "MexicanHat(degree)": (lambda: M.MexicanHat(3), VECTOR, 3, 3),
    "Homogeneous(function, degree, theta)": (
        lambda: M.Homogeneous(lambda t, x: jnp.tanh(t @ x), 2, jnp.arange(4.0)),
        VECTOR,
        2,
        4,
    ),
    "Diagonal(d, depth)": (lambda: M.Diagonal(4, 3, key=KEY), VECTOR, 3, 3 * 4),
    "SparseShared(index_maps)": (
        lambda: M.SparseShared(MAPS, key=KEY),
        VECTOR,
        2,
        3 + 2,
    ),
    "DisjointPatches(patches, size, filters)": (
        lambda: M.DisjointPatches(2, 2, 3, key=KEY),
        VECTOR,
        2,
        3 * (2 + 2),
    ),
    "SkipScalar()": (M.SkipScalar, (1,), None, 3),
}


def table():
    """Cells of each row by its model: degree, parameters, source, flow, tests."""
    lines = (ROOT / "docs" / "models.md").read_text().splitlines()
    rows = [line.split("|")[1:-1] for line in lines if line.startswith("| `")]
    cells = [[cell.strip().strip("`") for cell in row] for row in rows]
    return {row[0]: row[1:] for row in cells if len(row) == 6}


ROWS = table()


def named(call):
    """A network of the experiments by its name in the table, full size and narrow."""
    name, options = call.rstrip(")").split("(")
    options = dict(bias=options.split('"')[1]) if options else {}
    make = getattr(M, name)
    narrow = options | NARROW[name]
    shape = GRAY if name == "LyuLiCNN" else PHOTO
    return lambda: make(key=KEY, **options), lambda: make(key=KEY, **narrow), shape


def parameters(make):
    shapes = eqx.filter_eval_shape(make)
    trained = eqx.filter(shapes, is_trained, is_leaf=is_fixed)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(trained))


def is_fixed(leaf):
    return isinstance(leaf, gf.Fixed)


def is_trained(leaf):
    return not is_fixed(leaf) and jnp.issubdtype(
        getattr(leaf, "dtype", jnp.int32), jnp.inexact
    )


def measured_degree(model, shape):
    """Doubling all parameters multiplies outputs by an exact power of two, or not."""
    trained, rest = eqx.partition(model, eqx.is_inexact_array, is_leaf=is_fixed)
    # Biases start at zero: away with that.
    trained = jax.tree.map(lambda a: np.asarray(a) + 0.1, trained)
    x = jax.random.uniform(jax.random.key(1), shape)

    @jax.jit
    def output(trained):
        return eqx.combine(trained, rest, is_leaf=is_fixed)(x)

    twice = output(jax.tree.map(lambda a: 2 * a, trained))
    ratios = np.ravel(twice / output(trained))
    same = ratios[0] > 0 and np.allclose(ratios, ratios[0], rtol=1e-12)
    return float(np.log2(ratios[0])) if same else None


def test_every_model_is_in_the_table():
    models = {
        name
        for name in dir(M)
        if isinstance(getattr(M, name), type)
        and issubclass(getattr(M, name), eqx.Module)
    }
    parts = {
        name
        for name in models
        if issubclass(getattr(M, name), M.AbstractActivation | M.AbstractLayer)
    } | {"Signal", "Scale", "Sequential", "InPrecision"}
    assert {call.split("(")[0] for call in ROWS} == models - parts | {"DisjointPatches"}


@pytest.mark.parametrize("call", ROWS)
def test_row(call):
    degree, count, _, flow, file = ROWS[call]
    if call in SMALL:
        make, shape, expected, number = SMALL[call]
        assert parameters(make) == number
        # Formulas are written out above; numbers have to agree.
        assert not count.isdigit() or int(count) == number
        assert (degree == "none") == (expected is None)
        assert not degree.isdigit() or int(degree) == expected
    else:
        full, make, shape = named(call)
        assert parameters(full) == int(count.replace(",", ""))
        expected = None if degree == "none" else int(degree)
    measured = measured_degree(make(), shape)
    if expected is None or measured is None:
        # A single output always has some power; that of a homogeneous one is whole.
        assert expected is None and (measured is None or measured != round(measured))
    else:
        np.testing.assert_allclose(measured, expected, rtol=1e-12)
    name = call.split("(")[0]
    assert name in (ROOT / "tests" / file).read_text()
    tests = {*flows.DENSE, *flows.CONVOLUTIONAL, *dir(flows)}
    assert any(test.startswith(flow) for test in tests)
