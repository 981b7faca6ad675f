"""The filter bank against every way to compute it: one part of
``experiments.studies.benchmark``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rich.console import Console

from experiments.studies.shared.tables import new_table
from regularizers.filter_bank.boundaries import Valid
from regularizers.filter_bank.convolution import ConvolutionBank
from regularizers.filter_bank.measuring import Job, kernel_jobs, median_seconds


@dataclass(frozen=True)
class KernelCase:
    """A bank of ``filters`` filters of ``size`` x ``size`` on ``batch`` grey
    images of ``side`` x ``side``."""

    batch: int
    side: int
    filters: int
    size: int


CASES = (
    KernelCase(8, 64, 24, 7),
    KernelCase(1, 64, 24, 7),
    KernelCase(8, 48, 48, 7),
    KernelCase(1, 256, 48, 7),
    KernelCase(8, 64, 24, 3),
    KernelCase(4, 64, 32, 11),
)


@dataclass(frozen=True)
class KernelTimes:
    """Median milliseconds. ``bank``: ``K`` then ``K^T`` as the bank does it;
    ``best``: fastest forward plus fastest adjoint."""

    case: KernelCase
    forward: dict[str, float]
    adjoint: dict[str, float]
    bank: float
    best: float
    ratio: float


def time_kernels(
    case: KernelCase, device: torch.device, repeats: int
) -> KernelTimes:
    """All kernels and the bank, interleaved so that a slow moment of the
    machine hits all alike."""
    generator = torch.Generator().manual_seed(0)
    filters = torch.randn(
        case.filters, 1, case.size, case.size, generator=generator
    ).to(device)
    image = torch.randn(
        case.batch, 1, case.side, case.side, generator=generator
    ).to(device)
    bank = ConvolutionBank(filters, Valid())
    forward, adjoint = kernel_jobs(filters, image)
    jobs: dict[str, Job] = {"bank": lambda: bank.adjoint(bank.forward(image))}
    seconds = median_seconds(jobs | forward | adjoint, repeats, device)
    ahead = {name: 1e3 * seconds[name] for name in forward}
    back = {name: 1e3 * seconds[name] for name in adjoint}
    whole = 1e3 * seconds["bank"]
    # the fastest of each, which no bank may be able to combine
    best = min(ahead.values()) + min(back.values())
    return KernelTimes(case, ahead, back, whole, best, whole / best)


def show(results: Sequence[KernelTimes], console: Console) -> None:
    """A table on the terminal."""
    table = new_table(
        "K and Kᵀ of the filter bank",
        (
            "images",
            "filters",
            "fastest K",
            "fastest Kᵀ",
            "bank ms",
            "best ms",
            "bank / best",
        ),
        4,
    )
    for result in results:
        case = result.case
        ahead = min(result.forward, key=result.forward.__getitem__)
        back = min(result.adjoint, key=result.adjoint.__getitem__)
        table.add_row(
            f"{case.batch} x {case.side}²",
            f"{case.filters} x {case.size}²",
            f"{ahead} {result.forward[ahead]:.2f}",
            f"{back} {result.adjoint[back]:.2f}",
            f"{result.bank:.2f}",
            f"{result.best:.2f}",
            f"{result.ratio:.2f}",
        )
    console.print(table)
