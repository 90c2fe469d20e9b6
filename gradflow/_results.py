"""How an integration ended."""

import enum


class Result(enum.Enum):
    """The named reasons for which `integrate` stops; each prints its message."""

    reached = "the requested log-risk time was reached"
    stationary = (
        "the risk stopped decreasing: the flow has come to a stationary point, since "
        "the data are not separable, or not from here"
    )
    step_underflow = (
        "the step size fell below rounding: the flow is not smooth here (plain ReLU "
        "kinks? use a smoothed activation), or beyond this precision"
    )
    clock_lost = (
        "the measured log-risk time fell out of step with the integrated one: lower "
        "`rtol`, use a stiff solver (`solver=None`), or float64 parameters if they are "
        "float32"
    )
    chattering = (
        "steps stay a hundred times smaller than the tolerance asks for: the flow "
        "slides along kinks (plain ReLU, max-pooling: use the smoothed ones), or an "
        "explicit solver is held back by stability (use `solver=None`)"
    )
    step_limit = "`max_steps` was reached"
    time_limit = "`max_seconds` was reached"
    interrupted = "interrupted; everything up to here is kept"

    def __str__(self) -> str:
        return f"{self.name}: {self.value}"


class FlowError(RuntimeError):
    """A flow failed; `trajectory` holds everything up to there."""

    def __init__(self, trajectory):
        self.trajectory = trajectory
        super().__init__(
            f"{trajectory.result} (at s = {trajectory.s[-1]:.6g}). Pass `throw=False` "
            "to get the trajectory instead; it is also this error's `.trajectory`."
        )
