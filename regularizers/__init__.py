"""Learned convex regularizers."""

from regularizers.adaptive import AdaptiveRegularizer, WeightConfig
from regularizers.boundaries import Boundary, Circular, Reflect, Valid
from regularizers.convolution import ConvolutionBank
from regularizers.icnn import NetworkConfig, NetworkRegularizer
from regularizers.lifted_certificate import LiftedEvidence, lifted_bound
from regularizers.lifted_piggyback import LiftedPiggyback
from regularizers.lifted_primal_dual import LiftedPrimalDual
from regularizers.lifted_problem import ImageLoss, LiftedProblem, lifted_problem
from regularizers.lifted_regularizer import LiftedConfig, LiftedRegularizer
from regularizers.linear import LinearConfig, LinearRegularizer
from regularizers.module import ModuleRegularizer

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
