"""Gradient flow of homogeneous networks in log-risk time."""

from . import (
    constructions as constructions,
    datasets as datasets,
    diagnostics as diagnostics,
    models as models,
    oracles as oracles,
    plot as plot,
    solvers as solvers,
)
from ._certificate import Certificate as Certificate
from ._clocks import (
    AbstractClock as AbstractClock,
    LogNormTime as LogNormTime,
    LogRiskTime as LogRiskTime,
    PhysicalTime as PhysicalTime,
    SmoothedMarginTime as SmoothedMarginTime,
)
from ._integrate import integrate as integrate
from ._loss_family import ExponentialTail as ExponentialTail, Squared as Squared
from ._losses import (
    AbstractLoss as AbstractLoss,
    CrossEntropy as CrossEntropy,
    Exponential as Exponential,
    Logistic as Logistic,
)
from ._parameters import Fixed as Fixed
from ._problem import Problem as Problem
from ._results import FlowError as FlowError, Result as Result
from ._tangent_kernel import tangent_kernel as tangent_kernel
from ._trajectory import Trajectory as Trajectory
