"""The standard quantities of a trajectory, each derived from one snapshot."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .._losses import AbstractLoss
from .snapshot import Snapshot, smoothed_margin_slope


class Quantity(NamedTuple):
    """What a named result is: dimensions after `s`, units, description."""

    dims: tuple[str, ...]
    units: str
    long_name: str


QUANTITIES: dict[str, Quantity] = {
    "s": Quantity((), "1", "log-risk time ln(n/L), measured"),
    "log_risk": Quantity((), "1", "ln L, the log of the summed loss"),
    "steps": Quantity((), "1", "accepted steps so far"),
    "rejected_steps": Quantity((), "1", "rejected steps so far"),
    "gradient_evaluations": Quantity((), "1", "gradient evaluations so far"),
    "passes": Quantity(
        (), "1", "work in passes over all examples, two for a Jacobian product"
    ),
    "active_examples": Quantity((), "1", "examples that steps take"),
    "jacobian_products": Quantity((), "1", "Jacobian-vector products so far"),
    "factorizations": Quantity((), "1", "factorisations of the Jacobian so far"),
    "spectral_radius": Quantity((), "1", "spectral radius of the Jacobian"),
    "deflated_radius": Quantity(
        (), "1", "bound on the spectral radius of what is not deflated"
    ),
    "log_t": Quantity((), "1", "ln of gradient-flow time t"),
    "margins": Quantity(("example",), "1", "margin p_i"),
    "soft_margins": Quantity(
        ("example",), "1", "margin that enters the loss, of several classes"
    ),
    "normalized_margins": Quantity(("example",), "1", "margin p_i / rho^L"),
    "min_normalized_margin": Quantity((), "1", "least normalised margin"),
    "smoothed_margin": Quantity((), "1", "smoothed margin alpha = l^{-1}(L)"),
    "normalized_smoothed_margin": Quantity((), "1", "alpha / rho^L"),
    "layer_normalized_margins": Quantity(
        ("example",), "1", "margin over the product of layer norms to their degrees"
    ),
    "min_layer_normalized_margin": Quantity(
        (), "1", "least margin normalised by layer norms"
    ),
    "layer_normalized_smoothed_margin": Quantity(
        (), "1", "alpha over the product of layer norms to their degrees"
    ),
    "beta": Quantity((), "1", "beta = <theta, grad alpha> / L"),
    "rho": Quantity((), "1", "parameter norm rho"),
    "layer_norm": Quantity(("layer",), "1", "norm of each layer"),
    "alignment": Quantity((), "1", "cosine of theta and -grad L"),
    "misalignment": Quantity((), "1", "1 - alignment, without cancellation"),
    "j_potential": Quantity((), "1", "J = |grad alpha|^2 / rho^(2L-2)"),
    "log_radial_gradient": Quantity((), "1", "ln of the radial part of |grad L|"),
    "log_spherical_gradient": Quantity((), "1", "ln of the spherical part of |grad L|"),
    "radial_smoothed_margin_gradient": Quantity((), "1", "radial part of |grad alpha|"),
    "spherical_smoothed_margin_gradient": Quantity(
        (), "1", "spherical part of |grad alpha|"
    ),
    "path_length": Quantity((), "1", "path length of theta / rho"),
    "training_error": Quantity((), "1", "share of examples with margin <= 0"),
    "clock_drift": Quantity(
        (), "1", "measured minus integrated log-risk time, since the last step"
    ),
    "clock_correction": Quantity(
        (), "1", "sum of the drifts of all steps, by which the clock was corrected"
    ),
    "euler_residual": Quantity((), "1", "relative residual of <theta, grad f> = L f"),
    "lemma_3_4_residual": Quantity(
        (), "1", "relative residual of d(normalised smoothed margin)/dt"
    ),
    "median_normalized_margins": Quantity(
        ("example",), "1", "margin over the median non-negative margin"
    ),
    "unit_norm_margins": Quantity(("example",), "1", "margin at theta / rho"),
    "theta": Quantity(("parameter",), "1", "flat parameters theta"),
}


def standard(snap: Snapshot) -> dict[str, Array]:
    """All standard quantities at one point, by name.

    Margins normalised layer by layer are there for models of more than one layer.
    Those that need homogeneity are absent when `problem.degree` is `None`; margins are
    then normalised by the median non-negative margin (Ji and Telgarsky, Appendix A)
    and evaluated at unit norm (Vardi et al., Section 6). Those of the smoothed margin
    are absent for losses without an exponential tail.
    """
    out = _geometry(snap)
    out.update(
        _homogeneous(snap) if snap.problem.degree is not None else _general(snap)
    )
    if not snap.problem.loss.exponential_tail:
        out = {name: value for name, value in out.items() if name not in _OF_TAILS}
    return out


_OF_TAILS = {
    *("smoothed_margin", "normalized_smoothed_margin", "beta", "j_potential"),
    *("radial_smoothed_margin_gradient", "spherical_smoothed_margin_gradient"),
    *("layer_normalized_smoothed_margin", "lemma_3_4_residual"),
}


def _geometry(snap: Snapshot) -> dict[str, Array]:
    spherical = spherical_norm(snap)
    direction_norm = _norm(snap.direction)
    product = direction_norm * snap.rho
    safe = jnp.where(product > 0, product, 1)
    cosine = jnp.where(product > 0, snap.radial / safe, 0)
    sine = jnp.where(product > 0, spherical * snap.rho / safe, 0)
    # 1 - cos from the sine where the angle is acute; the difference would cancel.
    misalignment = jnp.where(cosine > 0, sine**2 / (1 + cosine), 1 - cosine)
    rho = jnp.where(snap.rho > 0, snap.rho, 1)
    radial = jnp.where(snap.rho > 0, snap.radial / rho, 0)
    log_n = jnp.log(snap.problem.n).astype(snap.rho.dtype)
    slope = smoothed_margin_slope(snap)
    return {
        "margins": snap.margins,
        **({"soft_margins": snap.soft_margins} if _softened(snap) else {}),
        "rho": snap.rho,
        "layer_norm": layer_norms(snap),
        "smoothed_margin": snap.problem.loss.inverse(snap.log_risk),
        "alignment": cosine,
        "misalignment": misalignment,
        "log_radial_gradient": snap.log_risk + jnp.log(jnp.abs(radial)),
        "log_spherical_gradient": snap.log_risk + jnp.log(spherical),
        "radial_smoothed_margin_gradient": jnp.abs(radial) / slope,
        "spherical_smoothed_margin_gradient": spherical / slope,
        "log_t": jnp.log(snap.time) + snap.s - log_n,
        "path_length": snap.path_length,
        "training_error": jnp.mean((snap.margins <= 0).astype(snap.rho.dtype)),
        "clock_drift": snap.s - snap.clock,
        "clock_correction": snap.correction,
    }


def _softened(snap: Snapshot) -> bool:
    """Whether another margin than the hard one enters the loss."""
    return type(snap.problem.loss).soft_margin is not AbstractLoss.soft_margin


def spherical_norm(snap: Snapshot) -> Array:
    r"""$\lVert G_\perp\rVert$, the part of the ascent direction normal to $\theta$."""
    rho2 = jnp.where(snap.rho > 0, snap.rho**2, 1)
    return _norm(snap.direction - (snap.radial / rho2) * snap.theta)


def _norm(vector) -> Array:
    # The squares of a stationary flow's gradient underflow.
    size = jnp.max(jnp.abs(vector))
    return size * jnp.linalg.norm(vector / jnp.where(size > 0, size, 1))


def layer_norms(snap: Snapshot) -> Array:
    r"""$\lVert W_k\rVert$ of each layer $k$ in `problem.layers`, shape `(layers,)`."""
    layers = snap.problem.split_layers(snap.theta)
    return jnp.stack([jnp.linalg.norm(w) for w in layers])


def _multi_homogeneous(snap: Snapshot) -> dict[str, Array]:
    r"""Margins over $\prod_k\lVert W_k\rVert^{d_k}$ (Lyu and Li, Equation (4)), and
    the smoothed margin over the same, which never falls late (Lemma H.2)."""
    norms, degrees = layer_norms(snap), snap.problem.layer_degrees
    if len(degrees) < 2:
        return {}
    scale = jnp.prod(norms ** jnp.array(degrees, norms.dtype))
    margins = snap.margins / scale
    return {
        "layer_normalized_margins": margins,
        "min_layer_normalized_margin": jnp.min(margins),
        "layer_normalized_smoothed_margin": snap.problem.loss.inverse(snap.log_risk)
        / scale,
    }


def _homogeneous(snap: Snapshot) -> dict[str, Array]:
    degree = snap.problem.degree
    assert degree is not None
    slope = smoothed_margin_slope(snap)
    scale = snap.rho**degree
    normalized = snap.margins / scale
    alpha = snap.problem.loss.inverse(snap.log_risk)
    log_j = 2 * (jnp.log(_norm(snap.direction)) - jnp.log(slope))
    if degree != 1:  # Zero to the power zero is one.
        log_j = log_j - (2 * degree - 2) * jnp.log(snap.rho)
    return {
        "normalized_margins": normalized,
        "min_normalized_margin": jnp.min(normalized),
        "normalized_smoothed_margin": alpha / scale,
        "beta": snap.radial / slope / (degree if degree else 1.0),
        "j_potential": jnp.exp(log_j),
        "euler_residual": snap.problem.euler_residual(snap.theta),
        "lemma_3_4_residual": lemma_3_4_residual(snap),
        **_multi_homogeneous(snap),
    }


def _general(snap: Snapshot) -> dict[str, Array]:
    positive = jnp.where(snap.margins >= 0, snap.margins, jnp.nan)
    unit = snap.theta / jnp.where(snap.rho > 0, snap.rho, 1)
    return {
        "median_normalized_margins": snap.margins / jnp.nanmedian(positive),
        "unit_norm_margins": snap.problem.margins(unit),
    }


def lemma_3_4_residual(snap: Snapshot) -> Array:
    r"""Relative residual of Lemma 3.4,
    $d\tilde\alpha/dt = \lVert\partial_r\tilde\alpha\rVert\lVert\partial_r L\rVert
    + \lVert\partial_\perp\tilde\alpha\rVert\lVert\partial_\perp L\rVert$.

    The left side is a directional derivative of the function $\tilde\alpha$ by
    automatic differentiation along $-\nabla L$ (divided by $L$ on both sides), the
    right side comes from norms. Holds where $\beta \ge \alpha$ (after $L < \ell(0)$);
    NaN before. Source: Ji and Telgarsky, Lemma 3.4, with Lemmas C.2 and C.3.
    """
    problem, degree, rho = snap.problem, snap.problem.degree, snap.rho
    assert degree is not None

    def normalized_smoothed_margin(theta):
        alpha = problem.loss.inverse(problem.log_risk(theta))
        return alpha / jnp.linalg.norm(theta) ** degree

    _, left = jax.jvp(normalized_smoothed_margin, (snap.theta,), (snap.direction,))
    slope = smoothed_margin_slope(snap)
    alpha = problem.loss.inverse(snap.log_risk)
    beta = snap.radial / slope / degree if degree else jnp.zeros_like(rho)
    spherical = spherical_norm(snap)
    radial_part = degree * jnp.abs(beta - alpha) / rho ** (degree + 1)
    right = radial_part * jnp.abs(snap.radial) / rho
    right = right + spherical / slope / rho**degree * spherical
    # The two terms of d(alpha tilde) cancel as the flow aligns; relative to them the
    # identity holds to rounding.
    square = jnp.vdot(snap.direction, snap.direction, precision="highest")
    terms = (square / slope) / rho**degree
    valid = snap.log_risk < problem.loss.log_loss(jnp.zeros_like(rho))
    return jnp.where(valid, jnp.abs(left - right) / terms, jnp.nan)
