"""What a command line asks for: data, model and the configuration that records it."""

import dataclasses
import inspect
import math
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import jax
import numpy as np

from . import datasets, models

# fmt: off
Data = Literal[
    "digits", "iris", "breast_cancer", "wine", "two_moons", "plane", "mnist", "cifar10"
]
# fmt: on
Model = Literal["linear", "deep_linear", "mlp", "two_layer"]
Activation = Literal[
    "relu", "leaky_relu", "power_relu", "smooth_relu", "smooth_leaky_relu"
]

_WIDTHS = {"linear": (), "deep_linear": (64, 32), "mlp": (64, 32), "two_layer": (100,)}
_ACTIVATIONS = {"mlp": "smooth_relu", "two_layer": "power_relu"}


@dataclasses.dataclass(frozen=True)
class Run:
    """Follow gradient flow on a data set until ln(n/L) reaches `to`.

    Without options: a network on handwritten digits, to the loss 1e-800. The same
    command on the same folder goes on where it was stopped.
    """

    data: Data = "digits"
    """Data set."""
    task: str | None = None
    """"classes", "parity" (digits) or a class against the rest; None: as usual."""
    classes: tuple[str, ...] = ()
    """Keep only these classes."""
    n: int | None = None
    """Keep only so many examples, balanced over the classes."""
    model: Model = "mlp"
    """Network, without biases."""
    widths: tuple[int, ...] | None = None
    """Hidden layers; None: 64 32 (mlp, deep_linear), 100 (two_layer)."""
    activation: Activation | None = None
    """None: smooth_relu (mlp), power_relu, which squares (two_layer)."""
    eps: float | None = None
    """Relative width of a smooth activation's rounded band; None: 0.01."""
    scale: float = 1.0
    """Of the initial weights, relative to He initialisation."""
    to: float = 1850.0
    """Where to end: log-risk time s = ln(n/L)."""
    rtol: float = 1e-4
    """Relative tolerance of a step."""
    saveat: int = 200
    """Number of saved points."""
    seed: int = 0
    """Of the initial weights."""
    float32: bool = False
    """Single precision; double by default."""
    out: Path = Path("runs/demo")
    """Folder for trajectory.nc, config.toml, checkpoint.eqx and figures."""


class Request(NamedTuple):
    """Data, model and what decides them, as in `config.toml`."""

    x: np.ndarray
    y: np.ndarray
    model: Any
    config: dict[str, Any]


def request(command: Run) -> Request:
    """What `command` asks for, in its precision, which it sets for the process.

    **Raises:** `ValueError` for options that do not go together.
    """
    jax.config.update("jax_enable_x64", not command.float32)
    x, y, task = _data(command)
    classes = 1 if y.dtype.kind == "f" else int(y.max()) + 1
    chosen = _model_options(command)
    model = _model(command, chosen, x.shape[1], classes)
    config = {"data": command.data}
    config |= {} if task is None else {"task": task}
    config |= {"classes": list(command.classes)} if command.classes else {}
    config |= {"n": len(x), "model": command.model} | chosen
    for name in ("scale", "to", "rtol", "saveat", "seed", "float32"):
        config[name] = getattr(command, name)
    return Request(x, y, model, config)


def recorded(config: dict[str, Any]) -> Run:
    """The command that `config` records; `out` apart.

    **Raises:** `ValueError` for entries that no command has.
    """
    known = {field.name for field in dataclasses.fields(Run)}
    if not config.keys() <= known:
        raise ValueError(f"config.toml has unknown entries {set(config) - known}.")
    options: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in config.items()
    }
    for name, kind in (("data", Data), ("model", Model), ("activation", Activation)):
        if (value := options.get(name)) not in (None, *get_args(kind)):
            raise ValueError(
                f"config.toml has {name} = {value!r}, which is none of "
                f"{', '.join(get_args(kind))}."
            )
    return Run(**options)


def _data(command: Run) -> tuple[np.ndarray, np.ndarray, str | None]:
    """Examples as rows, labels, and the task in words where the data set has tasks."""
    load: Any = getattr(datasets, command.data)
    known = inspect.signature(load).parameters
    options: dict[str, Any] = {"dtype": np.float32 if command.float32 else np.float64}
    if command.n is not None:
        options["n"] = command.n
    if command.classes:
        options["classes"] = command.classes
    if command.task is not None:
        options["task"] = command.task
    if "flat" in known:
        options["flat"] = True
    for name in options:
        if name not in known:
            raise ValueError(
                f"`--{name} {getattr(command, name)}` does not apply to the data set "
                f"{command.data}: leave it out."
            )
    x, y = load(**options)
    task = options.get("task", known["task"].default) if "task" in known else None
    return x, y, task


def _model_options(command: Run) -> dict[str, Any]:
    """Widths, activation and eps, as far as the model has them."""
    options: dict[str, Any] = {}
    if command.model == "linear":
        _refuse(command, "widths", "the linear model has no hidden layers")
    else:
        widths = command.widths
        options["widths"] = list(_WIDTHS[command.model] if widths is None else widths)
    if command.model not in _ACTIVATIONS:
        _refuse(command, "activation", f"{command.model} has none")
        _refuse(command, "eps", f"{command.model} has no activation")
        return options
    options["activation"] = command.activation or _ACTIVATIONS[command.model]
    if options["activation"].startswith("smooth"):
        options["eps"] = 1e-2 if command.eps is None else command.eps
    else:
        _refuse(command, "eps", f"{options['activation']} is not smoothed")
    return options


def _refuse(command: Run, name: str, why: str):
    value = getattr(command, name)
    if value is not None:
        raise ValueError(f"`--{name} {value}` does not apply ({why}): leave it out.")


def _model(command: Run, options, d: int, classes: int):
    if not (command.scale > 0 and math.isfinite(command.scale)):
        raise ValueError(f"`--scale {command.scale}` must be positive.")
    key, scale = jax.random.key(command.seed), command.scale
    if command.model == "linear":
        return models.Linear(d, classes, key=key, scale=scale)
    widths = (d, *options["widths"], classes)
    if command.model == "deep_linear":
        return models.DeepLinear(widths, key=key, scale=scale)
    activation = _activation(options)
    if command.model == "mlp":
        return models.MLP(widths, activation, key=key, scale=scale)
    if classes > 1 or len(widths) != 3:
        raise ValueError(
            f"`--model two_layer` has one hidden layer and one output, but `--widths` "
            f"has {len(widths) - 2} and the data {classes} classes: pass one width and "
            "a `--task` with two labels, or use `--model mlp`."
        )
    return models.TwoLayer(d, widths[1], activation, key=key, scale=scale)


def _activation(options) -> models.AbstractActivation:
    match options["activation"]:
        case "relu":
            return models.ReLU()
        case "leaky_relu":
            return models.LeakyReLU()
        case "power_relu":
            return models.PowerReLU(2)
        case "smooth_relu":
            return models.SmoothReLU(options["eps"])
        case _:
            return models.SmoothLeakyReLU(eps=options["eps"])
