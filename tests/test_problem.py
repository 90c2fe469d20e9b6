"""`Problem`: what it computes against naive formulas, and what it refuses."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradflow as gf

from .helpers import separable


class Biased(eqx.Module):
    """A linear model with a constant offset, which breaks homogeneity."""

    weight: jax.Array

    def __call__(self, x):
        return self.weight @ x + 1.0


def _network(dtype=jnp.float64, widths=(3, 4, 1), key=0):
    model = gf.models.DeepLinear(widths, key=jax.random.key(key))
    return jax.tree.map(lambda w: w.astype(dtype), model)


def _activated(activation):
    model = gf.models.MLP((3, 4, 1), key=jax.random.key(0))
    return eqx.tree_at(lambda m: m.activation, model, activation)


def _normalised():
    dense, last = (
        gf.models.Dense(3, 4, key=jax.random.key(0)),
        gf.models.Dense(4, 1, key=jax.random.key(1)),
    )
    return gf.models.Sequential((dense, gf.models.BatchNorm(4), last))


def test_margins_risk_and_direction_against_naive_formulas():
    x, y = separable()
    problem = gf.Problem(_network(), x, y, loss=gf.Exponential())
    a, b = (w for w in jax.tree.leaves(problem.model(problem.theta)))
    product = (b @ a)[0]
    p = np.asarray(y) * (np.asarray(x) @ np.asarray(product))
    np.testing.assert_allclose(problem.margins(problem.theta), p, rtol=1e-13)
    log_risk, direction = problem.log_risk_and_direction(problem.theta)
    np.testing.assert_allclose(log_risk, np.log(np.exp(-p).sum()), rtol=1e-13)
    w = np.exp(-p) / np.exp(-p).sum()
    pull = (w * np.asarray(y)) @ np.asarray(x)
    expected = np.concatenate(
        [np.outer(np.asarray(b)[0], pull).ravel(), np.asarray(a) @ pull]
    )
    np.testing.assert_allclose(direction, expected, rtol=1e-12)


def test_outputs_for_other_examples():
    x, y = separable()
    problem, theta = gf.Problem(_network(), x, y), 2.0 * jnp.arange(16.0)
    a, b = np.split(np.asarray(theta), [12])
    others = np.random.default_rng(0).normal(size=(2 * len(x) + 1, 3))
    expected = others @ a.reshape(4, 3).T @ b
    np.testing.assert_allclose(problem.outputs(theta, jnp.asarray(others)), expected)
    own = problem.outputs(theta)
    np.testing.assert_array_equal(problem.outputs(theta, problem.x), own)


def test_the_network_is_gone_through_once_for_all_functions():
    calls = []

    class Counted(eqx.Module):
        weight: jax.Array

        def __call__(self, x):
            calls.append(x.shape)
            return self.weight @ x

    x, y = separable()
    problem = gf.Problem(Counted(jnp.ones(3)), x, y)

    @eqx.filter_jit
    def all_of(theta):
        hessian = jax.hessian(problem.log_risk)(theta)
        return problem.log_risk_and_direction(theta), problem.margins(theta), hessian

    eqx.filter_jit(lambda theta: problem.outputs(theta))(problem.theta)
    calls.clear()
    all_of(problem.theta)
    assert not calls


def test_another_problem_of_the_same_shapes_compiles_nothing(caplog):
    x, y = separable()
    first, second = (_network(widths=(3, 5, 1), key=key) for key in range(2))
    gf.Problem(first, x, y)

    def compiled(model):
        caplog.clear()
        with jax.log_compiles():
            gf.Problem(model, x, y)
        return [r for r in caplog.records if "Compiling" in r.getMessage()]

    assert compiled(_network(widths=(3, 6, 1)))
    assert not compiled(second)


@pytest.mark.parametrize("size", [1, 3, 8, 100])
def test_batches_change_nothing(size):
    x, y = separable()
    whole = gf.Problem(_network(), x, y)
    parts = gf.Problem(_network(), x, y, batch_size=size)
    for name in ("log_risk_and_direction", "margins", "soft_margins", "outputs"):
        for got, want in zip(
            jax.tree.leaves(getattr(parts, name)(whole.theta)),
            jax.tree.leaves(getattr(whole, name)(whole.theta)),
        ):
            np.testing.assert_allclose(got, want, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("loss", [gf.Exponential(), gf.Logistic()])
def test_batches_of_very_unequal_risk(loss):
    """Margins from -700 to 1e6 (log risks of batches 700 to -1e6), in any order."""
    levels = np.array([3e5, 1e6, 2e5, -700.0, 5.0, 1e6, 40.0, -699.0])
    x = np.stack([levels, np.linspace(-1, 1, 8)], axis=1)
    theta = jnp.array([1.0, 0.3])
    for kept in (slice(None), slice(0, 3)):  # Of the first three the largest is e^-2e5.
        data, labels = x[kept], np.ones(len(x[kept]))
        whole, parts = (
            gf.Problem(
                gf.models.Linear(2),
                data,
                labels,
                loss=loss,
                batch_size=size,
                one_class=True,
            ).log_risk_and_direction(theta)
            for size in (None, 2)
        )
        np.testing.assert_allclose(parts[0], whole[0], rtol=1e-15)
        # Weights are exponentials of differences of log risks of this size.
        rtol = 4 * np.finfo(float).eps * abs(float(whole[0]))
        np.testing.assert_allclose(parts[1], whole[1], rtol=rtol)


def _memory(n, what):
    """Bytes of temporary memory of a computation over `n` examples in batches."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 20))
    model = gf.models.MLP((20, 64, 1), gf.models.SmoothReLU(0.1), key=jax.random.key(0))
    problem = gf.Problem(model, x, np.sign(x[:, 0]), batch_size=100)
    solver = gf.solvers.DeflatedRKC2(rank=4)
    term = diffrax.ODETerm(lambda t, y, args: problem.log_risk_and_direction(y)[1])

    def step(theta):
        t0, t1 = jnp.array(0.0), jnp.array(0.1)
        state = solver.init(term, t0, t1, theta, None)
        return solver.step(term, t0, t1, theta, None, state, False)[0]

    functions = {
        "gradient": problem.log_risk_and_direction,
        "step": step,
        "hessian": lambda v: jax.jvp(jax.grad(problem.log_risk), (v,), (v,)),
    }
    compiled = jax.jit(lambda v: functions[what](v)).lower(problem.theta).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("what", ["gradient", "step", "hessian"])
def test_memory_in_batches_does_not_grow_with_the_data(what):
    per_example = (_memory(4000, what) - _memory(1000, what)) / 3000
    # A few numbers for each example, against 64 hidden units of 8 bytes or more.
    assert per_example < 40


def test_degree_is_measured_and_layers_too():
    x, y = separable()
    problem = gf.Problem(_network(widths=(3, 4, 2, 1)), x, y)
    assert problem.degree == 3.0
    assert problem.layer_degrees == (1.0, 1.0, 1.0)
    squared = gf.models.TwoLayer(3, 5, gf.models.PowerReLU(2), key=jax.random.key(1))
    problem = gf.Problem(squared, x, y)
    assert problem.degree == 2.0 and problem.layer_degrees == (2.0,)
    assert problem.k == 15  # The output signs are not trained.


class Skip(eqx.Module):
    """Of degree 2; in the first weight and `u` only together, in no common module."""

    first: gf.models.Dense
    u: jax.Array
    last: gf.models.Dense

    def __call__(self, x):
        hidden = jax.nn.relu(self.first.weight @ x) + self.u * x[0]
        return (self.last.weight @ hidden)[0]


def _skip():
    key = jax.random.split(jax.random.key(4))
    first = gf.models.Dense(3, 4, key=key[0])
    return Skip(first, jnp.arange(1.0, 5.0), gf.models.Dense(4, 1, key=key[1]))


def test_degrees_of_outputs_that_almost_underflow():
    """Regression: their squares did, and the degree was 0."""
    x, y = separable(n=6)

    def problem(depth, scale):
        widths = (3,) * depth + (1,)
        model = gf.models.DeepLinear(widths, key=jax.random.key(0), scale=scale)
        return gf.Problem(model, x, y)

    deep = problem(30, 1e-7)
    assert deep.degree == 30 and deep.layer_degrees == (1,) * 30
    with pytest.raises(ValueError, match="nothing but zeros .* underflow"):
        problem(60, 1e-7)


def test_layers_are_arrays_or_what_has_a_degree_only_together():
    x, y = separable()
    problem = gf.Problem(_skip(), x, y)
    assert problem.layout.names == ("first.weight", "u", "last.weight")
    assert problem.layers == ((0, 1), (2,))
    assert problem.layer_degrees == (1, 1)
    assert problem.layer_names == ("first.weight + u", "last.weight")
    first, last = problem.split_layers(problem.theta)
    np.testing.assert_array_equal(first, problem.theta[:16])
    np.testing.assert_array_equal(last, problem.theta[16:])


def test_declared_layers():
    x, y = separable()
    model = _network(widths=(3, 4, 2, 1))
    names = [f"layers[{j}].weight" for j in range(3)]
    problem = gf.Problem(model, x, y, layers=[[names[1], names[2]], [names[0]]])
    assert problem.layers == ((1, 2), (0,)) and problem.layer_degrees == (2, 1)
    with pytest.raises(ValueError, match="every trained array once"):
        gf.Problem(model, x, y, layers=[names[:2]])
    with pytest.raises(ValueError, match=r"homogeneous in \['first.weight'\] alone"):
        gf.Problem(_skip(), x, y, layers=[["first.weight"], ["u"], ["last.weight"]])
    with pytest.raises(ValueError, match="`layers` was given with"):
        gf.Problem(model, x, y, layers=[names], homogeneous=False)


def test_parameters_survive_the_round_trip():
    x, y = separable()
    problem = gf.Problem(_network(), x, y)
    model = problem.model(2 * problem.theta)
    np.testing.assert_array_equal(problem.theta_of(model), 2 * problem.theta)


def test_several_classes():
    x, y = separable(n=9)
    classes = jnp.arange(9) % 3
    problem = gf.Problem(_network(widths=(3, 4, 3)), x, classes)
    assert isinstance(problem.loss, gf.CrossEntropy)
    out = np.asarray(problem.outputs(problem.theta))
    assert problem.output_shape == out.shape[1:]
    naive = [
        out[i, c] - max(out[i, j] for j in range(3) if j != c)
        for i, c in enumerate(np.asarray(classes))
    ]
    np.testing.assert_allclose(problem.margins(problem.theta), naive, rtol=1e-13)
    losses = np.log(np.exp(out).sum(1)) - out[np.arange(9), np.asarray(classes)]
    np.testing.assert_allclose(
        problem.log_risk(problem.theta), np.log(losses.sum()), rtol=1e-13
    )


def test_truth_values_are_two_classes():
    x, y = separable(n=6)
    problem = gf.Problem(gf.models.Linear(3, 2), x, y > 0)
    np.testing.assert_array_equal(problem.y, (y > 0).astype(int))


X, Y = separable()
NAN = X.at[3, 1].set(jnp.nan)


@pytest.mark.parametrize(
    "model, x, y, options, match",
    [
        (None, X, (Y + 1) / 2, {}, r"labels -1 and \+1: pass `2 \* y - 1`"),
        (None, X, jnp.ones(8), {}, "`y` holds one class only"),
        (None, NAN, Y, {}, r"`x` is NaN or infinite in 1 examples \(first: 3\)"),
        (None, X, Y.at[0].set(jnp.inf), {}, "`y` holds NaN or infinity"),
        (None, X, Y[:-1], {}, r"`x` has 8 examples, but `y` has shape \(7,\)"),
        (None, X[:0], Y[:0], {}, "`x` is empty"),
        (None, X, Y, {"batch_size": True}, "`batch_size` must be a positive whole"),
        (None, jnp.ones((8, 3), int), Y, {}, "`x` has dtype int"),
        (None, X[:, :2], Y, {}, r"could not be called on one example of shape \(2,\)"),
        (None, X, Y, {"degree": 3}, "measured by Euler's identity is 2"),
        (None, X, Y, {"degree": 2, "homogeneous": False}, "leave one"),
        (None, X, Y, {"loss": "logistic"}, "`loss` must be a gradflow loss"),
        (None, X, np.where(Y > 0, "yes", "no"), {}, "`y` has dtype <U3: pass labels"),
        (_activated(jnp.tanh), X, Y, {}, "must be those of `gf.models`"),
        (None, X, Y, {"batch_size": 0}, "must be a positive whole"),
        (_normalised(), X, Y, {"batch_size": 4}, "BatchNorm is over all examples"),
        (Biased(jnp.ones(3)), X, Y, {}, "`model` is not homogeneous"),
        (Biased(jnp.array([1.0, jnp.nan, 1.0])), X, Y, {}, "1 parameters that are NaN"),
        (_network(widths=(3, 4, 3)), X, Y, {}, "classes -1 to 1"),
        (_network(widths=(3, 4, 3)), X, Y, {"loss": gf.Logistic()}, "one number"),
        (_network(widths=(3, 4, 2)), X, jnp.arange(8), {}, "classes 0 to 7"),
        (gf.Logistic(), X, Y, {}, "`model` must be callable"),
    ],
)
def test_bad_input_names_argument_value_and_remedy(model, x, y, options, match):
    with pytest.raises(ValueError, match=match):
        gf.Problem(_network() if model is None else model, x, y, **options)


def test_parameters_of_a_module_where_some_are_trained():
    """Regression: modules were taken to train all of their arrays."""
    model = gf.models.MLP((3, 4, 1), key=jax.random.key(0))
    first = model.layers[0].weight
    problem = gf.Problem(model, X, Y, trainable=lambda leaf: leaf is first)
    theta = jnp.arange(12.0)
    back = problem.theta_of(problem.model(theta))
    np.testing.assert_array_equal(back, theta)
    np.testing.assert_array_equal(problem.theta_of(theta), theta)
    assert problem.theta_of(np.arange(12)).dtype == theta.dtype


def test_what_is_fixed_is_not_trained_whatever_the_user_says():
    class Masked(eqx.Module):
        w: jax.Array
        mask: gf.Fixed
        order: jax.Array
        scale: float = 2.0

        def __call__(self, x):
            return self.scale * jnp.dot(self.mask.value, (self.w * x)[self.order])

    model = Masked(jnp.ones(3), gf.Fixed(jnp.array([1.0, 0, 1])), jnp.arange(3))
    for trainable in (lambda leaf: True, lambda leaf: leaf.ndim == 1, eqx.is_array):
        problem = gf.Problem(model, X, Y, trainable=trainable)
        assert problem.layout.names == ("w",) and problem.degree == 1


def test_a_batch_size_of_numpy_is_a_number(tmp_path):
    problem = gf.Problem(_network(), X, Y, batch_size=np.int64(3))
    traj = gf.integrate(problem, to=2.0, saveat=2, diagnostics=())
    traj.save(tmp_path / "there.nc")
    assert gf.Trajectory.load(tmp_path / "there.nc").config["batch_size"] == 3


@pytest.mark.parametrize(
    "model, match",
    [
        (None, "not built like the problem's, which trains {'layers"),
        (_network(widths=(3, 5, 1)), "not built like the problem's"),
        (gf.models.Linear(3), "not built like the problem's"),
        (np.zeros(3), r"array of shape \(3,\), but the problem has 16 parameters"),
    ],
)
def test_another_model_is_named(model, match):
    with pytest.raises(ValueError, match=match):
        gf.Problem(_network(), X, Y).theta_of(model)
