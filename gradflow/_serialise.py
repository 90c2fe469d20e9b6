"""Equinox modules as JSON plus arrays: readable, and without pickle."""

import dataclasses
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def encode(value: Any, arrays: list[np.ndarray]) -> Any:
    """A JSON value for `value`; its arrays are appended to `arrays` and referred to.

    **Raises:** `TypeError` for what cannot be found again by name, such as a lambda.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        arrays.append(np.asarray(value))
        return {"array": len(arrays) - 1}
    if isinstance(value, tuple | list):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [encode(item, arrays) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[k, encode(v, arrays)] for k, v in value.items()]}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            field.name: encode(getattr(value, field.name), arrays)
            for field in dataclasses.fields(value)
        }
        return {"class": _path(type(value)), "fields": fields}
    if callable(value):
        return {"object": _path(value)}
    raise TypeError(f"cannot store {value!r} by name")


def decode(code: Any, arrays: list[np.ndarray]) -> Any:
    """The value of `encode`'s result; classes are looked up in imported modules only.

    **Raises:** `ValueError` naming a module that has to be imported first.
    """
    if not isinstance(code, dict):
        return code
    if "array" in code:
        return jnp.asarray(arrays[code["array"]])
    if "tuple" in code:
        return tuple(decode(item, arrays) for item in code["tuple"])
    if "list" in code:
        return [decode(item, arrays) for item in code["list"]]
    if "dict" in code:
        return {k: decode(v, arrays) for k, v in code["dict"]}
    if "object" in code:
        return _resolve(code["object"])
    cls: Any = _resolve(code["class"])
    new = object.__new__(cls)
    for name, value in code["fields"].items():
        object.__setattr__(new, name, decode(value, arrays))
    return new


def _path(value) -> str:
    name = getattr(value, "__qualname__", None)
    module = getattr(value, "__module__", None)
    if name is None or module is None or "<" in name:
        raise TypeError(f"cannot store {value!r} by name")
    return f"{module}:{name}"


def _resolve(path: str):
    module, name = path.split(":")
    if module not in sys.modules:
        raise ValueError(
            f"The file refers to `{path}`: import the module `{module}` before loading."
        )
    value = sys.modules[module]
    for part in name.split("."):
        value = getattr(value, part)
    return value
