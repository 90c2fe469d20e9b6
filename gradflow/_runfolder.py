"""A folder that a run streams to and resumes from."""

import json
import os
import time
from pathlib import Path

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from ._state import CHATTERING, RUNNING, STATIONARY, STEP_LIMIT
from ._trajectory import Trajectory

# What may differ between a run and its continuation without changing its numbers.
_VERSIONS = ("gradflow", "jax")
_FREE = (*_VERSIONS, "device", "patience")


class RunFolder:
    """`trajectory.nc` and `checkpoint.eqx` of one run, always complete on disk.

    Both are written beside and moved into place. A checkpoint is a line of JSON (the
    configuration, how many rows belong to it) followed by the leaves of the carry.
    """

    def __init__(self, folder, config):
        self.folder = Path(folder)
        self.config = config
        self.written = -np.inf
        self.cost = 0.0
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"`folder={self.folder}` is a file: choose another name.")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path = self.folder / "checkpoint.eqx"
        if not self.path.exists() and (self.folder / "trajectory.nc").exists():
            raise ValueError(
                f"`folder={self.folder}` holds a trajectory but no checkpoint, so it "
                "cannot be resumed: choose another folder or move it away."
            )

    @property
    def resumable(self) -> bool:
        """Whether the folder holds a checkpoint."""
        return self.path.exists()

    def resume(self, like, points):
        """Carry and seconds of the checkpoint, whose saved points go to `points`.

        **Raises:** `ValueError` for one of another configuration, a damaged one, or one
        of another version whose carry differs.
        """
        with open(self.path, "rb") as file:
            try:
                header = json.loads(file.readline())
                stored = header["config"]
            except Exception as error:
                raise self._unreadable("damaged", error) from error
            # First, as another solver's carry has other leaves.
            self._check_same(stored)
            try:
                carry = eqx.tree_deserialise_leaves(file, like)
            except Exception as error:
                raise self._unreadable(_blamed(stored, self.config), error) from error
        # A run that was out of steps goes on where a larger limit is given, and one
        # that was given up with another patience.
        more = self.config.get("patience") != stored.get("patience")
        given_up = int(carry.result) in (CHATTERING, STATIONARY)
        if int(carry.result) == STEP_LIMIT or (given_up and more):
            running = jnp.full_like(carry.result, RUNNING)
            carry = eqx.tree_at(lambda c: c.result, carry, running)
        if count := header["rows"]:
            saved = Trajectory.load(self.folder / "trajectory.nc")
            points.blocks.append({k: v[:count] for k, v in saved.items()})
        return carry, header["wall_seconds"]

    def _unreadable(self, what, error) -> ValueError:
        return ValueError(
            f"`folder={self.folder}`: the checkpoint is {what} ({error}). Delete "
            f"{self.path.name} and trajectory.nc to begin anew."
        )

    def _check_same(self, stored):
        differing = [
            f"{key} ({_short(stored.get(key))} there, {_short(value)} here)"
            for key, value in self.config.items()
            if key not in _FREE and stored.get(key) != value
        ]
        if differing:
            raise ValueError(
                f"`folder={self.folder}` holds a run of another configuration: "
                f"{'; '.join(differing)}. Choose another folder, or the settings "
                "of that run."
            )

    def checkpoint(self, carry, trajectory, *, points: int, force: bool = False):
        """Writes both files, but spends at most a twentieth of the time on it.

        `trajectory` is a function that makes one, called only when files are written.
        """
        began = time.monotonic()
        if not force and began < self.written + max(2.0, 20 * self.cost):
            return
        made = trajectory()
        self.save(made)
        header = {
            "config": self.config,
            "rows": points,
            "wall_seconds": made.stats["wall_seconds"],
        }
        beside = self.path.with_name(self.path.name + ".new")
        with open(beside, "wb") as file:
            file.write((json.dumps(header) + "\n").encode())
            eqx.tree_serialise_leaves(file, carry)
        os.replace(beside, self.path)
        self.written = time.monotonic()
        self.cost = self.written - began

    def save(self, trajectory):
        """Writes the trajectory alone."""
        trajectory.save(self.folder / "trajectory.nc")


def _blamed(stored, here) -> str:
    """Why a checkpoint of the same configuration cannot be read."""
    versions = [
        f"{key} {stored.get(key)} there, {here[key]} here"
        for key in _VERSIONS
        if stored.get(key) != here[key]
    ]
    return f"of another version: {'; '.join(versions)}" if versions else "damaged"


def _short(value) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:40]} ..."
