"""Gradient flow of homogeneous networks in log-risk time."""

from . import models as models, solvers as solvers
from ._losses import (
    AbstractLoss as AbstractLoss,
    CrossEntropy as CrossEntropy,
    Exponential as Exponential,
    Logistic as Logistic,
)
from ._parameters import Fixed as Fixed
from ._problem import Problem as Problem
