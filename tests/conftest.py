"""Settings under which every test runs; `gradflow` itself is imported only by tests.

Importing it here would come before jaxtyping's import hook, which the option
`--jaxtyping-packages` installs and which checks shapes at every call.
"""

import gc
import importlib
import importlib.metadata
import os
from pathlib import Path

# Before matplotlib is imported anywhere, in notebooks' kernels and subprocesses too.
os.environ["MPLBACKEND"] = "Agg"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile for longer than they run. The former emitters take half the time, and
# code that is not split up for many cores a fifth less.
# XLA exits on flags that it does not know: only for a version that is known to.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    os.environ["XLA_FLAGS"] = " ".join(
        [
            os.environ.get("XLA_FLAGS", ""),
            "--xla_cpu_use_fusion_emitters=false",
            "--xla_cpu_parallel_codegen_split_count=1",
        ]
    )

import jax  # noqa: E402
import pytest  # noqa: E402

# What `gradflow` imports: the hook compiles anew whatever is imported under it.
for library in ("diffrax", "matplotlib.pyplot", "scipy.stats", "sklearn", "xarray"):
    importlib.import_module(library)

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_disable_most_optimizations", True)


def pytest_collection_finish():
    """Tracing makes many objects and little garbage, which took an eighth of the time
    to look for."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)


@pytest.fixture(autouse=True, scope="module")
def few_executables():
    """Every compiled function maps memory; Linux allows a process 65,530 maps, and XLA
    crashes beyond that."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 40_000:
        jax.clear_caches()
