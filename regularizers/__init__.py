"""Learned convex regularizers."""

from regularizers.adaptive import AdaptiveRegularizer, WeightConfig
from regularizers.boundaries import Boundary, Circular, Reflect, Valid
from regularizers.convolution import ConvolutionBank
from regularizers.linear import LinearConfig, LinearRegularizer

__all__ = [
    "AdaptiveRegularizer",
    "Boundary",
    "Circular",
    "ConvolutionBank",
    "LinearConfig",
    "LinearRegularizer",
    "Reflect",
    "Valid",
    "WeightConfig",
]
