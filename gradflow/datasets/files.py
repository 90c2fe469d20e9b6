"""The files that hold image data: where they are, how to read and to download them.

A form's `read(path, split)` gives all labels of the split, and a function from indices
to their images, uint8 of shape `(len(index), channels, height, width)`.
"""

import gzip
import hashlib
import io
import os
import pickle
import tarfile
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image


class Form(NamedTuple):
    """One way in which a data set lies in a folder, recognised by the name `file`."""

    file: str
    title: str
    read: Callable[[Path, str], tuple[Any, Callable[[np.ndarray], np.ndarray]]]
    url: str | None = None
    sha256: str | None = None


def find(name: str) -> tuple[Form, Path]:
    """The form and path of a data set: folder, cache, or download."""
    folder = os.environ.get("GRADFLOW_DATA")
    if folder and not Path(folder).is_dir():
        raise FileNotFoundError(
            f"the environment variable GRADFLOW_DATA names {folder!r}, which is not a "
            "folder: correct it or unset it."
        )
    for root in [Path(folder), cache()] if folder else [cache()]:
        for form in FORMS[name]:
            if (root / form.file).exists():
                return form, root / form.file
    form = next(form for form in FORMS[name] if form.url is not None)
    try:
        return form, _download(form)
    except OSError as error:
        known = ", ".join(form.file for form in FORMS[name])
        raise FileNotFoundError(
            f"{name} is neither in GRADFLOW_DATA ({folder or 'not set'}) nor in the "
            f"cache ({cache()}), and {form.url} could not be downloaded ({error}). Put "
            f"one of {known} into a folder and set GRADFLOW_DATA to that folder."
        ) from error


def cache() -> Path:
    """Where downloads are kept."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "gradflow"


def _download(form: Form) -> Path:
    assert form.url is not None
    path = cache() / form.file
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    digest = hashlib.sha256()
    try:
        with urllib.request.urlopen(form.url, timeout=30) as source:
            with open(beside, "wb") as file:
                while block := source.read(1 << 20):
                    digest.update(block)
                    file.write(block)
        if digest.hexdigest() != form.sha256:
            raise ValueError(
                f"{form.url} has the SHA-256 checksum {digest.hexdigest()}, expected "
                f"{form.sha256}: the download was cut short or altered. Try again."
            )
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    return path


def _mnist_npz(path, split):
    with np.load(path) as arrays:
        if f"{split}_images" in arrays:
            pixels, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        else:
            pixels, labels = arrays[f"x_{split}"], arrays[f"y_{split}"]
    return labels, lambda index: pixels[index][:, None]


def _mnist_idx(path, split):
    prefix = "train" if split == "train" else "t10k"
    end = ".gz" if path.suffix == ".gz" else ""
    pixels = _idx(path.with_name(f"{prefix}-images-idx3-ubyte{end}"))
    labels = _idx(path.with_name(f"{prefix}-labels-idx1-ubyte{end}"))
    return labels, lambda index: pixels[index][:, None]


def _idx(path):
    # Two zero bytes, the type (8: uint8), the number of dimensions, then each as a
    # big-endian 32-bit number, then the values.
    raw = path.read_bytes()
    if path.suffix == ".gz":
        raw = gzip.decompress(raw)
    if raw[:3] != b"\0\0\x08":
        raise OSError("not an IDX file of bytes")
    start = 4 + 4 * raw[3]
    shape = np.frombuffer(raw[4:start], ">i4")
    if len(raw) - start != np.prod(shape):
        raise OSError(f"{len(raw) - start} bytes of values for shape {tuple(shape)}")
    return np.frombuffer(raw[start:], np.uint8).reshape(shape)


class _ArraysOnly(pickle.Unpickler):
    """Reads pickled dictionaries of arrays, and runs nothing else that they name."""

    _ALLOWED = {"_reconstruct", "ndarray", "dtype", "encode"}

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        module = module_name.split(".")[0]
        if module not in ("numpy", "_codecs") or global_name not in self._ALLOWED:
            raise OSError(f"it refers to {module_name}.{global_name}")
        return super().find_class(module_name, global_name)


def _cifar10_folder(path, split):
    return _cifar10_batches(split, lambda name: open(path / name, "rb"))


def _cifar10_archive(path, split):
    with tarfile.open(path) as archive:

        def member(name):
            file = archive.extractfile(f"cifar-10-batches-py/{name}")
            if file is None:
                raise OSError(f"{name} is not a file")
            return file

        return _cifar10_batches(split, member)


def _cifar10_batches(split, opened):
    if split == "train":
        names = [f"data_batch_{i}" for i in range(1, 6)]
    else:
        names = ["test_batch"]
    batches = []
    for name in names:
        with opened(name) as file:
            batches.append(_ArraysOnly(file, encoding="bytes").load())
    pixels = np.concatenate([b[b"data"] for b in batches]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([b[b"labels"] for b in batches])
    return labels, lambda index: pixels[index]


def _cifar10_jpeg(path, split):
    with np.load(path) as arrays:
        prefix = arrays["jpeg_prefix"].tobytes()
        payload, offsets = arrays[f"{split}_jpeg"], arrays[f"{split}_offsets"]
        labels = arrays[f"{split}_labels"]

    def image(i):
        content = prefix + payload[offsets[i] : offsets[i + 1]].tobytes()
        return np.moveaxis(np.asarray(Image.open(io.BytesIO(content))), -1, 0)

    return labels, lambda index: np.stack([image(i) for i in index])


FORMS: dict[str, list[Form]] = {
    "mnist": [
        Form(
            "mnist.npz",
            "MNIST",
            _mnist_npz,
            url="https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz",
            sha256="731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1",
        ),
        Form("train-images-idx3-ubyte.gz", "MNIST", _mnist_idx),
        Form("train-images-idx3-ubyte", "MNIST", _mnist_idx),
    ],
    "cifar10": [
        Form("cifar-10-batches-py", "CIFAR-10", _cifar10_folder),
        Form(
            "cifar-10-python.tar.gz",
            "CIFAR-10",
            _cifar10_archive,
            url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
            sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
        ),
        Form("cifar10_jpeg.npz", "CIFAR-10 (JPEG)", _cifar10_jpeg),
    ],
}
