"""Learned convex regularizers."""

from regularizers.adaptive import AdaptiveRegularizer, WeightConfig
from regularizers.boundaries import Boundary, Circular, Reflect, Valid
from regularizers.convolution import ConvolutionBank
from regularizers.icnn import NetworkConfig, NetworkRegularizer
from regularizers.linear import LinearConfig, LinearRegularizer
from regularizers.module import ModuleRegularizer

__all__ = [
    "AdaptiveRegularizer",
    "Boundary",
    "Circular",
    "ConvolutionBank",
    "LinearConfig",
    "LinearRegularizer",
    "ModuleRegularizer",
    "NetworkConfig",
    "NetworkRegularizer",
    "Reflect",
    "Valid",
    "WeightConfig",
]
