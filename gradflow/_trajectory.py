"""The labelled result of an integration."""

import functools
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float

from ._certificate import Certificate, certify
from ._problem import Problem
from ._results import Result
from ._serialise import decode, encode
from .diagnostics.standard import QUANTITIES


class Trajectory(Mapping[str, np.ndarray]):
    r"""A flow at its saved points: arrays by name, final model, how it ended.

    `traj["normalized_margins"]` has shape `(saved points, n)`; names, units and meaning
    stand in `gf.diagnostics.QUANTITIES`. Iterating yields the names.

    **Attributes:**

    - `s`: measured log-risk time $\ln(n/L)$ of each saved point, shape `(points,)`.
    - `model`: the model at the last saved point; `theta` its flat parameters.
    - `result`: a `gf.Result`, why the flow ended.
    - `stats`: `steps`, `rejected_steps`, `gradient_evaluations`, `jacobian_products`,
        `factorizations`, `passes` (the work in passes forward and backward over all
        examples: evaluations, and products as two, each on the examples that the step
        took), `neglected` (largest share of the risk that a step left out),
        `wall_seconds` (computing: a call takes some milliseconds more) and
        `compile_seconds`; a count that a solver does not report is absent.
    - `config`: settings, sizes, versions and a digest of data and parameters.
    """

    def __init__(
        self,
        *,
        model: Any,
        theta: Float[Array, " k"],
        values: dict[str, np.ndarray],
        result: Result,
        stats: dict[str, Any],
        config: dict[str, Any],
    ):
        self.model = model
        self.theta = theta
        self.result = result
        self.stats = stats
        self.config = config
        self._values = values

    @staticmethod
    def of(problem: Problem, theta, values, result, stats, config) -> "Trajectory":
        """A trajectory of `problem` that ends at `theta`."""
        return Trajectory(
            model=problem.model(theta),
            theta=theta,
            values=values,
            result=result,
            stats=stats,
            config=config,
        )

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._values:
            raise KeyError(
                f"no quantity {name!r} in this trajectory; it has {sorted(self)}"
            )
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    @property
    def s(self) -> np.ndarray:
        """Measured log-risk time at the saved points."""
        return self._values["s"]

    def __repr__(self) -> str:
        stats = self.stats
        work = ", ".join(
            f"{stats[key]:,} {key.replace('_', ' ')}"
            for key in ("steps", "rejected_steps", "gradient_evaluations")
            if key in stats
        )
        lines = [f"Trajectory ({self.result})"]
        if len(self.s):
            log10 = self["log_risk"][[0, -1]] / np.log(10)
            lines.append(
                f"  s = ln(n/L): {self.s[0]:.6g} to {self.s[-1]:.6g}   "
                f"(L: 1e{log10[0]:.2f} to 1e{log10[1]:.2f}), {len(self.s)} points"
            )
        for name in ("min_normalized_margin", "alignment", "clock_correction"):
            if name in self and len(self[name]):
                lines.append(f"  {name}: {self[name][-1]:.8g}")
        lines.append(
            f"  n = {self.config['n']}, k = {self.config['k']}, "
            f"degree = {self.config['degree']}, {self.config['solver']}, "
            f"rtol = {self.config['rtol']:g}"
        )
        lines.append(f"  {work}, {stats['wall_seconds']:.2f} s")
        return "\n".join(lines)

    def certificate(
        self, *, strict: bool = False, problem: Problem | None = None
    ) -> Certificate:
        r"""Checks that hold exactly along the true flow, measured along this one.

        Its rows have `name`, `value`, `expected`, `tolerance`, `passed` and `source`;
        those that the trajectory's quantities do not allow are absent.

        **Arguments:**

        - `strict`: raise if a check fails.
        - `problem`: the problem that was integrated. With it the last saved point is
            computed anew, the gradient is checked by differences and the Hessian by
            Euler's theorem, and rows on KKT residuals, J, layers, rates and the SVM of
            the tangent kernel are added, with the maximum margins of linear, deep
            linear, diagonal and two-layer networks and, of small networks, distances
            to the decision boundary. They cost a few dozen evaluations of the risk and
            a few small programs.

        **Raises:** `RuntimeError` with `strict=True` if a check fails; `ValueError` if
        `problem` is of another size or degree than the one that was integrated.
        """
        certificate = certify(self, problem)
        if strict and not certificate.passed:
            raise RuntimeError(f"the certificate does not pass:\n{certificate}")
        return certificate

    def to_xarray(self) -> xr.Dataset:
        """All quantities with dimensions `s`, `example`, `layer`, units and long names.

        Attributes hold the result, stats and configuration as JSON.
        """
        variables = {}
        for name, value in self._values.items():
            if name == "s":
                continue
            known = QUANTITIES.get(name)
            dims = None if known is None else known.dims
            if dims is None or len(dims) != value.ndim - 1:
                dims = tuple(f"{name}_{axis}" for axis in range(value.ndim - 1))
            attrs = {} if known is None else _attributes(known)
            variables[name] = (("s", *dims), value, attrs)
        coords: dict[str, Any] = {"s": ("s", self.s, _attributes(QUANTITIES["s"]))}
        if "layer_norm" in self:
            coords["layer"] = ("layer", np.array(self.config["layers"], dtype=str))
        attrs = {
            "result": self.result.name,
            "stats": json.dumps(self.stats),
            "config": json.dumps(self.config),
        }
        return xr.Dataset(variables, coords, attrs)

    def save(self, path: str | Path) -> None:
        """Writes one netCDF file with values, model and configuration.

        The file is written beside `path` and moved into place. A model that refers to
        unnamed functions (lambdas) is left out with a note; `load` then needs `model`.
        """
        dataset = self.to_xarray()
        arrays: list[np.ndarray] = []
        try:
            dataset.attrs["model"] = json.dumps(encode(self.model, arrays))
        except TypeError as error:
            dataset.attrs["model_error"] = str(error)
            arrays = []
        for i, array in enumerate(arrays):
            dims = tuple(f"model_{i}_{axis}" for axis in range(array.ndim))
            dataset[f"model_array_{i}"] = (dims, array)
        dataset["final_theta"] = (("parameter",), np.asarray(self.theta))
        path = Path(path)
        beside = path.with_name(path.name + ".new")
        dataset.to_netcdf(beside, engine="h5netcdf")
        os.replace(beside, path)

    @staticmethod
    def load(path: str | Path, *, model: Any = None) -> "Trajectory":
        """Reads a file of `save`, or the `trajectory.nc` in the folder of a run.

        `model` is returned as the trajectory's model if the file holds none; classes of
        a stored model are looked up in modules that are already imported.

        **Raises:** `FileNotFoundError`; `ValueError` for a file of another kind, or one
        whose model class is not imported.
        """
        path = trajectory_file(path)
        try:
            with xr.open_dataset(path, engine="h5netcdf") as opened:
                dataset = opened.load()
        except OSError as error:
            raise ValueError(
                f"`path={path}` is not a readable netCDF file: {error}"
            ) from error
        if "config" not in dataset.attrs:
            raise ValueError(f"`path={path}` was not written by `Trajectory.save`.")
        if "model" in dataset.attrs:
            count = sum(str(name).startswith("model_array_") for name in dataset)
            arrays = [dataset[f"model_array_{i}"].values for i in range(count)]
            model = decode(json.loads(dataset.attrs["model"]), arrays)
        values = {
            str(name): variable.values
            for name, variable in dataset.variables.items()
            if variable.dims[:1] == ("s",)
        }
        # Earlier versions wrote it as "theta", over the parameters of saved points.
        final = dataset["final_theta" if "final_theta" in dataset else "theta"]
        return Trajectory(
            model=model,
            theta=jnp.asarray(final.values),
            values=values,
            result=Result[dataset.attrs["result"]],
            stats=json.loads(dataset.attrs["stats"]),
            config=json.loads(dataset.attrs["config"]),
        )


def trajectory_file(path: str | Path) -> Path:
    """The file itself, or the `trajectory.nc` in the folder of a run."""
    path = Path(path)
    path = path / "trajectory.nc" if path.is_dir() else path
    if not path.exists():
        raise FileNotFoundError(
            f"`{path}` does not exist: pass a trajectory.nc or the folder of a run."
        )
    return path


@functools.cache
def _attributes(quantity) -> dict[str, str]:
    return {"units": quantity.units, "long_name": quantity.long_name}
