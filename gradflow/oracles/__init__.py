"""Independent answers to what a flow should converge to."""

from .infinite_width import (
    CoveringBound as CoveringBound,
    InfiniteWidth as InfiniteWidth,
    covering_bound as covering_bound,
    covering_radius as covering_radius,
    infinite_width_margin as infinite_width_margin,
)
from .linear import (
    DeepLinear as DeepLinear,
    DiagonalMargin as DiagonalMargin,
    MaxMargin as MaxMargin,
    deep_linear as deep_linear,
    diagonal_max_margin as diagonal_max_margin,
    max_margin as max_margin,
)
from .neurons import NeuronProgram as NeuronProgram, neuron_program as neuron_program
from .optimality import (
    Optimality as Optimality,
    layer_optimality as layer_optimality,
    local_optimality as local_optimality,
)
from .tangent import TangentSVM as TangentSVM, tangent_svm as tangent_svm
