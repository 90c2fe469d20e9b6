"""Carlini and Wagner's attack, from the library Foolbox (the extra `attacks`)."""

import importlib
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._compile import jitted
from .._problem import Problem
from .common import is_multiclass

_ROOM = 5.0  # Half-width of the attack's box without bounds, in largest features.


def carlini_wagner(
    problem: Problem,
    theta: Float[Array, " k"],
    x: Float[Array, "m ..."],
    y: Array,
    bounds: tuple[float, float] | None = None,
    *,
    batch_size: int = 128,
) -> Float[np.ndarray, "m ..."]:
    r"""Points near `x` that the attack moved over the decision boundary.

    It minimises $\lVert x' - x\rVert^2 + c\max(0, p(x'))$ with Adam, in coordinates in
    which `bounds` are at infinity, for six values of $c$ by bisection, in at most 300
    steps each. Outputs are scaled so that the boundary's distance, not the growing
    margins, decides which $c$ is right.

    **Arguments:**

    - `theta`: flat parameters; `x`, `y`: examples and labels as in `problem`.
    - `bounds`: least and greatest feature; five times the largest of `x` either way by
        default.
    - `batch_size`: examples attacked at a time, which bounds the memory.

    **Returns:** one point for each example, NaN where the attack failed.

    **Raises:** `ImportError` without Foolbox.

    **Source:** Carlini and Wagner, "Towards evaluating the robustness of neural
    networks", Section VI.A; Lyu and Li, Appendix K.2.
    """
    foolbox = _foolbox()
    if bounds is None:
        reach = _ROOM * float(jnp.max(jnp.abs(x)))
        bounds = (-reach, reach)
    classes = (y if jnp.issubdtype(y.dtype, jnp.integer) else y > 0).astype(int)
    logits = _logits(problem.model(theta))
    gap = float(np.median(np.ptp(np.asarray(logits(x[:batch_size])), axis=1)))
    unit = float(np.sum(np.square(x)) / len(x)) / (gap or 1.0)
    moved = []
    # Foolbox mixes ranks and types, which strict settings refuse.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        attack = foolbox.attacks.L2CarliniWagnerAttack(
            binary_search_steps=6, steps=300, stepsize=0.01, initial_const=0.2
        )
        target = foolbox.JAXModel(lambda z: unit * logits(z), bounds=bounds)
        for start in range(0, len(x), batch_size):
            part = slice(start, start + batch_size)
            points, _, fooled = attack(target, x[part], classes[part], epsilons=None)
            fooled = np.asarray(fooled).reshape(-1, *(1,) * (x.ndim - 1))
            moved.append(np.where(fooled, np.asarray(points), np.nan))
    return np.concatenate(moved)


def _foolbox() -> ModuleType:
    try:
        return importlib.import_module("foolbox")
    except ImportError as error:
        raise ImportError(
            '`attack="carlini-wagner"` needs the library Foolbox: '
            "pip install gradflow-jax[attacks]"
        ) from error


def _logits(model):
    """One output for each class; labels -1 and 1 are the classes 0 and 1."""

    @jitted
    def logits(x):
        out = jax.vmap(lambda z: jax.vmap(model, axis_name="batch")(z[None])[0])(x)
        if is_multiclass(out):
            return out
        return jnp.stack([-out.reshape(-1), out.reshape(-1)], axis=1) / 2

    return logits
