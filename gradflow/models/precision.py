r"""Networks evaluated in a lower precision than their parameters are kept in."""

from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Float


class InPrecision(eqx.Module):
    r"""A model evaluated in a lower precision; parameters and output keep theirs.

    Parameters are rounded to `dtype` at each evaluation, and so are gradients on the
    way back; margins, risk and the solver's state stay in the parameters' precision.
    Rounding makes margins noisy: an error of `eps` times the margin, which at risk
    $e^{-s}$ is an error of about `eps * s` in $s$. `Problem.rounding` is that `eps`,
    and steps and certificates allow for it. Products of matrices are in the full
    precision of `dtype`, also on accelerators, which would round float32 by default.

    **Arguments:**

    - `model`: any model with parameters of one dtype.
    - `dtype`: such as `jnp.float32` or `jnp.bfloat16`.
    """

    model: eqx.Module
    dtype: Any = eqx.field(static=True)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """The output for one example, in the parameters' dtype."""
        arrays, rest = eqx.partition(self.model, eqx.is_inexact_array)
        dtypes = {array.dtype for array in jax.tree.leaves(arrays)}
        if len(dtypes) != 1:
            raise ValueError(
                f"`model` holds arrays of several dtypes, {sorted(map(str, dtypes))}: "
                "convert them to one."
            )
        low = jax.tree.map(lambda array: array.astype(self.dtype), arrays)
        model: Any = eqx.combine(low, rest)
        return model(x.astype(self.dtype)).astype(dtypes.pop())
