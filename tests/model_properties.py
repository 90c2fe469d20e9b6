"""Homogeneity of any model, over random parameters, inputs and scales."""

import equinox as eqx
import jax
import numpy as np
from hypothesis import given, settings, strategies as st

import gradflow as gf
from gradflow._parameters import Layout


def trained_arrays(model):
    """Layout, flat parameters, and the way back to the model."""
    params, frozen = eqx.partition(
        model, eqx.is_inexact_array, is_leaf=lambda leaf: isinstance(leaf, gf.Fixed)
    )
    layout, theta = Layout.of(params)

    def rebuild(theta):
        return eqx.combine(
            layout.unravel(theta), frozen, is_leaf=lambda a: isinstance(a, gf.Fixed)
        )

    return layout, theta, rebuild


def check_degrees(model, degree, layer_degrees, x, examples=5):
    """Output scales with c to the degree and obeys Euler; layer by layer as well."""
    layout, theta, rebuild = trained_arrays(model)
    start = np.asarray(theta)
    masks = [np.ones_like(start)]
    for first, stop in zip(layout.offsets[:-1], layout.offsets[1:]):
        masks.append(np.zeros_like(start))
        masks[-1][first:stop] = 1
    degrees = np.array([degree, *layer_degrees], dtype=float)
    assert len(masks) == len(degrees)

    @jax.jit
    def measure(theta, x, c, masks):
        def outputs(theta):
            return jax.vmap(rebuild(theta), axis_name="batch")(x)

        def one(mask):
            value, radial = jax.jvp(outputs, (theta,), (mask * theta,))
            return value, radial, outputs(theta * (1 + (c - 1) * mask))

        return jax.lax.map(one, masks)

    @settings(max_examples=examples, deadline=None, derandomize=True)
    @given(seed=st.integers(0, 2**31 - 1), log_c=st.floats(-7, 7))
    def scaling_and_euler(seed, log_c):
        rng = np.random.default_rng(seed)
        noise = rng.normal(size=start.shape)
        inputs = np.asarray(x) * rng.uniform(0.5, 1.5, size=x.shape)
        spread = float(np.std(start)) or 1.0
        c = np.exp(log_c)
        measured = measure(start + spread * noise, inputs, c, np.stack(masks))
        for value, radial, other, k in zip(*jax.device_get(measured), degrees):
            size = float(np.max(np.abs(value)))
            assert size > 0
            np.testing.assert_allclose(other / c**k, value, rtol=0, atol=1e-12 * size)
            atol = 1e-12 * max(1, k) * size
            np.testing.assert_allclose(radial, k * value, rtol=0, atol=atol)

    scaling_and_euler()
