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

    ``widths``: channels of the hidden layers, at least two layers; the first
    needs an even number. ``size``: side of the filters that see the image, in
    every layer; ``inner``: side of the non-negative kernels between layers.
    ``smoothing`` (grey values): of the softplus; ``leak``: slope of the leaky
    ReLU. ``gradient_weight`` and ``weight`` (grey values): starting weights of
    the first differences and of everything else, as in ``LinearConfig``. Raises
    ``ValueError`` for unknown names and impossible sizes.
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
        """Starting values in proportion to the noise ``sigma`` (grey values):
        about the quality of total variation."""
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
        LeakyReLU(self.leak)  # checks it

    def phi(self) -> Activation:
        """The activation."""
        if self.activation == "softplus":
            return Softplus(self.smoothing)
        return LeakyReLU(self.leak if self.activation == "leaky_relu" else 0.0)


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
    """

    sees_data = False

    def __init__(
        self,
        config: NetworkConfig | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.config = config = config if config is not None else NetworkConfig()
        first = _paired(config, generator)
        later = [
            0.02 * torch.randn((width, *first.shape[1:]), generator=generator)
            for width in config.widths[1:]
        ]
        self.coefficients = nn.ParameterList([first, *later])
        self.offset = nn.ParameterList(
            [torch.zeros(width) for width in config.widths]
        )
        pairs = zip(config.widths[:-1], config.widths[1:], strict=True)
        self.log_inner = nn.ParameterList(
            [
                _starting_kernels(before, after, config.inner, index == 0).log()
                for index, (before, after) in enumerate(pairs)
            ]
        )
        output = torch.full((config.widths[-1],), config.weight)
        output[:2] = config.gradient_weight
        self.log_output = nn.Parameter(output.log())
        self.register_load_state_dict_pre_hook(_from_plain_weights)

    def filters(self, index: int = 0) -> Tensor:
        """``V`` of one layer, ``(width, channels, k, k)``, each channel with
        zero mean."""
        return zero_mean_filters(self.coefficients[index])

    def network(self) -> NetworkEnergy:
        """The energy, differentiable in the parameters."""
        config, layers = self.config, []
        inner = [None, *(kernel.exp() for kernel in self.log_inner)]
        for index, kernel in enumerate(inner):
            bank = ConvolutionBank(
                self.filters(index), BOUNDARIES["valid"], zero_mean=True
            )
            layers.append(Layer(bank, kernel, self.offset[index]))
        boundary = BOUNDARIES[config.boundary]
        return NetworkEnergy(
            tuple(layers),
            self.log_output.exp(),
            config.phi(),
            boundary,
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
    for name in [
        name
        for name in state
        if name.startswith((f"{prefix}inner.", f"{prefix}output"))
    ]:
        weights = state.pop(name)
        if not bool((torch.isfinite(weights) & (weights >= 0)).all()):
            raise ValueError(
                f"{name} must be finite and non-negative, got a minimum of "
                f"{float(weights.min()):.3g}"
            )
        state[f"{prefix}log_{name.removeprefix(prefix)}"] = weights.clamp(
            min=torch.finfo(weights.dtype).tiny
        ).log()


def _paired(config: NetworkConfig, generator: torch.Generator | None) -> Tensor:
    """Filters ``v, -v`` side by side, plus a little seeded noise."""
    start = starting_coefficients(
        config.widths[0] // 2, config.channels, config.size
    )
    start = torch.stack([start, -start], dim=1).flatten(0, 1)
    return start + 0.02 * torch.randn(start.shape, generator=generator)


def _starting_kernels(
    before: int, after: int, size: int, paired: bool
) -> Tensor:
    """Positive kernels: output ``i`` takes the sum of pair ``i`` (later:
    channel ``i``), and a tenth of the mean of the rest."""
    kernels = torch.full(
        (after, before, size, size), 0.1 / (before * size * size)
    )
    middle = size // 2
    for output in range(after):
        sources = [2 * output, 2 * output + 1] if paired else [output]
        for source in sources:
            kernels[output, source % before, middle, middle] = 1.0
    return kernels
