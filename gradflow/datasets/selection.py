"""Choosing examples and labels; the arguments that all data sets share.

- `task`: `"classes"` gives labels 0, ..., C - 1, in the order of `classes`. The name or
  number of a class gives +1 for that class and -1 for the rest. Digits also have
  `"parity"`, +1 for odd ones and -1 for even ones.
- `classes`: names or numbers of the classes to keep; all of them by default.
- `n`: so many examples, as evenly over the classes as they last, the earliest first,
  in the order of the full set. Features do not depend on the selection.
- `dtype`: floating-point type of `x`, and of labels +-1. Class labels are int64.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

DIGITS = tuple("0123456789")


def float_dtype(dtype: Any) -> np.dtype:
    """`dtype` as a NumPy type, checked to be floating point."""
    made = np.dtype(dtype)
    if not np.issubdtype(made, np.floating):
        raise ValueError(
            f"`dtype={dtype}` is not floating point: pass np.float64 or np.float32."
        )
    return made


def select(
    target: np.ndarray,
    names: Sequence[str],
    *,
    task: str | int,
    n: int | None,
    classes: Sequence[str | int] | None,
    dtype: Any,
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the chosen examples, and their labels for `task`."""
    chosen = _chosen(names, classes)
    labels = _labels(target, names, chosen, task, float_dtype(dtype))
    index = np.flatnonzero(np.isin(target, chosen))
    if n is not None:
        index = index[_balanced(target[index], n, len(chosen))]
    return index, labels[index]


def _chosen(names, classes) -> list[int]:
    if classes is None:
        return list(range(len(names)))
    chosen = [_class_number(names, c, "classes") for c in classes]
    if len(set(chosen)) < max(2, len(chosen)):
        raise ValueError(
            f"`classes={tuple(classes)}` must name at least two classes, each once."
        )
    return chosen


def _class_number(names, wanted, argument, others=()) -> int:
    if str(wanted) in names:
        return list(names).index(str(wanted))
    if isinstance(wanted, int | np.integer) and 0 <= wanted < len(names):
        return int(wanted)
    known = ", ".join([*map(repr, others), *map(repr, names)])
    raise ValueError(f"`{argument}` has {wanted!r}, which is not among {known}.")


def _labels(target, names, chosen, task, dtype) -> np.ndarray:
    if task == "classes":
        order = np.full(len(names), -1)
        order[chosen] = np.arange(len(chosen))
        return order[target]
    if task == "parity" and tuple(names) == DIGITS:
        positive = target % 2 == 1
    else:
        others = ("classes", "parity") if tuple(names) == DIGITS else ("classes",)
        number = _class_number(names, task, "task", others)
        if number not in chosen:
            raise ValueError(
                f"`task={task!r}` is not among the chosen `classes` "
                f"({', '.join(names[c] for c in chosen)})."
            )
        positive = target == number
    if len(np.unique(positive[np.isin(target, chosen)])) == 1:
        raise ValueError(
            f"`task={task!r}` gives all of the chosen `classes` "
            f"({', '.join(names[c] for c in chosen)}) the same label: choose others."
        )
    return np.where(positive, 1, -1).astype(dtype)


def _balanced(target, n, classes) -> np.ndarray:
    if not (isinstance(n, int | np.integer) and classes <= n <= len(target)):
        raise ValueError(
            f"`n={n}` must be a whole number from {classes} (one example of each "
            f"class) to {len(target)} (all of them)."
        )
    # Every class's first example, then every class's second, and so on.
    rank = np.zeros(len(target), dtype=int)
    for value in np.unique(target):
        rank[target == value] = np.arange(np.sum(target == value))
    return np.sort(np.lexsort((target, rank))[:n])
