"""Distance of examples to the decision boundary: a search, and a lower bound."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._compile import jitted
from .._problem import Problem
from .attacks import carlini_wagner
from .common import refuse_coupled
from .lipschitz import lipschitz_bound

_FEW = 8  # Examples whose outputs alone are held against those among all.
_STEP_FRACTIONS = (1.0, 0.5, 0.25, 0.1)
_DEEPFOOL_STEPS = 30
_OVERSHOOT = 1.02
_PROBE_DIRECTIONS = 16
_PROBE_RADII = (0.25, 0.5, 1.0, 2.0, 4.0)  # in units of the examples' typical norm


class Robustness(eqx.Module):
    r"""L2 distances to the decision boundary; see `robustness`.

    **Attributes:** axes run over examples.

    - `distances`: distance to the nearest misclassified point found, zero where the
        example is misclassified itself, infinite where no such point was found.
    - `nearest`: those points; the example itself where there is none.
    - `margins`: hard margins.
    - `lower_bounds`: margin over Lipschitz constant, zero where the margin is not
        positive, infinite where it is and the constant zero; NaN where none is known.
    """

    distances: Float[np.ndarray, " m"]
    nearest: Float[np.ndarray, "m ..."]
    margins: Float[np.ndarray, " m"]
    lower_bounds: Float[np.ndarray, " m"]

    def accuracy(
        self, radii: Float[Array | np.ndarray, " radii"]
    ) -> Float[np.ndarray, " radii"]:
        """Robust accuracy: the share of examples with a distance above each radius.

        **Source:** Lyu and Li, Appendix K.2, Figure 8.
        """
        radii = np.asarray(radii, np.float64)
        return np.mean(self.distances[None] > radii[:, None], axis=1)


def robustness(
    problem: Problem,
    model: Any,
    x: Float[Array | np.ndarray, "m ..."] | None = None,
    y: Any = None,
    *,
    lipschitz: float | None = None,
    bounds: tuple[float, float] | None = None,
    starts: int = 4,
    steps: int = 40,
    batch_size: int = 128,
    attack: str | None = None,
) -> Robustness:
    r"""L2 robustness $\inf\lVert x' - x\rVert$ over misclassified $x'$, two-sided.

    From above by a search: starts on the other side of the boundary (the nearest
    examples that the model puts in another class, the nearest of random probes at
    several radii, and the end of a DeepFool iteration) are pulled to the boundary by
    bisection; then the example is projected onto the boundary's tangent plane, the
    sphere of the present radius searched towards that projection, and the point found
    pulled in again, until nothing shorter is found.
    From below by $p(x)/\beta$ for a margin that is $\beta$-Lipschitz in $x$.

    **Limits.** The search is local: its distances are upper bounds, each with a
    misclassified point as witness, exact for linear models, and not certified to be
    nearest otherwise. Carlini and Wagner's attack, which Lyu and Li used, is local too:
    on a small trained network, where sequential quadratic programming from several
    starts agrees with the search to 1e-6, it found distances up to 0.5 % longer (1 % in
    float32), and took ten seconds for 12 examples; the search takes milliseconds once
    it is compiled. On larger networks they have not been compared.

    **Arguments:**

    - `model`: a module, or flat parameters of shape `(k,)`.
    - `x`, `y`: examples and labels, such as a test set; the problem's own by default.
    - `lipschitz`: $\beta$. By default `lipschitz_bound(model)` where that is known.
    - `bounds`: least and greatest value of a feature; perturbed points stay inside.
    - `starts`, `steps`: nearest examples, and probes, to start from; projections from
        each.
    - `batch_size`: examples searched at a time, which bounds the memory.
    - `attack`: `"carlini-wagner"` tries Foolbox's attack too (the extra `attacks`), and
        of both points the nearer counts. `gf.diagnostics.carlini_wagner` is the attack
        alone.

    **Raises:** `ValueError` for a model that couples examples, for `x` without `y`, for
    examples or labels unlike the problem's or outside `bounds`, or for an unknown
    attack; `ImportError` for an attack whose library is missing.

    **Source:** Lyu and Li, Appendix K.2.
    """
    if (x is None) != (y is None):
        raise ValueError("`x` and `y` belong together: pass both or neither.")
    if attack not in (None, "carlini-wagner"):
        raise ValueError(f'`attack={attack!r}`: pass None or "carlini-wagner".')
    theta = problem.theta_of(model)
    xs, ys = _examples(problem, theta, x, y)
    refuse_coupled(problem, theta, np.arange(min(_FEW, problem.n)))
    if bounds is not None and not bool(jnp.all((xs >= bounds[0]) & (xs <= bounds[1]))):
        raise ValueError(f"`x` has features outside `bounds={bounds}`.")
    starts = min(starts, problem.n)
    distances, nearest, margins = _search(
        problem, theta, xs, ys, bounds, starts, steps, batch_size
    )
    distances, nearest = np.asarray(distances, np.float64), np.asarray(nearest)
    margins = np.asarray(margins, np.float64)
    if attack is not None:
        moved = carlini_wagner(problem, theta, xs, ys, bounds, batch_size=batch_size)
        distances, nearest = _nearer(np.asarray(xs), distances, nearest, moved)
    if lipschitz is None:
        lipschitz = lipschitz_bound(problem.model(theta), missing=float("nan"))
    lower_bounds = np.maximum(margins, 0)
    if lipschitz == 0:
        lower_bounds = np.where(lower_bounds > 0, np.inf, 0.0)
    else:
        lower_bounds = lower_bounds / lipschitz
    return Robustness(
        distances=distances,
        nearest=nearest,
        margins=margins,
        lower_bounds=lower_bounds,
    )


def _examples(problem, theta, x, y):
    """Examples and labels as the problem has them; by default its own."""
    # Margins have the parameters' dtype, and lengths are compared with them.
    dtype = max(problem.x.dtype, theta.dtype, key=lambda dtype: jnp.finfo(dtype).bits)
    if x is None:
        return jnp.asarray(problem.x, dtype), problem.y
    x, y, shape = jnp.asarray(x, dtype), jnp.asarray(y), problem.x.shape[1:]
    if x.ndim != problem.x.ndim or x.shape[1:] != shape or len(x) == 0:
        raise ValueError(
            f"`x` has shape {x.shape}: pass at least one example of shape {shape}, one "
            "row for each."
        )
    if y.shape != x.shape[:1]:
        raise ValueError(
            f"`x` has {len(x)} examples, but `y` has shape {y.shape}: expected "
            f"({len(x)},)."
        )
    return x, problem.loss.labels(y, problem.output_shape, problem.theta.dtype)


def _nearer(x, distances, nearest, moved):
    """The misclassified points of `moved` where they are nearer (NaN is not)."""
    gaps = np.linalg.norm((moved - x).reshape(len(x), -1), axis=1)
    nearer = gaps < distances
    mask = nearer.reshape(-1, *(1,) * (x.ndim - 1))
    return np.where(nearer, gaps, distances), np.where(mask, moved, nearest)


@jitted
def _search(problem, theta, xs, ys, bounds, starts, steps, batch_size):
    def margin(z, label):
        return problem.loss.margin(problem.outputs(theta, z[None])[0], label)

    def inside(z):
        return z if bounds is None else jnp.clip(z, bounds[0], bounds[1])

    axes = tuple(range(1, problem.x.ndim))
    examples = problem.x.astype(xs.dtype)
    rays = _probes(examples, axes)

    def nearest_wrong(x, points, wrong):
        """The nearest misclassified points come first."""
        gaps = jnp.sqrt(jnp.sum((points - x[None]) ** 2, axis=axes))
        gaps = jnp.where(jax.vmap(wrong)(points), gaps, jnp.inf)
        return points[jnp.argsort(gaps)[:starts]]

    def of_example(pair):
        x, label = pair

        def wrong(z):
            return margin(z, label) <= 0

        def pulled(z):
            return _bisect(x, z, wrong)

        fool = _deepfool(x, lambda z: margin(z, label), inside)
        points = jnp.concatenate(
            [
                nearest_wrong(x, inside(examples), wrong),
                nearest_wrong(x, inside(x[None] + rays), wrong),
                fool[None],
            ]
        )
        usable = jax.vmap(wrong)(points)
        points = jax.vmap(pulled)(points)

        def improve(_, z):
            return _projection_step(x, z, lambda v: margin(v, label), inside, pulled)

        points = jax.vmap(lambda z: jax.lax.fori_loop(0, steps, improve, z))(points)
        lengths = jnp.sqrt(jnp.sum((points - x[None]) ** 2, axis=axes))
        lengths = jnp.where(usable, lengths, jnp.inf)
        best = jnp.argmin(lengths)
        value = margin(x, label)
        found = jnp.isfinite(lengths[best]) & (value > 0)
        distance = jnp.where(value > 0, lengths[best], 0)
        return distance, jnp.where(found, points[best], x), value

    return jax.lax.map(of_example, (xs, ys), batch_size=min(batch_size, len(xs)))


def _probes(x, axes):
    """Offsets in random directions, at radii about the size of the examples."""
    size = jnp.sqrt(jnp.mean(jnp.sum(x**2, axis=axes)))
    shape = (_PROBE_DIRECTIONS, *x.shape[1:])
    rays = jax.random.normal(jax.random.key(0), shape, x.dtype)
    rays = rays / jnp.sqrt(jnp.sum(rays**2, axis=axes, keepdims=True))
    radii = jnp.array(_PROBE_RADII, x.dtype).reshape(-1, *(1,) * x.ndim)
    return (size * radii * rays[None]).reshape(-1, *x.shape[1:])


def _bisect(x, z, wrong):
    """The end of the segment from x to z that is just on the wrong side."""
    rounds = 60 if x.dtype == jnp.float64 else 30

    def halve(_, interval):
        low, high = interval
        middle = (low + high) / 2
        is_wrong = wrong(x + middle * (z - x))
        return jnp.where(is_wrong, low, middle), jnp.where(is_wrong, middle, high)

    zero, one = jnp.zeros((), x.dtype), jnp.ones((), x.dtype)
    _, high = jax.lax.fori_loop(0, rounds, halve, (zero, one))
    return x + high * (z - x)


def _deepfool(x, margin, inside):
    def step(_, z):
        value, grad = jax.value_and_grad(margin)(z)
        size = jnp.sum(grad**2)
        move = jnp.where(value > 0, value / jnp.where(size > 0, size, 1), 0)
        return inside(z - _OVERSHOOT * move * grad)

    return jax.lax.fori_loop(0, _DEEPFOOL_STEPS, step, x)


def _projection_step(x, z, margin, inside, pulled):
    """A boundary point nearer to x than z, or z where none is found."""
    grad = jax.grad(margin)(z)
    size = jnp.sum(grad**2)
    offset = z - x
    radius = jnp.sqrt(jnp.sum(offset**2))
    foot = jnp.sum(grad * offset) / jnp.where(size > 0, size, 1) * grad

    def on_sphere(fraction):
        toward = offset + fraction * (foot - offset)
        length = jnp.sqrt(jnp.sum(toward**2))
        return inside(x + toward * (radius / jnp.where(length > 0, length, 1)))

    fractions = jnp.array(_STEP_FRACTIONS, x.dtype)
    candidates = jax.vmap(on_sphere)(fractions)
    values = jax.vmap(margin)(candidates)
    best = jnp.argmin(values)
    new = pulled(candidates[best])
    shorter = jnp.sum((new - x) ** 2) < jnp.sum(offset**2)
    return jnp.where((values[best] <= 0) & shorter, new, z)
