"""How far does a convolutional network of the papers flow, and at what cost?

    GRADFLOW_DATA=folder python -m benchmarks.cnn_flow --model halexnet --images 2000 \
        --folder runs/halexnet --json benchmarks/results/cnn_flow_halexnet.json

`halexnet`: H-AlexNet on CIFAR-10 images scaled to [-1, 1] (Ji and Telgarsky, Figure
2a); `lyuli`: Lyu and Li's MNIST network with bias in the first layer, pixels in [0, 1].
Activations and pooling are smoothed. From He initialisation to the loss asked for; the
same command on the same folder goes on where it was. By default (`--precision mixed`)
the network is evaluated in float32, while margins, risk and parameters are in float64.
"""

import argparse
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import gradflow as gf

from .common import work, write


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=("halexnet", "lyuli"), default="halexnet")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--to-log10", type=float, default=-100.0, help="log10 of L")
    parser.add_argument("--rtol", type=float, default=1e-3)
    parser.add_argument("--eps", type=float, default=1e-2, help="width of smoothing")
    parser.add_argument("--precision", choices=("mixed", "float64", "float32"))
    parser.add_argument("--batch-size", type=int, default=25)
    parser.add_argument("--saves", type=int, default=60)
    parser.add_argument("--seconds", type=float, help="stop after so long")
    parser.add_argument("--folder", type=Path, help="checkpoints, to go on from")
    parser.add_argument("--json", type=Path, help="write the results there")
    parser.set_defaults(precision="mixed")
    return parser.parse_args()


def problem(
    model: str, images: int, *, eps: float, precision: str, batch_size: int
) -> gf.Problem:
    """The network and its data in the precision asked for."""
    smooth = gf.models.SmoothReLU(eps), gf.models.MaxPool(2, eps=eps)
    key = jax.random.key(0)
    if model == "halexnet":
        x, y = gf.datasets.cifar10(n=images)
        x, network = 2 * x - 1, gf.models.HAlexNet(*smooth, key=key)
    else:
        x, y = gf.datasets.mnist(n=images)
        network = gf.models.LyuLiCNN(*smooth, key=key)
    x = np.moveaxis(x, 1, -1)
    if precision != "float64":
        x = x.astype(np.float32)
    if precision == "float32":
        network = jax.tree.map(
            lambda a: a.astype(np.float32) if eqx.is_inexact_array(a) else a, network
        )
    if precision == "mixed":
        network = gf.models.InPrecision(network, jnp.float32)
    return gf.Problem(network, x, y, batch_size=batch_size)


def main() -> None:
    parsed = options()
    jax.config.update("jax_enable_x64", True)
    flow = problem(
        parsed.model,
        parsed.images,
        eps=parsed.eps,
        precision=parsed.precision,
        batch_size=parsed.batch_size,
    )
    traj = gf.integrate(
        flow,
        to=np.log(flow.n) - parsed.to_log10 * np.log(10),
        rtol=parsed.rtol,
        saveat=parsed.saves,
        max_seconds=parsed.seconds,
        folder=parsed.folder,
        throw=False,
    )
    certificate = traj.certificate()
    print(traj, certificate, sep="\n")
    stats = traj.stats
    margins = traj["min_normalized_margin"]
    separated = np.argmax(traj["training_error"] == 0)
    row = {
        "model": parsed.model,
        "images": flow.n,
        "parameters": flow.k,
        "precision": parsed.precision,
        "batch size": parsed.batch_size,
        "eps": parsed.eps,
        "rtol": parsed.rtol,
        "result": traj.result.name,
        "log10 L": traj["log_risk"][-1] / np.log(10),
        "steps": stats["steps"],
        "rejected": stats["rejected_steps"],
        "gradient evaluations": stats["gradient_evaluations"],
        "Jacobian products": stats["jacobian_products"],
        "work": work(stats),
        "spectral radius": stats["spectral_radius"],
        "seconds": stats["wall_seconds"],
        "seconds per unit of work": stats["wall_seconds"] / work(stats),
        "compile seconds": stats["compile_seconds"],
        "clock correction": np.max(np.abs(traj["clock_correction"])),
        "s at the first saved point with no training error": traj.s[separated],
        "least normalised margin there": margins[separated],
        "least normalised margin": margins[-1],
        "normalised smoothed margin": traj["normalized_smoothed_margin"][-1],
        "alignment": traj["alignment"][-1],
        "certificate": {
            check.name: [check.value, check.expected, check.passed]
            for check in certificate.rows
        },
        "certificate passed": certificate.passed,
    }
    write(parsed.json, [_plain(row)])


def _plain(row: dict) -> dict:
    return {k: v.item() if hasattr(v, "item") else v for k, v in row.items()}


if __name__ == "__main__":
    main()
