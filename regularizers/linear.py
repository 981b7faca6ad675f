"""Learned linear operator times convex potential: ``R(x) = sum_i weight_i sum_p
phi_{smoothing_i}((k_i * x)_p)``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from piggyback.problems.groups import GradientBound
from piggyback.problems.regularizer import Regularizer
from piggyback.problems.saddle import SaddleProblem
from piggyback.terms.data.base import DataTerm
from piggyback.terms.penalties import Charbonnier, Huber, LogCosh, Penalty
from piggyback.terms.potentials import Potential
from piggyback.types import Scalar
from piggyback.values import require_count, require_positive
from regularizers.constraints import (
    basis_frequencies,
    positive,
    starting_coefficients,
    zero_mean_filters,
)
from regularizers.filter_bank.boundaries import BOUNDARIES
from regularizers.filter_bank.convolution import ConvolutionBank
from regularizers.filter_bank.kernels import KernelPlan

PENALTIES: dict[str, Penalty] = {
    "charbonnier": Charbonnier(),
    "huber": Huber(),
    "logcosh": LogCosh(),
}
"""By the name stored in a configuration file."""


@dataclass(frozen=True)
class LinearConfig:
    """Everything that defines the architecture; the rest are parameters.

    The starting values make total variation with a little of everything else.

    Args:
        filters: how many.
        size: their side, in pixels; odd, at least 3.
        channels: of the images.
        penalty: ``psi``, one of ``PENALTIES``.
        boundary: one of ``BOUNDARIES``.
        gradient_weight: starting weight of the two first differences, in grey
            values.
        weight: starting weight of the other filters, in grey values.
        smoothing: starting smoothing of the penalty, in grey values.
        smoothing_floor: what no smoothing falls below, in grey values; it
            bounds the conditioning.

    Raises:
        ValueError: for unknown names and impossible sizes.
    """

    filters: int = 48
    size: int = 7
    channels: int = 1
    penalty: str = "logcosh"
    boundary: str = "reflect"
    gradient_weight: float = 0.042
    weight: float = 0.001
    smoothing: float = 0.005
    smoothing_floor: float = 0.002

    @staticmethod
    def for_noise(
        sigma: float,
        filters: int,
        size: int,
        channels: int,
        penalty: str,
        boundary: str,
    ) -> LinearConfig:
        """Starting values in proportion to the noise: at least the quality of
        total variation.

        Args:
            sigma: standard deviation of the noise, in grey values.
            filters: as in ``LinearConfig``, like the rest.
            size: side of the filters, in pixels.
            channels: of the images.
            penalty: one of ``PENALTIES``.
            boundary: one of ``BOUNDARIES``.
        """
        return LinearConfig(
            filters=filters,
            size=size,
            channels=channels,
            penalty=penalty,
            boundary=boundary,
            gradient_weight=0.43 * sigma,
            weight=0.01 * sigma,
            smoothing=0.08 * sigma,
            smoothing_floor=0.04 * sigma,
        )

    def __post_init__(self) -> None:
        if self.penalty not in PENALTIES:
            raise ValueError(
                f"unknown penalty {self.penalty!r}; choose one of {', '.join(PENALTIES)}"
            )
        if self.boundary not in BOUNDARIES:
            raise ValueError(
                f"unknown boundary {self.boundary!r}; choose one of {', '.join(BOUNDARIES)}"
            )
        require_count("filters", self.filters)
        require_count("size", self.size)
        require_count("channels", self.channels)
        # only odd windows have a middle
        if self.size < 3 or self.size % 2 == 0:
            raise ValueError(
                f"filters need an odd size of at least 3 and positive counts, got {self}"
            )
        require_positive("weight", self.weight)
        require_positive("gradient_weight", self.gradient_weight)
        require_positive("smoothing", self.smoothing)
        if not self.smoothing > self.smoothing_floor > 0:
            raise ValueError(
                f"need positive weights and smoothing > smoothing_floor > 0, got {self}"
            )


class LinearRegularizer(Regularizer):
    """A bank of zero-mean filters with one weight and one smoothing each
    (docs/theory.md, eq. 3).

    Convex for every parameter value: the penalty is convex, weights and
    smoothings are exponentials, filters are free. Parameters: ``coefficients``
    ``(filters, channels, k^2 - 1)`` in an orthonormal zero-mean basis;
    ``log_weight`` and ``log_smoothing`` ``(filters,)``.

    Args:
        config: the architecture; None: the default one.
        generator: of the noise in the starting filters; None: torch's.
    """

    sees_data = False

    def __init__(
        self,
        config: LinearConfig | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        config = LinearConfig() if config is None else config
        self.config = config
        start = starting_coefficients(
            config.filters,
            config.channels,
            config.size,
        )
        # filters beyond the basis would be copies of others for ever
        noise = 0.02 * torch.randn(start.shape, generator=generator)
        self.coefficients = nn.Parameter(start + noise)
        weight = torch.full((config.filters,), config.weight)
        weight[:2] = config.gradient_weight
        self.log_weight = nn.Parameter(weight.log())
        above_floor = config.smoothing - config.smoothing_floor
        smoothing = torch.full((config.filters,), above_floor)
        self.log_smoothing = nn.Parameter(smoothing.log())
        # measured by whoever trains; not part of the model
        self.plan: KernelPlan | None = None

    def filters(self) -> Tensor:
        """``(filters, channels, k, k)``, each channel with zero mean."""
        return zero_mean_filters(self.coefficients)

    def operator(self) -> ConvolutionBank:
        """The filter bank ``K``, differentiable in the coefficients."""
        # measured in float32: says nothing of other precisions
        measured = self.coefficients.dtype == torch.float32
        plan = self.plan if measured else None
        return ConvolutionBank(
            self.filters(),
            BOUNDARIES[self.config.boundary],
            zero_mean=True,
            plan=plan,
        )

    def potential(self) -> Potential:
        """The potential ``f``, differentiable in weights and smoothings."""
        smoothing = positive(self.log_smoothing, self.config.smoothing_floor)
        return Potential(
            penalty=PENALTIES[self.config.penalty],
            weight=self.log_weight.exp(),
            smoothing=smoothing,
        )

    def problem(self, data: DataTerm) -> SaddleProblem:
        return SaddleProblem(data, self.potential(), self.operator())

    def relative_rates(self) -> dict[str, float]:
        """Step sizes of a stochastic optimiser relative to that of the
        coefficients, by name of the parameter or submodule."""
        return {"log_weight": 3.0, "log_smoothing": 3.0}

    def metric(self) -> Tensor:
        # photographs have a power spectrum of about 1 / frequency^2, and so has
        # the curvature of the loss in the coefficients; it goes with the square
        # of the weight too, but weights that are small at first grow: half of
        # that (docs/results.md)
        weight = self.log_weight.detach().exp()
        scale = weight.max() / weight
        whitening = basis_frequencies(self.config.size).to(weight).square()
        products = scale.reshape(-1, 1, 1) * whitening
        coefficients = products.expand_as(self.coefficients)
        return torch.cat([coefficients.flatten(), scale, scale])

    def pull_back(self, bound: GradientBound) -> Scalar:
        # coefficients: orthonormal basis; log-parameters: |d/d raw| = |d/d
        # value| * value, per filter
        operator = bound["operator"].sum()
        weight = _of_logarithm(self.log_weight, bound["weight"])
        smoothing = _of_logarithm(self.log_smoothing, bound["smoothing"])
        squares = weight.square().sum() + smoothing.square().sum()
        return (operator.square() + squares).sqrt()


def _of_logarithm(logarithm: Tensor, bound: Tensor) -> Tensor:
    """Summed over the samples, from ``bound`` ``(batch, filters)`` of what the
    exponentials get."""
    return logarithm.detach().exp().to(bound) * bound.sum(0)
