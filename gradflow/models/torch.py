r"""Weights in PyTorch's layout, from and to safetensors or npz files, without PyTorch.

PyTorch keeps images channels first and we keep them channels last: convolution
filters are transposed, and the columns of a dense layer behind an image reordered.
"""

import os
import pathlib
from collections.abc import Mapping
from typing import Any, TypeVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from .cnn import VGG16, HAlexNet, LyuLiCNN
from .dense import MLP, DeepLinear
from .residual import DenseNet121, ResNet18

Model = TypeVar("Model")
# Statistics of batch normalisation outside training, which are not parameters.
_IGNORED = ("running_mean", "running_var", "num_batches_tracked")


def from_state_dict(model: Model, state: Mapping[str, Any]) -> Model:
    """The model with the weights of a PyTorch `state_dict`, given as NumPy arrays.

    **Arguments:**

    - `model`: a named network: `HAlexNet` (names `conv1`, `conv2`, `fc1`, `fc2`, `fc3`
        of the PyTorch tutorial), `LyuLiCNN` (`conv1`, `conv2`, `fc1`, `fc2`), `VGG16`
        (`features.0`, ..., `classifier`), `ResNet18` and `DenseNet121` (torchvision's
        names), `MLP` and `DeepLinear` (`nn.Sequential`: `0`, `2`, `4`, ...).
    - `state`: names to arrays; running statistics are ignored.

    **Raises:** `ValueError` for names that are missing or unknown and for shapes that
    do not fit.
    """
    slots = _slots(model)
    given = {name for name in state if not name.endswith(_IGNORED)}
    if given != slots.keys():
        raise ValueError(
            f"`state` does not fit {type(model).__name__}: missing "
            f"{sorted(slots.keys() - given)}, unknown {sorted(given - slots.keys())}."
        )
    new = []
    for name, (old, image) in slots.items():
        array = _to_ours(np.asarray(state[name]), image)
        if array.shape != old.shape:
            raise ValueError(
                f"`{name}` has shape {np.shape(state[name])}, which does not fit the "
                f"model's {old.shape} (PyTorch's axes in our order: {array.shape})."
            )
        new.append(jnp.asarray(array, old.dtype))
    return eqx.tree_at(lambda m: [old for old, _ in _slots(m).values()], model, new)


def to_state_dict(model: Any) -> dict[str, np.ndarray]:
    """The model's weights as NumPy arrays, named and laid out as PyTorch does."""
    return {
        name: _to_torch(np.asarray(array), image)
        for name, (array, image) in _slots(model).items()
    }


def load_torch(model: Model, path: str | os.PathLike) -> Model:
    """The model with the weights in a `.safetensors` or `.npz` file.

    See `from_state_dict`. Reading safetensors needs the package of that name:
    `pip install "gradflow-jax[safetensors]"`.
    """
    path = pathlib.Path(path)
    if _is_npz(path):
        with np.load(path) as file:
            return from_state_dict(model, dict(file))
    return from_state_dict(model, _safetensors().load_file(path))


def save_torch(model: Any, path: str | os.PathLike) -> None:
    """Writes the model's weights to a `.safetensors` or `.npz` file for PyTorch."""
    path, state = pathlib.Path(path), to_state_dict(model)
    if _is_npz(path):
        np.savez(path, **state)  # pyright: ignore[reportArgumentType]
    else:
        contiguous = {name: np.ascontiguousarray(a) for name, a in state.items()}
        _safetensors().save_file(contiguous, path)


def _is_npz(path):
    if path.suffix not in (".npz", ".safetensors"):
        raise ValueError(f"`path` must end in .npz or .safetensors; got {str(path)!r}.")
    return path.suffix == ".npz"


def _safetensors():
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            'Install `safetensors` (pip install "gradflow-jax[safetensors]"), or use '
            "an .npz file."
        ) from error
    return safetensors.numpy


def _to_ours(array, image):
    """`image`: (height, width) of what a dense layer's columns flatten."""
    if array.ndim == 4:
        return array.transpose(0, 2, 3, 1)
    if image is not None and array.ndim == 2:
        array = array.reshape(len(array), -1, *image)
        return array.transpose(0, 2, 3, 1).reshape(len(array), -1)
    return array


def _to_torch(array, image):
    if array.ndim == 4:
        return array.transpose(0, 3, 1, 2)
    if image is not None and array.ndim == 2:
        array = array.reshape(len(array), *image, -1)
        return array.transpose(0, 3, 1, 2).reshape(len(array), -1)
    return array


def _slots(model) -> dict[str, tuple[Any, tuple[int, int] | None]]:
    """PyTorch's name of each array, the array, and the image behind its columns."""
    slots = {}
    for prefix, (layer, image) in _layers(model).items():
        for part in ("weight", "bias"):
            array = getattr(layer, part)
            if array is not None:
                slots[f"{prefix}.{part}"] = (array, image)
    return slots


def _layers(model) -> dict[str, tuple[Any, Any]]:
    if isinstance(model, HAlexNet | LyuLiCNN):
        image = (5, 5) if isinstance(model, HAlexNet) else (7, 7)
        layers: dict[str, Any] = {
            f"conv{i}": (conv, None) for i, conv in enumerate(model.convs, 1)
        }
        for i, dense in enumerate(model.dense, 1):
            layers[f"fc{i}"] = (dense, image if i == 1 else None)
        return layers
    if isinstance(model, VGG16):
        layers, position = dict[str, Any](), 0
        for group in model.groups:
            for conv in group:
                layers[f"features.{position}"] = (conv, None)
                position += 2  # the convolution and its activation
            position += 1  # the pool
        return layers | {"classifier": (model.dense, None)}
    if isinstance(model, MLP | DeepLinear):
        step = 2 if isinstance(model, MLP) else 1
        return {str(step * i): (layer, None) for i, layer in enumerate(model.layers)}
    if isinstance(model, ResNet18):
        layers = _resnet(model)
    elif isinstance(model, DenseNet121):
        layers = _densenet(model)
    else:
        raise ValueError(
            f"`model` is a {type(model).__name__}, whose PyTorch names are not known: "
            "use `equinox.tree_at` to set its weights."
        )
    return {name: (layer, None) for name, layer in layers.items() if layer is not None}


def _resnet(model):
    layers: dict[str, Any] = {"conv1": model.conv1, "bn1": model.bn1}
    for index, block in enumerate(model.blocks):
        prefix = f"layer{index // 2 + 1}.{index % 2}"
        for name in ("conv1", "bn1", "conv2", "bn2"):
            layers[f"{prefix}.{name}"] = getattr(block, name)
        for i, layer in enumerate(block.downsample or ()):
            layers[f"{prefix}.downsample.{i}"] = layer
    return layers | {"fc": model.fc}


def _densenet(model):
    layers: dict[str, Any] = {"conv0": model.conv0, "norm0": model.norm0}
    for i, group in enumerate(model.blocks, 1):
        for j, layer in enumerate(group, 1):
            for name in ("norm1", "conv1", "norm2", "conv2"):
                prefix = f"denseblock{i}.denselayer{j}"
                layers[f"{prefix}.{name}"] = getattr(layer, name)
    for i, transition in enumerate(model.transitions, 1):
        layers[f"transition{i}.norm"] = transition.norm
        layers[f"transition{i}.conv"] = transition.conv
    layers["norm5"] = model.norm5
    features = {f"features.{name}": layer for name, layer in layers.items()}
    return features | {"classifier": model.classifier}
