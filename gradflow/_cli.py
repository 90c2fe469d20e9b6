"""The `gradflow` command: run a flow into a folder, and show what a run left."""

import dataclasses
import os
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import matplotlib
import matplotlib.pyplot as plt
import tomli_w
import tyro

from . import datasets, plot
from ._cli_request import Run, recorded, request
from ._integrate import integrate
from ._problem import Problem
from ._record import digest
from ._results import Result
from ._trajectory import Trajectory, trajectory_file


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
    print(
        "Single precision, as asked for with --float32."
        if command.float32
        else "Double precision is turned on (--float32 for single)."
    )
    x, y, model, config = request(command)
    resumed = _check_folder(command.out, config)
    print(
        f"{datasets.title(command.data)}, {len(x)} examples: "
        f"{'resuming' if resumed else 'writing to'} {command.out}"
    )
    problem = Problem(model, x, y)
    trajectory = _finished(command.out) if resumed else None
    if trajectory is None:
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
    status = _report(trajectory, problem)
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
    path = trajectory_file(command.file)
    problem = _problem_beside(path)
    trajectory = Trajectory.load(path)
    if problem is not None and digest(problem) != trajectory.config["data"]:
        print(f"{path} comes from another problem. {_WITHOUT}")
        problem = None
    status = _report(trajectory, problem)
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


_WITHOUT = "The rows that need the problem are left out."


def _problem_beside(path: Path) -> Problem | None:
    """The problem that the config.toml beside a trajectory describes, if it can."""
    jax.config.update("jax_enable_x64", True)
    config = path.with_name("config.toml")
    if not config.exists():
        print(f"{config} does not exist. {_WITHOUT}")
        return None
    try:
        x, y, model, _ = request(recorded(_read_config(config)))
        return Problem(model, x, y)
    except (ValueError, OSError) as error:
        print(f"{config}: {error} {_WITHOUT}")
        return None


def _report(trajectory: Trajectory, problem: Problem | None) -> int:
    certificate = trajectory.certificate(problem=problem)
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
    stored = _read_config(path)
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


def _read_config(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"`{path}` is damaged: {error}. Move it away.") from error


def _write_config(folder: Path, config: dict[str, Any]):
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / "config.toml.new"
    beside.write_text(tomli_w.dumps(config))
    os.replace(beside, folder / "config.toml")


def _shown(config, name) -> str:
    return repr(config[name]) if name in config else "absent"
