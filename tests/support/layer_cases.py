"""Data terms as functions of all that they are made of, and small regularizers
of every kind: what the layer is tried on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from piggyback.forward.blur import ValidBlur
from piggyback.forward.sampling import Inpainting, SuperResolution
from piggyback.problems.regularizer import Regularizer
from piggyback.terms.data.base import DataTerm
from piggyback.terms.data.deblurring import Deblurring
from piggyback.terms.data.denoising import Denoising
from piggyback.terms.data.least_squares import LeastSquares
from piggyback.terms.data.masked import MaskedDenoising
from regularizers.adaptive import AdaptiveRegularizer, WeightConfig
from regularizers.icnn.regularizer import NetworkConfig, NetworkRegularizer
from regularizers.linear import LinearConfig, LinearRegularizer
from regularizers.module import ModuleRegularizer
from regularizers.relu_lifted.regularizer import ReLULiftedRegularizer

DOUBLE = torch.float64
SHAPE = (2, 1, 6, 8)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def image(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.rand(shape, generator=seeded(seed), dtype=DOUBLE)


class Ridges(nn.Module):
    """``sum softplus(w (x - c))`` over neighbouring differences: convex,
    smooth, with parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1.5, 0.7], dtype=DOUBLE))

    def forward(self, x: Tensor) -> Tensor:
        across, down = x.diff(dim=-1), x.diff(dim=-2)
        first, second = self.scale
        return (0.3 * (1 + (first * across).square()).sqrt()).flatten(1).sum(
            1
        ) + (0.2 * (1 + (second * down).square()).sqrt()).flatten(1).sum(1)


def linear() -> Regularizer:
    config = LinearConfig(
        filters=3, size=3, weight=0.05, gradient_weight=0.1, smoothing=0.05
    )
    return LinearRegularizer(config, seeded(1)).double()


def adaptive() -> Regularizer:
    config = LinearConfig(
        filters=3, size=3, weight=0.05, gradient_weight=0.1, smoothing=0.05
    )
    regularizer = AdaptiveRegularizer(
        config, WeightConfig(features=3, size=3, windows=(3,)), seeded(1)
    ).double()
    with torch.no_grad():  # it starts with factors of 1, which see nothing
        regularizer.network.mixing.copy_(
            0.5 * torch.randn(2, 3, 3, generator=seeded(2))
        )
    return regularizer


def icnn() -> Regularizer:
    config = NetworkConfig(
        widths=(4, 2), size=3, smoothing=0.05, gradient_weight=0.1, weight=0.05
    )
    return NetworkRegularizer(config, seeded(1)).double()


def lifted() -> Regularizer:
    config = NetworkConfig(
        widths=(4, 2),
        size=3,
        activation="leaky_relu",
        gradient_weight=0.1,
        weight=0.05,
    )
    return ReLULiftedRegularizer(config, generator=seeded(1)).double()


REGULARIZERS: dict[str, Callable[[], Regularizer]] = {
    "linear": linear,
    "adaptive": adaptive,
    "icnn": icnn,
    "module": lambda: ModuleRegularizer(Ridges()),
    "lifted": lifted,
}


@dataclass(frozen=True)
class Input:
    """A data term as a function of tensors (``values``, in the order of the
    arguments), all of which get gradients."""

    build: Callable[..., DataTerm]
    values: dict[str, Tensor]


class LearnedBlur(nn.Module):
    """A user's operator, a horizontal blur with three weights; only ``A`` is
    differentiable in them."""

    norm_bound = 2.0
    taps: Tensor

    def __init__(self, taps: Tensor) -> None:
        super().__init__()
        self.taps = taps if taps.requires_grad else nn.Parameter(taps)

    def A(self, x: Tensor) -> Tensor:
        return nnf.conv2d(x, self.taps.reshape(1, 1, 1, 3))

    def A_adjoint(self, y: Tensor) -> Tensor:
        return nnf.conv_transpose2d(y, self.taps.detach().reshape(1, 1, 1, 3))


class Closed:
    """A user's operator that is no module and holds its weights in closures."""

    norm_bound = 2.0

    def __init__(self, gains: Tensor) -> None:
        self.A = lambda x: x * gains
        self.A_adjoint = lambda y: y * gains


def _pixels(seed: int) -> Tensor:
    return (torch.rand(SHAPE, generator=seeded(seed)) < 0.7).double()


KERNEL = torch.tensor(
    [[0.1, 0.2, 0.1], [0.0, 0.3, 0.1], [0.05, 0.1, 0.05]], dtype=DOUBLE
)


def value(number: float) -> Tensor:
    return torch.tensor(number, dtype=DOUBLE)


SLOW = ("denoising", "one weight per pixel", "a user's module")
"""What is tried on lifted networks, whose solves take ten times as long."""

INPUTS: dict[str, Input] = {
    "denoising": Input(
        Denoising, {"observation": image(3), "weight": value(1.3)}
    ),
    "one weight per sample": Input(
        Denoising,
        {"observation": image(3), "weight": 1 + image(4, (2, 1, 1, 1))},
    ),
    "one weight per pixel": Input(
        Denoising,
        {"observation": image(3), "weight": 0.5 + image(4, (1, 1, 6, 8))},
    ),
    "deblurring": Input(
        Deblurring,
        {
            "observation": image(3),
            "kernel": KERNEL,
            "ridge": value(0.1),
            "centre": value(0.4),
        },
    ),
    "deblurring to an image": Input(
        lambda observation, centre: Deblurring(
            observation, KERNEL, 0.2, centre
        ),
        {"observation": image(3), "centre": image(4, (1, 1, 6, 8))},
    ),
    "valid blur": Input(
        lambda observation, kernel, ridge, centre: LeastSquares(
            observation, ValidBlur(kernel), ridge, centre=centre
        ),
        {
            "observation": image(3, (2, 1, 4, 6)),
            "kernel": KERNEL,
            "ridge": value(0.1),
            "centre": value(0.4),
        },
    ),
    "inpainting": Input(
        lambda observation, mask, ridge: LeastSquares(
            observation, Inpainting(mask), ridge, centre=0.5
        ),
        {
            "observation": image(3),
            "mask": 0.2 + image(5, (1, 6, 8)),
            "ridge": value(0.1),
        },
    ),
    "super-resolution": Input(
        lambda observation, ridge: LeastSquares(
            observation, SuperResolution(2), ridge
        ),
        {"observation": image(3, (2, 1, 3, 4)), "ridge": value(0.1)},
    ),
    "masked": Input(
        lambda observation, ridge: MaskedDenoising(
            observation, _pixels(6), ridge
        ),
        {"observation": image(3), "ridge": value(0.1)},
    ),
    "a user's module": Input(
        lambda observation, taps: LeastSquares(
            observation, LearnedBlur(taps), 0.2, norm=2.0
        ),
        {
            "observation": image(3, (2, 1, 6, 6)),
            "taps": torch.tensor([0.2, 0.5, 0.4], dtype=DOUBLE),
        },
    ),
    "a user's closure": Input(
        lambda observation, gains: LeastSquares(
            observation, Closed(gains), 0.2, norm=2.0
        ),
        {"observation": image(3), "gains": 0.5 + image(5, (6, 8))},
    ),
}
