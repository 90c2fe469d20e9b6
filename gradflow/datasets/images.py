"""MNIST and CIFAR-10, from a folder, the cache or a download, in that order.

`task`, `classes`, `n` and `dtype` are described in `gradflow.datasets.selection`.
"""

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from .files import FORMS, find
from .selection import DIGITS, select
from .tables import Labels

CIFAR10 = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)


def mnist(
    task: str | int = "classes",
    *,
    split: str = "train",
    n: int | None = None,
    classes: Sequence[str | int] | None = None,
    flat: bool = False,
    dtype: Any = np.float64,
) -> tuple[Float[np.ndarray, "n ..."], Labels]:
    """Handwritten digits, 60,000 (`split="train"`) or 10,000 (`split="test"`).

    Pixels in [0, 1], of shape `(n, 1, 28, 28)`, or `(n, 784)` with `flat=True`. See
    `cifar10` for where the files are looked for; known forms are `mnist.npz` (ours or
    Keras's) and the original IDX files, gzipped or not.
    """
    return _images("mnist", DIGITS, task, split, n, classes, flat, dtype)


def cifar10(
    task: str | int = "classes",
    *,
    split: str = "train",
    n: int | None = None,
    classes: Sequence[str | int] | None = None,
    flat: bool = False,
    dtype: Any = np.float64,
) -> tuple[Float[np.ndarray, "n ..."], Labels]:
    """Photographs of ten things, 50,000 (`split="train"`) or 10,000 (`split="test"`).

    Pixels in [0, 1], of shape `(n, 3, 32, 32)`, channels red, green, blue, or
    `(n, 3072)` with `flat=True`.
    Classes airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck.

    The files are looked for in the folder that the environment variable
    `GRADFLOW_DATA` names, then in the cache (`$XDG_CACHE_HOME/gradflow`, by default
    `~/.cache/gradflow`); otherwise downloaded into the cache and checked. Known forms
    are `cifar-10-python.tar.gz`, its folder `cifar-10-batches-py`, and
    `cifar10_jpeg.npz` (JPEG-compressed images; `gf.datasets.title` tells).

    **Raises:** `FileNotFoundError` if there is no such file and no download.
    """
    return _images("cifar10", CIFAR10, task, split, n, classes, flat, dtype)


def title(name: str) -> str:
    """What to call a data set in a figure: "CIFAR-10 (JPEG)" for compressed images."""
    if name in FORMS:
        form, _ = find(name)
        return form.title
    return name.replace("_", " ").capitalize()


def _images(name, names, task, split, n, classes, flat, dtype):
    if split not in ("train", "test"):
        raise ValueError(f'`split={split!r}` must be "train" or "test".')
    form, path = find(name)
    with _reading(form, path):
        labels, pixels_of = form.read(path, split)
    target = np.asarray(labels, dtype=np.int64)
    index, y = select(target, names, task=task, n=n, classes=classes, dtype=dtype)
    with _reading(form, path):
        x = pixels_of(index).astype(dtype) / 255
    return (x.reshape(len(x), -1) if flat else x), y


@contextlib.contextmanager
def _reading(form, path):
    # Damaged files make each library raise something else.
    try:
        yield
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read as {form.title} ({error!r}): it is damaged or of "
            "another form. Delete or replace it."
        ) from error
