"""Made-up data in the plane, embedded in R^3 by a last coordinate of 1."""

from typing import Any

import numpy as np
import sklearn.datasets
from jaxtyping import Float

from .selection import float_dtype
from .tables import with_bias


def two_moons(
    n: int = 200, *, noise: float = 0.1, seed: int = 0, dtype: Any = np.float64
) -> tuple[Float[np.ndarray, "n 3"], Float[np.ndarray, " n"]]:
    """Two interleaved half circles, labels -1 and +1, with Gaussian noise."""
    dtype = float_dtype(dtype)
    _check_size(n)
    if not noise >= 0:
        raise ValueError(f"`noise={noise}` must not be negative.")
    x, y = sklearn.datasets.make_moons(n, noise=noise, random_state=seed)
    return with_bias(np.asarray(x)).astype(dtype), (2 * np.asarray(y) - 1).astype(dtype)


def plane(
    n: int = 100,
    *,
    width: int = 8,
    margin: float = 0.3,
    seed: int = 0,
    dtype: Any = np.float64,
) -> tuple[Float[np.ndarray, "n 3"], Float[np.ndarray, " n"]]:
    r"""Points of the square $[-1, 1]^2$ labelled by a random network.

    The teacher is $f(x) = \sum_{j \le \text{width}} a_j \max(0, \langle w_j, (x, 1)
    \rangle) - b$ with standard normal $a$ and $w$, and the bias $b$ its median over
    the square, so that both labels are equally likely. Points with $|f(x)|$ below
    `margin` times the standard deviation of $f$ over the square are deleted. A teacher
    that leaves either label less than a quarter of what remains is drawn again. It
    depends on the seed and the width, not on `n`, and on `margin` in that only.

    **Source:** Ji and Telgarsky, arXiv:2006.06657, Figure 1 and Appendix A (teacher
    with a bias, low-margin points deleted, 1 appended; its width and the threshold
    are not stated there).
    """
    dtype = float_dtype(dtype)
    _check_size(n)
    if width < 1:
        raise ValueError(f"`width={width}` must be positive.")
    if not 0 <= margin <= 1:
        raise ValueError(
            f"`margin={margin}` must lie in [0, 1], in standard deviations of the "
            "teacher's output: beyond, few points are left."
        )
    rng = np.random.default_rng(seed)
    line = np.linspace(-1, 1, 101)
    grid = with_bias(np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2))
    while True:
        w, a = rng.normal(size=(width, 3)), rng.normal(size=width)
        over_square = _teacher(grid, w, a)
        bias, least = np.median(over_square), margin * np.std(over_square)
        signs = _signs(over_square - bias, least)
        fewest = min(np.sum(signs > 0), np.sum(signs < 0))
        if fewest > np.count_nonzero(signs) / 4:
            break
    points, labels = np.zeros((0, 3)), np.zeros(0)
    while len(points) < n:
        x = with_bias(rng.uniform(-1, 1, size=(4 * n, 2)))
        signs = _signs(_teacher(x, w, a) - bias, least)
        points = np.concatenate([points, x[signs != 0]])
        labels = np.concatenate([labels, signs[signs != 0]])
    return points[:n].astype(dtype), labels[:n].astype(dtype)


def _signs(output, least):
    """The labels, zero where there is none: within the margin, or on a flat zero."""
    return np.where(np.abs(output) >= least, np.sign(output), 0)


def _teacher(x, w, a):
    return np.maximum(x @ w.T, 0) @ a


def _check_size(n):
    if not (isinstance(n, int | np.integer) and n >= 2):
        raise ValueError(f"`n={n}` must be a whole number of at least 2.")
