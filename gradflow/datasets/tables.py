"""Small tables that ship with scikit-learn.

`task`, `classes`, `n` and `dtype` are described in `gradflow.datasets.selection`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import sklearn.datasets
from jaxtyping import Float, Int

from .selection import DIGITS, select

Labels = Float[np.ndarray, " n"] | Int[np.ndarray, " n"]


def digits(
    task: str | int = "parity",
    *,
    n: int | None = None,
    classes: Sequence[str | int] | None = None,
    dtype: Any = np.float64,
) -> tuple[Float[np.ndarray, "n 65"], Labels]:
    """Handwritten digits, 8 x 8 pixels, 1797 of them: features have unit norm.

    Pixels over 16, then a column of ones, then each row divided by its norm.
    """
    raw: Any = sklearn.datasets.load_digits()
    x = with_bias(raw.data / 16)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return _chosen(x, raw.target, DIGITS, task, n, classes, dtype)


def iris(
    task: str | int = "setosa",
    *,
    n: int | None = None,
    classes: Sequence[str | int] | None = None,
    dtype: Any = np.float64,
) -> tuple[Float[np.ndarray, "n 5"], Labels]:
    """150 irises: 4 standardised measurements and a column of ones.

    Classes setosa, versicolor, virginica; the first is linearly separable.
    """
    return _standardized(sklearn.datasets.load_iris(), task, n, classes, dtype)


def breast_cancer(
    task: str | int = "benign",
    *,
    n: int | None = None,
    classes: Sequence[str | int] | None = None,
    dtype: Any = np.float64,
) -> tuple[Float[np.ndarray, "n 31"], Labels]:
    """569 tumours: 30 standardised measurements and a column of ones.

    Classes malignant, benign; linearly separable, by the narrow margin 0.0014.
    """
    return _standardized(sklearn.datasets.load_breast_cancer(), task, n, classes, dtype)


def wine(
    task: str | int = "classes",
    *,
    n: int | None = None,
    classes: Sequence[str | int] | None = None,
    dtype: Any = np.float64,
) -> tuple[Float[np.ndarray, "n 14"], Labels]:
    """178 wines: 13 standardised measurements and a column of ones.

    Classes class_0, class_1, class_2; linearly separable.
    """
    return _standardized(sklearn.datasets.load_wine(), task, n, classes, dtype)


def with_bias(x: np.ndarray) -> np.ndarray:
    """`x` with a last column of ones, a bias for models that have none."""
    return np.column_stack([x, np.ones(len(x))])


def _standardized(raw, task, n, classes, dtype):
    x = with_bias((raw.data - raw.data.mean(axis=0)) / raw.data.std(axis=0))
    names = tuple(map(str, raw.target_names))
    return _chosen(x, raw.target, names, task, n, classes, dtype)


def _chosen(x, target, names, task, n, classes, dtype):
    index, y = select(target, names, task=task, n=n, classes=classes, dtype=dtype)
    return x[index].astype(dtype), y
