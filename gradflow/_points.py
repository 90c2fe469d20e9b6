"""Saved points on the host, as chunks of steps hand them over."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_SMALL = 1_000_000  # Bytes of buffers that are fetched whole, whatever they hold.


class Points:
    """Saved points in blocks: arrays by name, whose first axis is the points'."""

    def __init__(self):
        self.blocks: list[dict[str, np.ndarray]] = []

    def __len__(self) -> int:
        return sum(len(block["s"]) for block in self.blocks)

    def collect(self, buffers: dict[str, jax.Array], count: int):
        """Takes the first `count` rows of buffers on the device."""
        if count == 0:
            return
        rows = next(iter(buffers.values())).shape[0]
        size = sum(buffer.nbytes for buffer in buffers.values())
        if 2 * count > rows or size < _SMALL:
            whole = jax.device_get(buffers)
            # Copies, or a block would keep all of the buffers.
            self.blocks.append({k: v[:count].copy() for k, v in whole.items()})
        else:
            found = (_row(buffers, jnp.array(i)) for i in range(count))
            self.blocks += [jax.device_get(row) for row in found]

    def last(self) -> dict[str, Any]:
        """The last point, empty if there is none."""
        return {k: v[-1] for block in self.blocks[-1:] for k, v in block.items()}

    def joined(self) -> dict[str, np.ndarray]:
        """All points, one array for each name."""
        if not self.blocks:
            return {"s": np.zeros(0), "log_risk": np.zeros(0)}
        names = self.blocks[0]
        return {k: np.concatenate([block[k] for block in self.blocks]) for k in names}


@jax.jit
def _row(buffers, i):
    return {k: jax.lax.dynamic_slice_in_dim(v, i, 1) for k, v in buffers.items()}
