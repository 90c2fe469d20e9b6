"""What several test files share: lists to parametrize over, and tiny problems."""

import jax.numpy as jnp
import numpy as np

import gradflow as gf

LOSSES = [gf.Exponential(), gf.Logistic(), gf.CrossEntropy()]
BINARY_LOSSES = [gf.Exponential(), gf.Logistic()]


def separable(n=8, d=3, seed=0):
    """Points with labels +-1 that a line through the origin separates."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    y = np.where(np.arange(n) % 2 == 0, 1.0, -1.0)
    x[:, 0] = y * (0.5 + np.abs(x[:, 0]))
    return jnp.asarray(x), jnp.asarray(y)


def changed(traj, values, theta=None):
    """The trajectory with other saved values, or other final parameters."""
    return gf.Trajectory(
        model=traj.model,
        theta=traj.theta if theta is None else theta,
        values=dict(traj) | values,
        result=traj.result,
        stats=traj.stats,
        config=traj.config,
    )


def failures(traj, problem=None):
    """Names of the certificate's rows that fail."""
    rows = traj.certificate(problem=problem).rows
    return {row.name for row in rows if not row.passed}
