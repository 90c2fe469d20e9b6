"""Activations: exact formulas, C² smoothing, no NaN anywhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import gradflow as gf
from gradflow.models.activations import smooth_relu

M = gf.models
SMOOTH = [M.SmoothReLU(0.1), M.SmoothLeakyReLU(0.1, slope=0.2), M.SmoothAbs(0.1)]
EXACT = [M.ReLU(), M.LeakyReLU(0.2), None]


def phi_from_curvature(u):
    """Integrates phi'' = 3/4 (1 - u^2) twice by quadrature, from u = -1."""
    nodes, weights = np.polynomial.legendre.leggauss(8)
    t = (u + 1) / 2 * (nodes + 1) - 1
    return (u + 1) / 2 * np.sum(weights * (u - t) * 0.75 * (1 - t**2))


@pytest.mark.parametrize("u", [-1.0, -0.7, 0.0, 0.3, 1.0])
def test_band_is_the_double_integral_of_its_curvature(u):
    expected = 0.5 * phi_from_curvature(u)
    value = smooth_relu(jnp.array(0.5 * u), jnp.array(0.5))
    np.testing.assert_allclose(value, expected, atol=1e-16)


@jax.jit
def derivatives(z, r):
    """Value, first and second derivatives in (z, r) by nested forward mode."""

    def first(z, r):
        return jnp.stack(jax.jacfwd(smooth_relu, (0, 1))(z, r))

    second = jax.jacfwd(first, (0, 1))
    return smooth_relu(z, r), first(z, r), jnp.stack(second(z, r))


def test_value_slope_and_curvature_are_continuous_at_the_edges():
    for edge, slope in ((-1.0, 0.0), (1.0, 1.0)):
        for side in (-1e-9, 1e-9):
            value, first, second = derivatives(
                jnp.array(2.0 * (edge + side)), jnp.array(2.0)
            )
            np.testing.assert_allclose(value, 2.0 * max(edge, 0.0), atol=1e-8)
            np.testing.assert_allclose(first, [slope, 0.0], atol=1e-8)
            np.testing.assert_allclose(second, 0.0, atol=1e-8)


def test_second_derivatives_against_the_polynomial():
    # r (1 + z/r)^3 (3 - z/r) / 16, left to automatic differentiation.
    def plain(z, r):
        return r * (1 + z / r) ** 3 * (3 - z / r) / 16

    def all_derivatives(f):
        return jax.jit(
            lambda z, r: (
                f(z, r),
                jax.grad(f, (0, 1))(z, r),
                jax.hessian(f, (0, 1))(z, r),
            )
        )

    z, r = jnp.array(0.3), jnp.array(0.7)
    expected = all_derivatives(plain)(z, r)
    for got, want in zip(derivatives(z, r), expected):
        np.testing.assert_allclose(got, np.array(want), rtol=1e-13)
    for got, want in zip(all_derivatives(smooth_relu)(z, r), expected):
        np.testing.assert_allclose(np.array(got), np.array(want), rtol=1e-13)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("r", [0.0, 1e-44, 1.0])
def test_no_nan_at_zero_in_any_derivative(dtype, r):
    value, first, second = derivatives(jnp.array(0.0, dtype), jnp.array(r, dtype))
    for part in (value, first, second):
        assert bool(jnp.all(jnp.isfinite(part)))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(z=st.floats(-3, 3), c=st.floats(1e-3, 1e3))
def test_smoothed_activations_are_homogeneous_and_close(z, c):
    z = np.array([z])
    unit = M.Scale(jnp.ones(1), jnp.ones(()), jnp.ones(()))
    scaled = M.Scale(jnp.full(1, c), jnp.ones(()), jnp.ones(()))
    r = 0.1 * np.sqrt(1.01)
    for smooth, exact in zip(SMOOTH, EXACT):
        value = smooth(jnp.asarray(z), unit)
        np.testing.assert_allclose(
            smooth(jnp.asarray(c * z), scaled), c * value, rtol=1e-12
        )
        true = np.abs(z) if exact is None else np.asarray(exact(jnp.asarray(z)))
        jump = 2 if exact is None else 1
        # 3/16 of the band for a kink of unit jump in slope.
        assert abs(value - true)[0] <= jump * 3 / 16 * r * (1 + 1e-12)
        if abs(z[0]) > r:
            np.testing.assert_allclose(value, true, rtol=1e-14)


EVERY = [
    *(M.Identity(), M.ReLU(), M.LeakyReLU(0.2), M.PowerReLU(2), M.PowerReLU(1.5)),
    *(M.Power(1), M.Power(2), M.Power(3), *SMOOTH),
]


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    z=st.floats(-3, 3).filter(lambda z: z == 0 or abs(z) > 1e-95),
    log_c=st.floats(-5, 5),
)
def test_every_activation_scales_with_its_degree_and_obeys_euler(z, log_c):
    """f(c z; c r) = c^k f(z; r), and z f_z + r f_r = k f: both, at any point.

    XLA takes subnormal numbers, such as a cube may be, for zero.
    """
    c = np.exp(log_c)

    def along(activation, c):
        scale = M.Scale(jnp.full(1, c), jnp.ones(()), jnp.ones(()))
        return activation(jnp.full(1, z * c), scale)[0]

    for activation in EVERY:
        k = activation.degree
        value, radial = jax.jvp(
            lambda c, a=activation: along(a, c), (jnp.array(1.0),), (jnp.array(1.0),)
        )
        np.testing.assert_allclose(along(activation, c), c**k * value, rtol=1e-12)
        # Inside the band z f_z and r f_r cancel; they are at most about |z| + r.
        np.testing.assert_allclose(radial, k * value, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize(("number", "jump"), [(0, 1), (1, 0.8), (2, 2)])
def test_every_smoothing_is_twice_differentiable_with_error_proportional_to_eps(
    number, jump
):
    """At both edges and beyond, and 3/16 of the band at z = 0, the largest error."""
    activation, exact = SMOOTH[number], EXACT[number]
    unit = M.Scale(jnp.ones(1), jnp.ones(()), jnp.ones(()))

    def f(z):
        return activation(z[None], unit)[0]

    both = jax.jit(lambda z: jnp.stack([f(z), jax.grad(f)(z), jax.hessian(f)(z)]))
    r = 0.1 * np.sqrt(1.01)
    for edge in (-r, r):
        inside, outside = (both(jnp.array(edge * (1 + h))) for h in (-1e-9, 1e-9))
        # The third derivative is 3/2 jump / r^2, and the points are 2e-9 r apart.
        np.testing.assert_allclose(inside, outside, rtol=0, atol=4e-9 * jump / r)
        assert outside[2] == 0

    z = jnp.linspace(-1, 1, 2001)
    true = jnp.abs(z) if exact is None else exact(z)
    for eps in (1e-1, 1e-2, 1e-3):
        smooth = type(activation)(eps, *((0.2,) if number == 1 else ()))
        values = jax.vmap(lambda z, a=smooth: a(z[None], unit)[0])(z)
        error = jnp.max(jnp.abs(values - true))
        expected = jump * 3 / 16 * eps * np.sqrt(1.01)
        np.testing.assert_allclose(error, expected, rtol=1e-12)


def test_zero_width_is_the_exact_activation():
    z = jnp.linspace(-1, 1, 5)
    np.testing.assert_array_equal(M.SmoothReLU(0.0)(z), M.ReLU()(z))
    np.testing.assert_array_equal(M.SmoothLeakyReLU(0.0, 0.3)(z), M.LeakyReLU(0.3)(z))
    np.testing.assert_array_equal(M.SmoothAbs(0.0)(z), jnp.abs(z))


def test_documented_derivatives_at_zero():
    zero = jnp.zeros(())
    for activation, slope in (
        (M.ReLU(), 0.0),
        (M.LeakyReLU(0.2), 0.2),
        (M.PowerReLU(2), 0.0),
        (M.PowerReLU(1.5), 0.0),
        (M.Power(1), 1.0),
        (M.Identity(), 1.0),
    ):
        assert jax.grad(lambda z, a=activation: a(z))(zero) == slope


@pytest.mark.parametrize("k", [1, 1.5, 2, 3])
def test_powers(k):
    z = jnp.array([-2.0, 0.0, 0.5, 3.0])
    np.testing.assert_allclose(M.PowerReLU(k)(z), np.maximum(z, 0) ** k, rtol=1e-15)
    if k == int(k):
        np.testing.assert_allclose(M.Power(k)(z), np.asarray(z) ** k, rtol=1e-15)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: M.SmoothReLU(-0.1), "`eps` must lie"),
        (lambda: M.SmoothReLU(0.1, delta=-1.0), "`delta` must not be negative"),
        (lambda: M.PowerReLU(0.5), "`k` must be at least 1"),
        (lambda: M.Power(1.5), "`k` must be a positive whole"),
        (lambda: M.SmoothReLU(0.1)(jnp.zeros(2)), "needs `scale`"),
    ],
)
def test_errors(make, match):
    with pytest.raises(ValueError, match=match):
        make()
