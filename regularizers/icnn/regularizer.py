"""A convolutional input-convex neural network as a regularizer (Amos, Xu,
Kolter 2017; docs/theory.md, section N)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from piggyback.problems.groups import GradientBound
from piggyback.problems.regularizer import Regularizer
from piggyback.problems.smooth import SmoothProblem
from piggyback.terms.activations import Activation, LeakyReLU, Softplus
from piggyback.terms.data.base import DataTerm
from piggyback.types import Scalar
from piggyback.values import require_count, require_positive
from regularizers.constraints import starting_coefficients, zero_mean_filters
from regularizers.filter_bank.boundaries import BOUNDARIES
from regularizers.filter_bank.convolution import ConvolutionBank
from regularizers.icnn.energy import NetworkEnergy
from regularizers.icnn.layer import Layer
from regularizers.icnn.problem import NetworkProblem

ACTIVATIONS = ("softplus", "relu", "leaky_relu")


@dataclass(frozen=True)
class NetworkConfig:
    """Everything that defines the architecture; the rest are parameters.

    Args:
        widths: channels of the hidden layers, at least two layers; the first
            needs an even number.
        size: side of the filters that see the image, in every layer, in pixels;
            odd, at least 3.
        inner: side of the non-negative kernels between layers; odd.
        channels: of the images.
        activation: one of ``ACTIVATIONS``.
        smoothing: of the softplus, in grey values.
        leak: slope of the leaky ReLU.
        boundary: one of ``BOUNDARIES``.
        gradient_weight: starting weight of the first differences, in grey
            values.
        weight: starting weight of everything else, in grey values.

    Raises:
        ValueError: for unknown names and impossible sizes.
    """

    widths: tuple[int, ...] = (32, 16)
    size: int = 7
    inner: int = 1
    channels: int = 1
    activation: str = "softplus"
    smoothing: float = 0.004
    leak: float = 0.1
    boundary: str = "reflect"
    gradient_weight: float = 0.042
    weight: float = 0.001

    @staticmethod
    def for_noise(
        sigma: float,
        widths: tuple[int, ...],
        size: int,
        inner: int,
        channels: int,
        boundary: str,
    ) -> NetworkConfig:
        """Starting values in proportion to the noise: about the quality of
        total variation.

        Args:
            sigma: standard deviation of the noise, in grey values.
            widths: as in ``NetworkConfig``, like the rest.
            size: side of the filters that see the image, in pixels.
            inner: side of the kernels between layers.
            channels: of the images.
            boundary: one of ``BOUNDARIES``.
        """
        return NetworkConfig(
            widths=widths,
            size=size,
            inner=inner,
            channels=channels,
            smoothing=0.04 * sigma,
            boundary=boundary,
            gradient_weight=0.43 * sigma,
            weight=0.01 * sigma,
        )

    def __post_init__(self) -> None:
        # a list, in a configuration file
        object.__setattr__(self, "widths", tuple(self.widths))
        if len(self.widths) < 2 or min(self.widths) < 1 or self.widths[0] % 2:
            raise ValueError(
                "a network needs at least two hidden layers, the first of "
                f"even width, got {self.widths}"
            )
        require_count("size", self.size)
        require_count("inner", self.inner)
        require_count("channels", self.channels)
        if self.size < 3 or self.size % 2 == 0 or self.inner % 2 == 0:
            raise ValueError(
                f"kernels need odd sides (at least 3 for the image) and positive counts, got {self}"
            )
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"unknown activation {self.activation!r}; choose one of {', '.join(ACTIVATIONS)}"
            )
        if self.boundary not in BOUNDARIES:
            raise ValueError(
                f"unknown boundary {self.boundary!r}; choose one of {', '.join(BOUNDARIES)}"
            )
        require_positive("weight", self.weight)
        require_positive("gradient_weight", self.gradient_weight)
        require_positive("smoothing", self.smoothing)
        # checks it
        LeakyReLU(self.leak)

    def phi(self) -> Activation:
        """The activation ``phi``."""
        if self.activation == "softplus":
            return Softplus(self.smoothing)
        # the ReLU is the one without a leak
        leak = self.leak if self.activation == "leaky_relu" else 0.0
        return LeakyReLU(leak)


class NetworkRegularizer(Regularizer):
    """``R(x) = sum_p <c, s_L(p)>`` with ``s_l = phi(W_l s_{l-1} + V_l x +
    b_l)``: convex in ``x`` for every parameter value.

    Parameters: ``coefficients.l`` ``(width_l, channels, k^2 - 1)`` of ``V_l``
    in an orthonormal zero-mean basis, ``offset.l`` ``b_l``, ``log_inner.l``
    ``(width_l, width_{l-1}, i, i)`` with ``W_l = exp(log_inner)``, and
    ``log_output`` with ``c = exp(log_output)``. Checkpoints may hold plain
    weights, ``inner.l`` and ``output``, instead of logarithms: negative ones
    would break convexity and are refused (``ValueError``).

    Scale-free start: the kernels of each layer sum to about 1 per output, so
    the energy is ``c`` times filter responses whatever the widths and depth;
    the first layer comes in pairs ``v, -v``, which makes ``phi(z) + phi(-z) ~
    |z|``.

    Args:
        config: the architecture; None: the default one.
        generator: of the noise in the starting filters; None: torch's.
    """

    sees_data = False

    def __init__(
        self,
        config: NetworkConfig | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        config = NetworkConfig() if config is None else config
        self.config = config
        first = _paired(config, generator)
        later = [
            0.02 * torch.randn((width, *first.shape[1:]), generator=generator)
            for width in config.widths[1:]
        ]
        self.coefficients = nn.ParameterList([first, *later])
        self.offset = nn.ParameterList(
            [torch.zeros(width) for width in config.widths]
        )
        kernels = []
        for index, after in enumerate(config.widths[1:]):
            start = _starting_kernels(
                before=config.widths[index],
                after=after,
                size=config.inner,
                # the first layer comes in pairs
                paired=index == 0,
            )
            kernels.append(start.log())
        self.log_inner = nn.ParameterList(kernels)
        # the two first channels are the first differences
        output = torch.full((config.widths[-1],), config.weight)
        output[:2] = config.gradient_weight
        self.log_output = nn.Parameter(output.log())
        self.register_load_state_dict_pre_hook(_from_plain_weights)

    def filters(self, index: int = 0) -> Tensor:
        """``V`` of one layer.

        Args:
            index: of the layer, from 0.

        Returns:
            ``(width, channels, k, k)``, each channel with zero mean.
        """
        return zero_mean_filters(self.coefficients[index])

    def network(self) -> NetworkEnergy:
        """The energy, differentiable in the parameters."""
        kernels = [None, *(kernel.exp() for kernel in self.log_inner)]
        layers = []
        for index, kernel in enumerate(kernels):
            # the network extends the image once for all layers
            bank = ConvolutionBank(
                self.filters(index),
                BOUNDARIES["valid"],
                zero_mean=True,
            )
            layers.append(Layer(bank, kernel, self.offset[index]))
        return NetworkEnergy(
            layers=tuple(layers),
            output=self.log_output.exp(),
            activation=self.config.phi(),
            boundary=BOUNDARIES[self.config.boundary],
            logarithmic=True,
        )

    def problem(self, data: DataTerm) -> SmoothProblem:
        return NetworkProblem(data, self.network())

    def relative_rates(self) -> dict[str, float]:
        return {"log_inner": 3.0, "log_output": 3.0, "offset": 0.1}

    def pull_back(self, bound: GradientBound) -> Scalar:
        return bound["parameters"].sum()


def _from_plain_weights(
    module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object
) -> None:
    """Turn ``inner.l`` and ``output`` of a state dictionary into the logarithms
    that the module holds; zeros become tiny."""
    prefixes = (f"{prefix}inner.", f"{prefix}output")
    # a list: entries are taken out on the way
    plain = [name for name in state if name.startswith(prefixes)]
    for name in plain:
        weights = state.pop(name)
        if not bool((torch.isfinite(weights) & (weights >= 0)).all()):
            raise ValueError(
                f"{name} must be finite and non-negative, got a minimum of "
                f"{float(weights.min()):.3g}"
            )
        # zero has no logarithm
        positive = weights.clamp(min=torch.finfo(weights.dtype).tiny)
        held = f"{prefix}log_{name.removeprefix(prefix)}"
        state[held] = positive.log()


def _paired(config: NetworkConfig, generator: torch.Generator | None) -> Tensor:
    """Filters ``v, -v`` side by side, plus a little seeded noise."""
    start = starting_coefficients(
        config.widths[0] // 2,
        config.channels,
        config.size,
    )
    start = torch.stack([start, -start], dim=1).flatten(0, 1)
    return start + 0.02 * torch.randn(start.shape, generator=generator)


def _starting_kernels(
    before: int, after: int, size: int, paired: bool
) -> Tensor:
    """Positive kernels: output ``i`` takes the sum of pair ``i`` (later:
    channel ``i``), and a tenth of the mean of the rest."""
    share = 0.1 / (before * size * size)
    kernels = torch.full((after, before, size, size), share)
    middle = size // 2
    for output in range(after):
        sources = [2 * output, 2 * output + 1] if paired else [output]
        for source in sources:
            # wider layers than the one before start again
            kernels[output, source % before, middle, middle] = 1.0
    return kernels
