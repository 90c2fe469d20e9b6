"""Homogeneous models, their layers and activations, as Equinox modules."""

from .activations import (
    AbstractActivation as AbstractActivation,
    Identity as Identity,
    LeakyReLU as LeakyReLU,
    Power as Power,
    PowerReLU as PowerReLU,
    ReLU as ReLU,
    Scale as Scale,
    SmoothAbs as SmoothAbs,
    SmoothLeakyReLU as SmoothLeakyReLU,
    SmoothReLU as SmoothReLU,
)
from .analytic import (
    Homogeneous as Homogeneous,
    MexicanHat as MexicanHat,
    SkipScalar as SkipScalar,
)
from .cnn import VGG16 as VGG16, HAlexNet as HAlexNet, LyuLiCNN as LyuLiCNN
from .convolution import (
    AvgPool as AvgPool,
    Conv as Conv,
    GlobalAvgPool as GlobalAvgPool,
    MaxPool as MaxPool,
)
from .dense import (
    MLP as MLP,
    DeepLinear as DeepLinear,
    Linear as Linear,
    TwoLayer as TwoLayer,
)
from .layers import (
    AbstractLayer as AbstractLayer,
    Dense as Dense,
    Flatten as Flatten,
    Sequential as Sequential,
    Signal as Signal,
)
from .normalization import BatchNorm as BatchNorm, WeightNorm as WeightNorm
from .precision import InPrecision as InPrecision
from .residual import DenseNet121 as DenseNet121, ResNet18 as ResNet18
from .sparse import (
    Diagonal as Diagonal,
    DisjointPatches as DisjointPatches,
    SparseShared as SparseShared,
)
from .tangent import Linearized as Linearized, Tangent as Tangent
from .torch import (
    from_state_dict as from_state_dict,
    load_torch as load_torch,
    save_torch as save_torch,
    to_state_dict as to_state_dict,
)
