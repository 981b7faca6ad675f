"""Tensors on different devices. PyTorch's ``meta`` device stands for the other
one: no card is needed, and no number is read."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from piggyback import (
    Accuracy,
    BilevelOracle,
    Charbonnier,
    Denoising,
    ImplicitCG,
    Piggyback,
    Potential,
    Regularizer,
    Samples,
    SquaredError,
    WarmStart,
    hypergradient,
)
from piggyback.hypergradients.literature.unrolled import Unrolled
from piggyback.solvers.lower import certified_distance, solve_lower
from piggyback.solvers.nonlinear_cg import NonlinearCG
from regularizers import (
    AdaptiveRegularizer,
    LinearConfig,
    LinearRegularizer,
    ModuleRegularizer,
    NetworkConfig,
    NetworkRegularizer,
)
from tests.reliability.base import Refusal

SMALL = LinearConfig(filters=3, size=3)
ACCURACY = Accuracy(1e-2, 1e-1)


def images(device: str = "cpu") -> Tensor:
    return torch.full((2, 1, 12, 12), 0.5, device=device)


def linear(device: str = "cpu") -> LinearRegularizer:
    return LinearRegularizer(SMALL, torch.Generator().manual_seed(0)).to(device)


def solved(regularizer: Regularizer) -> object:
    return solve_lower(
        regularizer.problem(Denoising(images())),
        NonlinearCG(),
        torch.full((2,), 0.1),
    )


def bank_elsewhere(folder: Path) -> object:
    return solved(linear("meta"))


def adaptive_elsewhere(folder: Path) -> object:
    return solved(AdaptiveRegularizer(SMALL).to("meta"))


def network_elsewhere(folder: Path) -> object:
    return solved(
        NetworkRegularizer(NetworkConfig(widths=(4, 2), size=3)).to("meta")
    )


class Energy(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight.square() * x.flatten(1).square().sum(1)


def module_elsewhere(folder: Path) -> object:
    return solved(ModuleRegularizer(Energy().to("meta")))


def start_elsewhere(folder: Path) -> object:
    return solve_lower(
        linear().problem(Denoising(images())),
        NonlinearCG(),
        torch.full((2,), 0.1),
        start=images("meta"),
    )


def radius_elsewhere(folder: Path) -> object:
    return solve_lower(
        linear().problem(Denoising(images())),
        NonlinearCG(),
        torch.full((2,), 0.1, device="meta"),
    )


def truth_elsewhere(folder: Path) -> object:
    return hypergradient(
        ImplicitCG(),
        linear(),
        Denoising(images()),
        SquaredError(images("meta")),
        ACCURACY,
    )


def truth_elsewhere_for_piggyback(folder: Path) -> object:
    return hypergradient(
        Piggyback(),
        linear(),
        Denoising(images()),
        SquaredError(images("meta")),
        ACCURACY,
    )


def truth_elsewhere_for_unrolling(folder: Path) -> object:
    return hypergradient(
        Unrolled(),
        linear(),
        Denoising(images()),
        SquaredError(images("meta")),
        ACCURACY,
    )


def warm_start_elsewhere(folder: Path) -> object:
    start = WarmStart(images("meta"), images("meta"))
    return hypergradient(
        Piggyback(),
        linear(),
        Denoising(images()),
        SquaredError(images()),
        ACCURACY,
        start,
    )


def warm_adjoint_elsewhere(folder: Path) -> object:
    start = WarmStart(images(), images("meta"))
    return hypergradient(
        ImplicitCG(),
        linear(),
        Denoising(images()),
        SquaredError(images()),
        ACCURACY,
        start,
    )


def samples_on_two_devices(folder: Path) -> object:
    return Samples(images(), images("meta"))


def oracle_elsewhere(folder: Path) -> object:
    oracle = BilevelOracle(linear("meta"), Samples(images(), images()))
    return oracle.estimate(oracle.parameters(), 1.0)


def potential_on_two_devices(folder: Path) -> object:
    return Potential(Charbonnier(), torch.ones(3), torch.ones(3, device="meta"))


def shift_elsewhere(folder: Path) -> object:
    return Potential(
        Charbonnier(),
        torch.ones(3),
        torch.ones(3),
        torch.zeros(3, device="meta"),
    )


def certified_elsewhere(folder: Path) -> object:
    return certified_distance(
        linear().problem(Denoising(images())), images("meta")
    )


REFUSALS: list[Refusal] = [
    Refusal(
        "a filter bank on another device than the data",
        bank_elsewhere,
        "data: on cpu, but the regularizer is on meta",
    ),
    Refusal(
        "adaptive weights on another device than the data",
        adaptive_elsewhere,
        "image is torch.float32 on cpu",
    ),
    Refusal(
        "a network on another device than the data",
        network_elsewhere,
        "data: on cpu, but the regularizer is on meta",
    ),
    Refusal(
        "a module's energy on another device than the data",
        module_elsewhere,
        "regularizer is on meta",
    ),
    Refusal(
        "a solve that starts from another device",
        start_elsewhere,
        "start: on meta, but the data are on cpu",
    ),
    Refusal(
        "tolerances on another device",
        radius_elsewhere,
        "radius: on meta, but the data are on cpu",
    ),
    Refusal(
        "truth on another device, implicit differentiation",
        truth_elsewhere,
        "truth: on meta",
    ),
    Refusal(
        "truth on another device, piggyback",
        truth_elsewhere_for_piggyback,
        "truth: on meta",
    ),
    Refusal(
        "truth on another device, unrolling",
        truth_elsewhere_for_unrolling,
        "truth: on meta",
    ),
    Refusal(
        "a warm start on another device", warm_start_elsewhere, "start: on meta"
    ),
    Refusal(
        "the adjoint of a warm start on another device",
        warm_adjoint_elsewhere,
        "adjoint of the start: on meta",
    ),
    Refusal(
        "clean and degraded images on two devices",
        samples_on_two_devices,
        "clean images: on cpu",
    ),
    Refusal(
        "a training oracle whose regularizer is elsewhere",
        oracle_elsewhere,
        "the regularizer is on meta",
    ),
    Refusal(
        "weights and smoothings on two devices",
        potential_on_two_devices,
        "smoothing: on meta",
    ),
    Refusal(
        "a shift on another device than the weights",
        shift_elsewhere,
        "shift: on meta",
    ),
    Refusal(
        "a distance asked for an image elsewhere",
        certified_elsewhere,
        "image is torch.float64 on meta",
    ),
]
