"""Quantities of the theory, derived from one snapshot of the flow."""

from .kkt import KKT as KKT
from .kkt import Multipliers as Multipliers
from .kkt import kkt as kkt
from .snapshot import (
    Snapshot as Snapshot,
)
from .snapshot import (
    dual as dual,
)
from .snapshot import (
    snapshot as snapshot,
)
from .snapshot import (
    weights as weights,
)
from .standard import (
    QUANTITIES as QUANTITIES,
)
from .standard import (
    Quantity as Quantity,
)
from .standard import (
    standard as standard,
)
