r"""The degree of homogeneity of a model, measured by Euler's identity.

For $\Phi(x; c\theta) = c^L \Phi(x; \theta)$, $\langle\theta, \nabla_\theta\Phi\rangle
= L\,\Phi$ wherever the gradient exists. The test point is the initialisation shaken by
noise of the same size: zero weights or zero biases would satisfy the identity emptily.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ._parameters import Layout

_EXAMPLES = 32  # Euler's identity is tested on this many examples.


class Probe(NamedTuple):
    """A network's outputs near `theta` for some examples, and their derivatives.

    Compiled once, for the degree in all parameters and in each layer.
    """

    outputs: Callable
    theta: Array
    x: Array
    eps: float  # Relative rounding of the outputs.
    run: Callable

    @staticmethod
    def of(outputs: Callable, theta: Array, x: Array, eps: float) -> "Probe":
        """The probe of `outputs(theta, x)` on a few examples."""
        x = x[:_EXAMPLES]

        @jax.jit
        def run(theta, mask):
            # The outputs and their derivative along the masked theta.
            value, radial = jax.jvp(lambda t: outputs(t, x), (theta,), (theta * mask,))
            return value.ravel(), radial.ravel()

        return Probe(outputs, theta, x, eps, run)

    def __call__(self, mask: Array) -> tuple[Array, Array]:
        """At two points, as one output alone satisfies the identity for some degree."""
        results = [self.run(_shaken(self.theta, seed), mask) for seed in range(2)]
        values, radials = zip(*results)
        return jnp.concatenate(values), jnp.concatenate(radials)


def check_degree(probe: Probe, declared: float | int | None) -> float:
    """Returns the degree, measured; raises if there is none or `declared` is wrong."""
    tol = probe.eps**0.6
    degree, residual = _measure(probe, jnp.ones_like(probe.theta))
    if residual > tol:
        raise ValueError(
            f"`model` is not homogeneous: Euler's identity fails by {residual:.1e} "
            f"(relative) for the best degree {degree:.4g}. Biases and skip connections "
            "do this; pass `homogeneous=False`, or remove them."
        )
    if declared is not None and abs(declared - degree) > tol * max(1.0, abs(degree)):
        raise ValueError(
            f"`degree={declared}` was declared, but the model's degree measured by "
            f"Euler's identity is {degree:.6g}: leave `degree` out, or pass that."
        )
    degree = _rounded(degree, tol) if declared is None else float(declared)
    if degree < 0:
        raise ValueError(f"`model` is homogeneous of negative degree {degree:.4g}.")
    _check_scaling(probe, degree, tol)
    return degree


def _check_scaling(probe, degree, tol):
    """Do values scale as the gradients say? A wrong derivative rule shows here."""
    point = _shaken(probe.theta, 0)
    run = jax.jit(lambda t: probe.outputs(t, probe.x))
    once, twice = run(point), run(2 * point)
    size = jnp.max(jnp.abs(twice))
    error = jnp.max(jnp.abs(twice - 2.0**degree * once)) / jnp.where(size > 0, size, 1)
    if float(error) > 10 * tol:
        raise ValueError(
            f"`model` is not homogeneous: Euler's identity gives degree {degree:g}, "
            f"but doubling the parameters misses 2^{degree:g} by {float(error):.1e} "
            "(relative). Does a custom gradient rule disagree with the values?"
        )


def measured_layers(
    probe: Probe, layout: Layout, degree: float
) -> tuple[tuple[tuple[int, ...], ...], tuple[float, ...]]:
    r"""The finest partition into layers that is found, and the degree in each.

    An array that has a degree alone is a layer. Of the others, those that one module
    holds are a layer if they have a degree together, as a weight and a bias in the
    first layer. What is left then is one more: with Euler's identity for all
    parameters and for every other layer, it holds for the rest as well.
    """
    tol, degree_in = probe.eps**0.6, _degree_in(probe, layout)
    found: dict[tuple[int, ...], float] = {}

    def without_degree(candidates):
        degrees = {arrays: degree_in(arrays) for arrays in candidates}
        found.update({arrays: k for arrays, k in degrees.items() if k is not None})
        return [j for arrays, k in degrees.items() if k is None for j in arrays]

    modules: dict[str, tuple[int, ...]] = {}
    for j in without_degree([(j,) for j in range(len(layout.names))]):
        module = layout.names[j].rpartition(".")[0]
        modules[module] = (*modules.get(module, ()), j)
    if rest := without_degree(modules.values()):
        found[tuple(sorted(rest))] = _rounded(degree - sum(found.values()), tol)
    return tuple(sorted(found)), tuple(found[arrays] for arrays in sorted(found))


def declared_layers(
    probe: Probe, layout: Layout, layers
) -> tuple[tuple[tuple[int, ...], ...], tuple[float, ...]]:
    """The partition declared by names of arrays, and the degree in each layer."""
    names = list(layout.names)
    if sorted(name for layer in layers for name in layer) != sorted(names):
        raise ValueError(
            f"`layers={layers}` must name every trained array once: {names}."
        )
    parts = tuple(tuple(names.index(name) for name in layer) for layer in layers)
    degree_in = _degree_in(probe, layout)
    degrees = []
    for layer, arrays in zip(layers, parts):
        degrees.append(degree_in(arrays))
        if degrees[-1] is None:
            raise ValueError(
                f"`layers`: the model is not homogeneous in {list(layer)} alone. Join "
                "them with others, or leave `layers` out to have them found."
            )
    return parts, tuple(degrees)


def _degree_in(probe, layout):
    """The function: arrays (by number) -> degree in them together, or `None`."""
    theta, tol = probe.theta, probe.eps**0.6
    positions = jnp.arange(theta.size)

    def degree_in(arrays) -> float | None:
        inside = jnp.zeros(theta.size, bool)
        for j in arrays:
            start, stop = layout.offsets[j : j + 2]
            inside |= (positions >= start) & (positions < stop)
        degree, residual = _measure(probe, inside.astype(theta.dtype))
        return None if residual > tol else _rounded(degree, tol)

    return degree_in


def _measure(probe, mask):
    value, radial = probe(mask)
    size = float(jnp.vdot(value, value))
    degree = float(jnp.vdot(value, radial)) / size if size > 0 else 0.0
    scale = float(jnp.linalg.norm(value)) * max(1.0, abs(degree))
    residual = float(jnp.linalg.norm(radial - degree * value)) / scale if scale else 0.0
    return degree, residual


def _shaken(theta, seed):
    size = jnp.sqrt(jnp.mean(theta**2))
    size = jnp.where(size > 0, size, 1)
    noise = jax.random.normal(jax.random.key(seed), theta.shape, theta.dtype)
    return theta + size * noise


def _rounded(degree, tol):
    return float(round(degree)) if abs(degree - round(degree)) < tol else degree
