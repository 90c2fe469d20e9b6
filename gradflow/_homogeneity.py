r"""The degree of homogeneity of a model, measured by Euler's identity.

For $\Phi(x; c\theta) = c^L \Phi(x; \theta)$, $\langle\theta, \nabla_\theta\Phi\rangle
= L\,\Phi$ wherever the gradient exists. The test point is the initialisation shaken by
noise of the same size: zero weights or zero biases would satisfy the identity emptily.
"""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, PyTree

from ._compile import jitted
from ._parameters import Layout, outputs

_EXAMPLES = 32  # Euler's identity is tested on this many examples.


class Probe(NamedTuple):
    """A network's outputs near its parameters for some examples, and their derivatives.

    Compiled once for all networks of the same shapes, for the degree in all parameters
    and in each layer.
    """

    layout: Layout
    frozen: PyTree
    points: tuple[Float[np.ndarray, " k"], ...]
    x: Array
    eps: float  # Relative rounding of the outputs.

    @staticmethod
    def of(
        layout: Layout, frozen: PyTree, theta: Float[Array, " k"], x: Array, eps: float
    ) -> "Probe":
        """The probe of the network with these parameters on a few examples."""
        # Two, as one output alone satisfies the identity for some degree.
        points = tuple(_shaken(np.asarray(theta), seed) for seed in range(2))
        return Probe(layout, frozen, points, x[:_EXAMPLES], eps)

    def at(
        self, theta: Float[np.ndarray, " k"], mask: Any
    ) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
        """The outputs, and their derivative along the masked `theta`."""
        direction = np.where(mask, theta, np.zeros_like(theta))
        value, radial = _outputs(self.layout, self.frozen, theta, direction, self.x)
        return np.ravel(value).astype(float), np.ravel(radial).astype(float)

    def near(self, mask: Any) -> tuple[np.ndarray, np.ndarray]:
        """The same at all of `points`, joined."""
        values, radials = zip(*(self.at(point, mask) for point in self.points))
        return np.concatenate(values), np.concatenate(radials)


@jitted
def _outputs(layout, frozen, theta, direction, x):
    return jax.jvp(
        lambda theta: outputs(layout, frozen, theta, x), (theta,), (direction,)
    )


def check_degree(probe: Probe, declared: float | int | None) -> float:
    """Returns the degree, measured; raises if there is none or `declared` is wrong."""
    tol = probe.eps**0.6
    degree, residual = _measure(probe, True)
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
    point = probe.points[0]
    (once, _), (twice, _) = probe.at(point, True), probe.at(2 * point, True)
    size = np.max(np.abs(twice))
    error = np.max(np.abs(twice - 2.0**degree * once)) / (size if size > 0 else 1)
    if error > 10 * tol:
        raise ValueError(
            f"`model` is not homogeneous: Euler's identity gives degree {degree:g}, "
            f"but doubling the parameters misses 2^{degree:g} by {error:.1e} "
            "(relative). Does a custom gradient rule disagree with the values?"
        )


def measured_layers(
    probe: Probe, degree: float
) -> tuple[tuple[tuple[int, ...], ...], tuple[float, ...]]:
    r"""The finest partition into layers that is found, and the degree in each.

    An array that has a degree alone is a layer. Of the others, those that one module
    holds are a layer if they have a degree together, as a weight and a bias in the
    first layer. What is left then is one more: with Euler's identity for all
    parameters and for every other layer, it holds for the rest as well.
    """
    tol, degree_in, names = probe.eps**0.6, _degree_in(probe), probe.layout.names
    found: dict[tuple[int, ...], float] = {}

    def without_degree(candidates):
        degrees = {arrays: degree_in(arrays) for arrays in candidates}
        found.update({arrays: k for arrays, k in degrees.items() if k is not None})
        return [j for arrays, k in degrees.items() if k is None for j in arrays]

    modules: dict[str, tuple[int, ...]] = {}
    for j in without_degree([(j,) for j in range(len(names))]):
        module = names[j].rpartition(".")[0]
        modules[module] = (*modules.get(module, ()), j)
    if rest := without_degree(modules.values()):
        found[tuple(sorted(rest))] = _rounded(degree - sum(found.values()), tol)
    return tuple(sorted(found)), tuple(found[arrays] for arrays in sorted(found))


def declared_layers(
    probe: Probe, layers
) -> tuple[tuple[tuple[int, ...], ...], tuple[float, ...]]:
    """The partition declared by names of arrays, and the degree in each layer."""
    names = list(probe.layout.names)
    if sorted(name for layer in layers for name in layer) != sorted(names):
        raise ValueError(
            f"`layers={layers}` must name every trained array once: {names}."
        )
    parts = tuple(tuple(names.index(name) for name in layer) for layer in layers)
    degree_in = _degree_in(probe)
    degrees = []
    for layer, arrays in zip(layers, parts):
        degrees.append(degree_in(arrays))
        if degrees[-1] is None:
            raise ValueError(
                f"`layers`: the model is not homogeneous in {list(layer)} alone. Join "
                "them with others, or leave `layers` out to have them found."
            )
    return parts, tuple(degrees)


def _degree_in(probe):
    """The function: arrays (by number) -> degree in them together, or `None`."""
    offsets, tol = probe.layout.offsets, probe.eps**0.6

    def degree_in(arrays) -> float | None:
        inside = np.zeros(offsets[-1], bool)
        for j in arrays:
            inside[offsets[j] : offsets[j + 1]] = True
        degree, residual = _measure(probe, inside)
        return None if residual > tol else _rounded(degree, tol)

    return degree_in


def _measure(probe, mask):
    value, radial = probe.near(mask)
    largest = float(np.max(np.abs(value), initial=0))
    if not largest > 0:
        raise ValueError(
            "`model` returns nothing but zeros near its parameters, so that its degree "
            "cannot be measured: they are so small that the outputs underflow, or all "
            "neurons of a layer are off. Choose other initial parameters."
        )
    # Squares of outputs of 1e-170 would underflow.
    value, radial = value / largest, radial / largest
    size = float(value @ value)
    degree = float(value @ radial) / size
    scale = np.sqrt(size) * max(1.0, abs(degree))
    return degree, float(np.linalg.norm(radial - degree * value)) / scale


def _shaken(theta, seed):
    wide = theta.astype(np.float64)
    size = np.sqrt(np.mean(wide**2))
    noise = np.random.default_rng(seed).standard_normal(theta.size)
    return (wide + (size if size > 0 else 1) * noise).astype(theta.dtype)


def _rounded(degree, tol):
    return float(round(degree)) if abs(degree - round(degree)) < tol else degree
