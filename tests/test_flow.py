"""The vector field's own arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradflow._flow import _norm


@pytest.mark.parametrize("size", [3, 2000])
@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e-140, 1.0, 1e150, 1e200, 1e300])
def test_norm_and_its_derivative_at_any_scale(scale, size):
    """Few entries are always scaled, many only where their squares lose digits."""
    unit = jnp.zeros(size).at[:3].set(jnp.array([3.0, -4.0, 12.0]) / 13)
    v = 13 * unit * scale
    along = jnp.ones(size).at[:3].set(jnp.array([1.0, 2.0, 0.5]))
    norm, slope = jax.jvp(_norm, (v,), (along,))
    assert float(norm) == pytest.approx(13 * scale, rel=1e-15)
    assert float(slope) == pytest.approx((3 - 8 + 6) / 13, rel=1e-14)
    np.testing.assert_allclose(jax.grad(_norm)(v), unit, rtol=1e-15)
    assert float(jax.vmap(_norm)(v[None])[0]) == pytest.approx(13 * scale, rel=1e-15)


def test_norm_of_float32_and_of_zero():
    v = jnp.array([3e-30, 4e-30], jnp.float32)
    assert float(_norm(v)) == pytest.approx(5e-30, rel=1e-6)
    norm, slope = jax.jvp(_norm, (jnp.zeros(2),), (jnp.ones(2),))
    assert float(norm) == float(slope) == 0.0


def test_norm_of_many_small_numbers_loses_none():
    """Their squares are subnormal, and would be taken for zero."""
    v = jnp.full(10_000, 1e-155)
    assert float(_norm(v)) == pytest.approx(1e-153, rel=1e-14)
