"""The command line, on problems small enough to be compiled in seconds."""

import functools
import re
import tomllib

import jax
import numpy as np
import pytest

import gradflow as gf
from gradflow import _cli

SMALL = "run --data iris --n 12 --model linear --to 20 --saveat 5 --out".split()


@pytest.fixture(autouse=True)
def precision():
    """The command sets the precision for its process."""
    yield
    jax.config.update("jax_enable_x64", True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run that reached its end, and its exit status."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    return folder, _cli.main([*SMALL, str(folder)])


class Asked(Exception):
    """Raised in place of an integration, with what was asked for."""

    def __init__(self, problem, to, **options):
        super().__init__()
        self.problem, self.to, self.options = problem, to, options


def asked(monkeypatch, arguments):
    def integrate(problem, to, **options):
        raise Asked(problem, to, **options)

    monkeypatch.setattr(_cli, "integrate", integrate)
    with pytest.raises(Asked) as caught:
        _cli.main(arguments)
    return caught.value


def test_a_run_leaves_trajectory_configuration_checkpoint_and_figures(finished):
    folder, status = finished
    assert status == 0
    assert {p.name for p in folder.iterdir()} == {
        "trajectory.nc",
        "config.toml",
        "checkpoint.eqx",
        "figures",
    }
    names = {p.name for p in (folder / "figures").iterdir()}
    assert {"margins.pdf", "margins.png", "dashboard.pdf", "dashboard.png"} <= names
    trajectory = gf.Trajectory.load(folder / "trajectory.nc")
    assert trajectory.result is gf.Result.reached
    assert trajectory["margins"].shape == (5, 12)
    with open(folder / "config.toml", "rb") as file:
        assert tomllib.load(file) == {
            "data": "iris",
            "task": "setosa",
            "n": 12,
            "model": "linear",
            "scale": 1.0,
            "to": 20.0,
            "rtol": 1e-4,
            "saveat": 5,
            "seed": 0,
            "float32": False,
        }


def test_a_finished_run_is_shown_and_not_run_again(finished, capsys):
    folder, _ = finished
    written = (folder / "trajectory.nc").stat().st_mtime_ns
    assert _cli.main([*SMALL, str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "Certificate: passed" in shown
    assert "gradient of ln L" in shown and "KKT epsilon, explicit" in shown
    assert (folder / "trajectory.nc").stat().st_mtime_ns == written


def test_an_unfinished_run_goes_on_to_the_same_numbers(finished, tmp_path, monkeypatch):
    unbroken = gf.Trajectory.load(finished[0] / "trajectory.nc")
    arguments = [*SMALL, str(tmp_path / "run")]
    limited = functools.partial(gf.integrate, max_steps=6)
    with monkeypatch.context() as patch:
        patch.setattr(_cli, "integrate", limited)
        assert _cli.main(arguments) == 1
    partial = gf.Trajectory.load(tmp_path / "run" / "trajectory.nc")
    assert partial.result is gf.Result.step_limit
    assert _cli.main(arguments) == 0
    resumed = gf.Trajectory.load(tmp_path / "run" / "trajectory.nc")
    np.testing.assert_array_equal(resumed["margins"], unbroken["margins"])
    assert resumed.stats["steps"] == unbroken.stats["steps"]


def test_an_interrupted_run_says_how_to_go_on(finished, tmp_path, monkeypatch, capsys):
    trajectory = gf.Trajectory.load(finished[0] / "trajectory.nc")
    trajectory.result = gf.Result.interrupted
    monkeypatch.setattr(_cli, "integrate", lambda *args, **options: trajectory)
    assert _cli.main([*SMALL, str(tmp_path / "run")]) == 130
    assert "The same command goes on from here." in capsys.readouterr().out


def test_another_configuration_is_refused_by_field(finished, capsys):
    folder, _ = finished
    before = (folder / "config.toml").read_text()
    arguments = [
        *SMALL,
        str(folder),
        "--to",
        "30",
        "--seed",
        "1",
        "--task",
        "virginica",
    ]
    assert _cli.main(arguments) == 2
    message = capsys.readouterr().err
    assert "seed (0 there, 1 here)" in message
    assert "to (20.0 there, 30.0 here)" in message
    assert "task ('setosa' there, 'virginica' here)" in message
    assert "rtol" not in message
    assert (folder / "config.toml").read_text() == before


def test_other_files_are_never_mixed_with_a_run(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert _cli.main([*SMALL, str(tmp_path)]) == 2
    assert "holds files but no config.toml" in capsys.readouterr().err


def test_a_request_that_failed_leaves_its_folder_usable(tmp_path, monkeypatch, capsys):
    arguments = [*SMALL, str(tmp_path / "run")]
    assert _cli.main([*arguments, "--to", "-50"]) == 2
    assert "`to=-50` is not beyond the start" in capsys.readouterr().err
    assert asked(monkeypatch, arguments).to == 20.0


def test_show(finished, tmp_path, capsys):
    folder, _ = finished
    assert _cli.main(["show", str(folder), "--figures", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "Trajectory (reached" in shown and "Certificate: passed" in shown
    assert (tmp_path / "margins.pdf").stat().st_size > 0
    assert _cli.main(["show", str(folder / "trajectory.nc")]) == 0
    assert _cli.main(["show", str(folder), "--figures", str(tmp_path)]) == 2
    assert "already holds margins.png" in capsys.readouterr().err
    assert _cli.main(["show", str(tmp_path / "nowhere")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_show_builds_the_problem_from_its_configuration(finished, tmp_path, capsys):
    folder, _ = finished

    def shown(change):
        path = tmp_path / "trajectory.nc"
        path.write_bytes((folder / "trajectory.nc").read_bytes())
        config = (folder / "config.toml").read_text()
        (tmp_path / "config.toml").write_text(change(config))
        assert _cli.main(["show", str(path)]) == 0
        return capsys.readouterr().out

    assert "distance to the best direction" in shown(lambda config: config)
    # Other examples, an entry of another version, no TOML: shown all the same.
    for change, reason in (
        (lambda config: config.replace("n = 12", "n = 14"), "from another problem"),
        (lambda config: config + "depth = 3", "unknown entries {'depth'}"),
        (lambda config: config.replace("iris", "tulips"), "data = 'tulips', which"),
        (lambda config: "n = ", "is damaged"),
    ):
        out = shown(change)
        assert reason in out and "clock drift" in out
        assert "gradient of ln L" not in out
    (tmp_path / "config.toml").unlink()
    assert _cli.main(["show", str(tmp_path)]) == 0
    assert "The rows that need the problem are left out." in capsys.readouterr().out


def test_the_default_is_the_demo(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    demo = asked(monkeypatch, ["run"])
    assert demo.problem.x.shape == (1797, 65)
    assert demo.problem.k == 65 * 64 + 64 * 32 + 32
    assert demo.problem.degree == 3
    model = demo.problem.model(demo.problem.theta)
    assert model.activation == gf.models.SmoothReLU(1e-2)
    assert (demo.to, demo.options["rtol"]) == (1850.0, 1e-4)
    assert str(demo.options["folder"]) == "runs/demo"


def test_float32_stays_in_single_precision(monkeypatch, tmp_path, capsys):
    arguments = [*SMALL, str(tmp_path / "run"), "--float32"]
    problem = asked(monkeypatch, arguments).problem
    assert problem.theta.dtype == problem.x.dtype == np.float32
    assert "Single precision" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options, names, degree",
    [
        ("--model two_layer --widths 7", {"inner.weight"}, 2),
        (
            "--model deep_linear --widths 4 3",
            {f"layers[{i}].weight" for i in range(3)},
            3,
        ),
        ("--widths 4 --activation relu --task classes", None, 2),
        ("--widths 4 --activation leaky_relu --scale 0.1", None, 2),
        ("--widths 4 3 --activation power_relu", None, 7),
        ("--widths 4 --activation smooth_leaky_relu --eps 0.1", None, 2),
    ],
)
def test_models_and_activations(monkeypatch, tmp_path, options, names, degree):
    arguments = ["run", "--data", "iris", "--n", "12", *options.split()]
    problem = asked(monkeypatch, [*arguments, "--out", str(tmp_path / "run")]).problem
    assert problem.degree == degree
    if names is not None:
        assert {name.removesuffix(".value") for name in problem.layout.names} == names
    assert ("classes" in options) == isinstance(problem.loss, gf.CrossEntropy)


@pytest.mark.parametrize(
    "options, message",
    [
        (
            "--data two_moons --task 3",
            "`--task 3` does not apply to the data set two_m",
        ),
        ("--data plane --classes 0 1", "`--classes .* does not apply"),
        ("--model linear --widths 3", "has no hidden layers"),
        ("--model deep_linear --activation relu", "deep_linear has none"),
        ("--activation relu --eps 0.1", "relu is not smoothed"),
        ("--eps 3", "`eps` must lie in"),
        ("--scale 0", "`--scale 0.0` must be positive"),
        ("--model two_layer --widths 3 3", "one hidden layer and one output"),
        ("--model two_layer --task classes", "3 classes"),
        ("--data iris --task rose", "`task` has 'rose'"),
        ("--data iris --n 7000", "`n=7000`"),
    ],
)
def test_bad_requests_say_what_to_change(tmp_path, capsys, options, message):
    arguments = [
        "run",
        "--data",
        "iris",
        *options.split(),
        "--out",
        str(tmp_path / "r"),
    ]
    assert _cli.main(arguments) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "r").exists()
