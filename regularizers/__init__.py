"""Learned convex regularizers."""

from regularizers.adaptive import AdaptiveRegularizer, WeightConfig
from regularizers.filter_bank.boundaries import (
    Boundary,
    Circular,
    Reflect,
    Valid,
)
from regularizers.filter_bank.convolution import ConvolutionBank
from regularizers.icnn.regularizer import NetworkConfig, NetworkRegularizer
from regularizers.linear import LinearConfig, LinearRegularizer
from regularizers.module import ModuleRegularizer
from regularizers.relu_lifted.certificate import LiftedEvidence, lifted_bound
from regularizers.relu_lifted.piggyback import LiftedPiggyback
from regularizers.relu_lifted.primal_dual import LiftedPrimalDual
from regularizers.relu_lifted.problem import (
    ImageLoss,
    LiftedProblem,
    lifted_problem,
)
from regularizers.relu_lifted.regularizer import LiftedConfig, LiftedRegularizer

__all__ = [
    "AdaptiveRegularizer",
    "Boundary",
    "Circular",
    "ConvolutionBank",
    "ImageLoss",
    "LiftedConfig",
    "LiftedEvidence",
    "LiftedPiggyback",
    "LiftedPrimalDual",
    "LiftedProblem",
    "LiftedRegularizer",
    "LinearConfig",
    "LinearRegularizer",
    "ModuleRegularizer",
    "NetworkConfig",
    "NetworkRegularizer",
    "Reflect",
    "Valid",
    "WeightConfig",
    "lifted_bound",
    "lifted_problem",
]
