"""Learned convex regularizers."""

from regularizers.adaptive import AdaptiveRegularizer, WeightConfig
from regularizers.conditional import ConditionalRegularizer, LevelConfig
from regularizers.filter_bank.boundaries import (
    Boundary,
    Circular,
    Reflect,
    Valid,
)
from regularizers.filter_bank.convolution import ConvolutionBank
from regularizers.icnn.regularizer import NetworkConfig, NetworkRegularizer
from regularizers.linear import LinearConfig, LinearRegularizer
from regularizers.loading import available, load
from regularizers.module import ModuleRegularizer
from regularizers.relu_lifted.certificate import (
    ReLULiftedEvidence,
    relu_lifted_bound,
)
from regularizers.relu_lifted.piggyback import ReLULiftedPiggyback
from regularizers.relu_lifted.primal_dual import ReLULiftedPrimalDual
from regularizers.relu_lifted.problem import (
    ImageLoss,
    ReLULiftedProblem,
    relu_lifted_problem,
)
from regularizers.relu_lifted.regularizer import (
    ReLULiftedConfig,
    ReLULiftedRegularizer,
)

__all__ = [
    "AdaptiveRegularizer",
    "Boundary",
    "Circular",
    "ConditionalRegularizer",
    "ConvolutionBank",
    "ImageLoss",
    "LevelConfig",
    "LinearConfig",
    "LinearRegularizer",
    "ModuleRegularizer",
    "NetworkConfig",
    "NetworkRegularizer",
    "ReLULiftedConfig",
    "ReLULiftedEvidence",
    "ReLULiftedPiggyback",
    "ReLULiftedPrimalDual",
    "ReLULiftedProblem",
    "ReLULiftedRegularizer",
    "Reflect",
    "Valid",
    "WeightConfig",
    "available",
    "load",
    "relu_lifted_bound",
    "relu_lifted_problem",
]
