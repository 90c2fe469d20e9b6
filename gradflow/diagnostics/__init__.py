"""Quantities of the theory, derived from one snapshot of the flow."""

from .along import along as along, parameters as parameters
from .attacks import carlini_wagner as carlini_wagner
from .clarke import (
    ClarkeDirection as ClarkeDirection,
    SlidingExample as SlidingExample,
    clarke_direction as clarke_direction,
)
from .kkt import KKT as KKT, Multipliers as Multipliers, kkt as kkt
from .layers import (
    Chain as Chain,
    Layers as Layers,
    Neurons as Neurons,
    chain as chain,
    layers as layers,
    neurons as neurons,
)
from .lipschitz import lipschitz_bound as lipschitz_bound
from .potentials import Potentials as Potentials, potentials as potentials
from .rates import (
    Limit as Limit,
    Rate as Rate,
    Rates as Rates,
    limit as limit,
    path_limit as path_limit,
    power as power,
    rates as rates,
)
from .robustness import Robustness as Robustness, robustness as robustness
from .snapshot import (
    Snapshot as Snapshot,
    dual as dual,
    snapshot as snapshot,
    weights as weights,
)
from .spectrum import (
    Spectrum as Spectrum,
    spectral_radius as spectral_radius,
    spectrum as spectrum,
    top_eigenvalues as top_eigenvalues,
)
from .standard import (
    QUANTITIES as QUANTITIES,
    Quantity as Quantity,
    standard as standard,
)
from .support import (
    Support as Support,
    direction_norm as direction_norm,
    integrated_multipliers as integrated_multipliers,
    support as support,
)
