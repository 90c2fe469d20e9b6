"""How much memory does one full-batch gradient of a convolutional network take?

Lyu and Li's MNIST network (bias in the first layer) on all 60,000 training images,
cross-entropy, streamed in micro-batches. The peak of the process's resident memory is
read by `resource.getrusage`, in a process of its own for each batch size; it includes
what reading the data took. Run:

    GRADFLOW_DATA=folder python -m benchmarks.cnn_memory --batch-size 250 --eps 1e-2
"""

import argparse
import json
import os
import resource
import time


def peak_gib() -> float:
    """Peak resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure(n: int, batch_size: int, dtype: str, eps: float, random: bool) -> dict:
    """One gradient; compile time and memory apart."""
    os.environ["JAX_ENABLE_X64"] = "1" if dtype == "float64" else "0"
    import equinox as eqx
    import jax
    import numpy as np

    import gradflow as gf

    if random:
        rng = np.random.default_rng(0)
        x = rng.random((n, 28, 28), dtype=dtype)
        y = rng.integers(0, 10, n)
    else:
        x, y = gf.datasets.mnist(n=n)
        x = np.moveaxis(x, 1, -1).astype(dtype)
    activation = gf.models.SmoothReLU(eps) if eps else gf.models.ReLU()
    model = gf.models.LyuLiCNN(
        activation, gf.models.MaxPool(2, eps=eps), key=jax.random.key(0)
    )
    problem = gf.Problem(model, x, y, degree=4.0, batch_size=batch_size)
    data = problem.x.nbytes / 2**30
    before = peak_gib()
    direction = eqx.filter_jit(lambda p, theta: p.log_risk_and_direction(theta))
    start = time.perf_counter()
    compiled = direction.lower(problem, problem.theta).compile()
    compile_seconds = time.perf_counter() - start
    start = time.perf_counter()
    value, grad = compiled(problem, problem.theta)
    jax.block_until_ready(grad)
    return {
        "images": "random" if random else "MNIST",
        "n": n,
        "batch_size": batch_size,
        "dtype": dtype,
        "eps": eps,
        "parameters": problem.k,
        "data_gib": round(data, 3),
        "peak_before_gib": round(before, 3),
        "peak_gib": round(peak_gib(), 3),
        "peak_above_data_gib": round(peak_gib() - data, 3),
        "compile_seconds": round(compile_seconds, 2),
        "gradient_seconds": round(time.perf_counter() - start, 2),
        "log_risk": float(value),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=60_000)
    parser.add_argument("--batch-size", type=int, default=250)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--eps", type=float, default=0.0)
    parser.add_argument("--random", action="store_true", help="instead of MNIST")
    arguments = parser.parse_args()
    print(json.dumps(measure(**vars(arguments))))
