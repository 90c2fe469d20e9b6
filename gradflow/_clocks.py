r"""Clocks: the speed at which a solver runs along the one curve of gradient flow.

Every clock integrates $d\theta/d\sigma = v\,G$ with the ascent direction
$G = -\nabla\ln L$ and a positive scalar $v$; the curve is the same for all.
Log-risk time advances by $ds/d\sigma = v\,\lVert G\rVert^2$.
"""

import abc

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._losses import AbstractLoss
from ._problem import Problem

# From about this s on flows are taken to be late. On digits from s = 1,000 to 1e5, one
# serves as well; but on iris steps at s = 50 then err three times as much.
_LATE = 1000.0


class AbstractClock(eqx.Module):
    """The solver's independent variable, given by a speed factor."""

    @abc.abstractmethod
    def speed(
        self,
        log_risk: Float[Array, ""],
        direction_norm: Float[Array, ""],
        rho: Float[Array, ""],
        radial: Float[Array, ""],
        loss: AbstractLoss,
    ) -> Float[Array, ""]:
        r"""The factor $v$ in $d\theta/d\sigma = v\,G$.

        **Arguments:** $\ln L$, $\lVert G\rVert$, $\rho = \lVert\theta\rVert$,
        $\langle\theta, G\rangle$ and the loss.
        """

    @abc.abstractmethod
    def at_start(self, rho: float, degree: float | None) -> "AbstractClock":
        """The clock to use for a flow that starts at norm `rho`, of a model of this
        degree (`None`: not homogeneous); usually itself."""

    def growth(self, t: Float[Array, ""]) -> Float[Array, ""] | None:
        r"""What solvers need not integrate: they step $v = \theta / M$ with this $M$,
        which is 1 at first, as a function of their variable. `None` (the default) for
        $v = \theta$. The curve is the same whatever $M$ is."""
        del t
        return None


class LogRiskTime(AbstractClock):
    r"""Log-risk time with an arc-length term.

    $d\sigma = ds + c\,\lVert d\theta\rVert/\rho$. From a small initialisation $s$
    hardly moves while $\theta$ grows by orders of magnitude; there $\sigma$ is
    relative arc length, and late in the flow it is $s$.
    A flow that starts at $\theta = 0$ uses $c = 0$, since arc length relative to zero
    has no meaning.

    Late in the flow of a model of degree $L$ margins grow like $s$, and the norm like
    $s^{1/L}$. Solvers of flows with $L > 1$ are spared that growth,
    $M = (1 + \sigma/1000)^{1/L}$, so that what is left for them hardly moves.

    - `arc_length`: $c \ge 0$; zero gives pure log-risk time.
    - `degree`: $L$; `gf.integrate` sets it.
    """

    arc_length: float = 1.0
    degree: float | None = None

    def __check_init__(self):
        if not self.arc_length >= 0:
            raise ValueError(
                f"`arc_length` must not be negative; got {self.arc_length}."
            )

    def speed(self, log_risk, direction_norm, rho, radial, loss):
        del log_risk, radial, loss
        if self.arc_length == 0:
            return 1 / direction_norm**2
        # Two divisions: the square of a direction of norm 1e-200 would underflow.
        return (rho / direction_norm) / (direction_norm * rho + self.arc_length)

    def growth(self, t):
        if self.degree is None or self.degree <= 1:
            return None
        return (1 + t / _LATE) ** (1 / self.degree)

    def at_start(self, rho, degree):
        return LogRiskTime(self.arc_length if rho > 0 else 0.0, degree)


class PhysicalTime(AbstractClock):
    r"""Time $t$ of $d\theta/dt = -\nabla L$: $v = L$.

    Late in the flow $t$ grows like $1/L$, and beyond log risk -700 (float64) the speed
    underflows: the flow then ends with `step_underflow`.
    """

    def speed(self, log_risk, direction_norm, rho, radial, loss):
        del direction_norm, rho, radial, loss
        return jnp.exp(log_risk)

    def at_start(self, rho, degree):
        del rho, degree
        return self


class SmoothedMarginTime(AbstractClock):
    r"""Time $\tau$ of the smoothed-margin flow $d\theta/d\tau = \nabla\alpha$."""

    def speed(self, log_risk, direction_norm, rho, radial, loss):
        del direction_norm, rho, radial
        return 1 / loss.slope_at_risk(log_risk)

    def at_start(self, rho, degree):
        del rho, degree
        return self


class LogNormTime(AbstractClock):
    r"""The logarithm of the norm, $d\sigma = d\ln\rho$. Source: Lyu and Li, Lemma 5.1.

    Runs forwards only while the norm grows: $\langle\theta, G\rangle > 0$.
    """

    def speed(self, log_risk, direction_norm, rho, radial, loss):
        del log_risk, direction_norm, loss
        return rho**2 / radial

    def at_start(self, rho, degree):
        del degree
        if rho == 0:
            raise ValueError(
                "`clock=LogNormTime()` needs parameters that are not all zero: use "
                "`LogRiskTime()`, or a model with `scale > 0`."
            )
        return self


def chosen(problem: Problem) -> AbstractClock:
    """The clock when the user names none.

    For degree 1 and a loss with an exponential tail `SmoothedMarginTime()`: there the
    gradient of the smoothed margin does not grow with the norm, and nothing is divided
    by a gradient that may almost vanish on the way. Otherwise `LogRiskTime()`.
    """
    smoothed = problem.degree == 1 and problem.loss.exponential_tail
    return SmoothedMarginTime() if smoothed else LogRiskTime()
