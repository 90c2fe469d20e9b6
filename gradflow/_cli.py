"""The `gradflow` command: run a flow into a folder, and show what a run left."""

import dataclasses
import inspect
import math
import os
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import tomli_w
import tyro

from . import datasets, models, plot
from ._integrate import integrate
from ._problem import Problem
from ._results import Result
from ._trajectory import Trajectory

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


@dataclasses.dataclass(frozen=True)
class Show:
    """Print a trajectory and its certificate."""

    file: tyro.conf.Positional[Path]
    """A trajectory.nc, or the folder of a run."""
    figures: Path | None = None
    """Also write figures into this folder."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status.

    0: the trajectory's certificate passes; 1: it does not; 2: the request makes no
    sense or a file is missing; 130: interrupted.
    """
    matplotlib.use("Agg")
    command = tyro.cli(
        Annotated[Run, tyro.conf.subcommand("run")]
        | Annotated[Show, tyro.conf.subcommand("show")],
        prog="gradflow",
        description="Gradient flow of homogeneous networks in log-risk time.",
        args=None if argv is None else list(argv),
    )
    try:
        return _run(command) if isinstance(command, Run) else _show(command)
    except (ValueError, OSError) as error:
        print(f"gradflow: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("gradflow: interrupted", file=sys.stderr)
        return 130


def _run(command: Run) -> int:
    jax.config.update("jax_enable_x64", not command.float32)
    print(
        "Single precision, as asked for with --float32."
        if command.float32
        else "Double precision is turned on (--float32 for single)."
    )
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
    resumed = _check_folder(command.out, config)
    print(
        f"{datasets.title(command.data)}, {len(x)} examples: "
        f"{'resuming' if resumed else 'writing to'} {command.out}"
    )
    trajectory = _finished(command.out) if resumed else None
    if trajectory is None:
        problem = Problem(model, x, y)
        if not resumed:
            _write_config(command.out, config)
        trajectory = integrate(
            problem,
            command.to,
            rtol=command.rtol,
            saveat=command.saveat,
            folder=command.out,
            throw=False,
        )
    if trajectory.result is Result.interrupted:
        print(f"{trajectory!r}\nThe same command goes on from here.")
        return 130
    figures = _write_figures(trajectory, command.out / "figures")
    status = _report(trajectory)
    for path in figures:
        print(path)
    return status


def _finished(folder: Path) -> Trajectory | None:
    """The trajectory in `folder` if it has come to its end."""
    path = folder / "trajectory.nc"
    trajectory = Trajectory.load(path) if path.exists() else None
    ended = trajectory is not None and trajectory.result is Result.reached
    return trajectory if ended else None


def _show(command: Show) -> int:
    file = command.file
    path = file / "trajectory.nc" if file.is_dir() else file
    if not path.exists():
        raise FileNotFoundError(
            f"`{path}` does not exist: pass a trajectory.nc or the folder of a run."
        )
    trajectory = Trajectory.load(path)
    status = _report(trajectory)
    if command.figures is not None:
        there = [p for p in _figure_paths(command.figures) if p.exists()]
        if there:
            raise ValueError(
                f"`--figures {command.figures}` already holds {there[0].name}: choose "
                "another folder, or move it away."
            )
        for path in _write_figures(trajectory, command.figures):
            print(path)
    return status


def _report(trajectory) -> int:
    certificate = trajectory.certificate()
    print(f"{trajectory!r}\n{certificate!r}")
    return 0 if certificate.passed else 1


_FIGURES = {"margins": plot.margins, "dashboard": plot.dashboard}


def _figure_paths(folder: Path) -> list[Path]:
    return [folder / f"{name}{end}" for name in _FIGURES for end in (".png", ".pdf")]


def _write_figures(trajectory, folder: Path) -> list[Path]:
    if len(trajectory.s) < 2:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in _FIGURES.items():
        figure = draw(trajectory)
        for end in (".png", ".pdf"):
            figure.savefig(folder / f"{name}{end}")
        plt.close(figure)
    return _figure_paths(folder)


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


def _check_folder(folder: Path, config: dict[str, Any]) -> bool:
    """Whether `folder` holds a run of `config` to resume; raises if of another one."""
    present = {p.name for p in folder.iterdir()} if folder.exists() else set()
    if present <= {"config.toml", "config.toml.new"}:
        return False  # Nothing was computed here yet.
    path = folder / "config.toml"
    if not path.exists():
        raise ValueError(
            f"`--out {folder}` holds files but no config.toml, so it is no run of "
            "this command: choose another folder."
        )
    try:
        stored = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"`{path}` is damaged: {error}. Move it away.") from error
    differing = [
        f"{name} ({_shown(stored, name)} there, {_shown(config, name)} here)"
        for name in sorted(stored.keys() | config.keys())
        if stored.get(name) != config.get(name)
    ]
    if differing:
        raise ValueError(
            f"`--out {folder}` holds a run of another configuration: "
            f"{', '.join(differing)}. Choose another folder, or the options in {path}."
        )
    return True


def _write_config(folder: Path, config: dict[str, Any]):
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / "config.toml.new"
    beside.write_text(tomli_w.dumps(config))
    os.replace(beside, folder / "config.toml")


def _shown(config, name) -> str:
    return repr(config[name]) if name in config else "absent"
