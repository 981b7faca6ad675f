"""Side-by-side timings of one run: the filter bank against every way to compute it.

python -m experiments.benchmark [--json FILE]
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table

from experiments.atomic import write_in_one_piece
from experiments.errors import one_line_errors
from experiments.run_folder import json_text
from experiments.runtime import choose_device, prepare
from regularizers.boundaries import Valid
from regularizers.convolution import ConvolutionBank
from regularizers.kernels import ADJOINT_KERNELS, FORWARD_KERNELS


@dataclass(frozen=True)
class Case:
    """A bank of ``filters`` filters of ``size`` x ``size`` on ``batch`` grey images of ``side`` x ``side``."""

    batch: int
    side: int
    filters: int
    size: int


CASES = (
    Case(8, 64, 24, 7),
    Case(1, 64, 24, 7),
    Case(8, 48, 48, 7),
    Case(1, 256, 48, 7),
    Case(8, 64, 24, 3),
    Case(4, 64, 32, 11),
)


@dataclass(frozen=True)
class KernelTimes:
    """Median milliseconds.  ``bank``: ``K`` then ``K^T`` as the bank does it; ``best``: fastest forward plus fastest adjoint."""

    case: Case
    forward: dict[str, float]
    adjoint: dict[str, float]
    bank: float
    best: float
    ratio: float


def time_kernels(case: Case, device: torch.device, repeats: int) -> KernelTimes:
    """All kernels and the bank, interleaved so that a slow moment of the machine hits all alike."""
    generator = torch.Generator().manual_seed(0)
    filters = torch.randn(case.filters, 1, case.size, case.size, generator=generator).to(device)
    image = torch.randn(case.batch, 1, case.side, case.side, generator=generator).to(device)
    bank = ConvolutionBank(filters, Valid())
    coefficients = bank.forward(image)
    forward = {kernel.__name__: kernel(filters) for kernel in FORWARD_KERNELS}
    adjoint = {kernel.__name__: kernel(filters) for kernel in ADJOINT_KERNELS}
    jobs: dict[str, Callable[[], torch.Tensor]] = {"bank": lambda: bank.adjoint(bank.forward(image))}
    jobs |= {name: (lambda kernel=kernel: kernel(image)) for name, kernel in forward.items()}
    jobs |= {name: (lambda kernel=kernel: kernel(coefficients)) for name, kernel in adjoint.items()}
    medians = interleaved(jobs, repeats, device)
    ahead, back = {name: medians[name] for name in forward}, {name: medians[name] for name in adjoint}
    best = min(ahead.values()) + min(back.values())
    return KernelTimes(case, ahead, back, medians["bank"], best, medians["bank"] / best)


def interleaved(jobs: dict[str, Callable[[], torch.Tensor]], repeats: int, device: torch.device) -> dict[str, float]:
    """Median milliseconds of each job over rounds that run every job once."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for attempt in range(repeats + 2):
        for name, job in jobs.items():
            begin = time.perf_counter()
            job()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if attempt >= 2:
                times[name].append(1e3 * (time.perf_counter() - begin))
    return {name: statistics.median(values) for name, values in times.items()}


def show(results: Sequence[KernelTimes]) -> None:
    """A table on the terminal."""
    table = Table("images", "filters", "fastest K", "fastest Kᵀ", "bank ms", "best ms", "bank / best")
    for result in results:
        case = result.case
        ahead, back = (
            min(result.forward, key=result.forward.__getitem__),
            min(result.adjoint, key=result.adjoint.__getitem__),
        )
        table.add_row(
            f"{case.batch} x {case.side}²", f"{case.filters} x {case.size}²", f"{ahead} {result.forward[ahead]:.2f}",
            f"{back} {result.adjoint[back]:.2f}", f"{result.bank:.2f}", f"{result.best:.2f}", f"{result.ratio:.2f}",
        )  # fmt: skip
    Console().print(table)


def build_parser() -> ArgumentParser:
    """The command line."""
    parser = ArgumentParser(prog="python -m experiments.benchmark", description="Side-by-side timings of one run.")
    parser.add_argument("--json", type=Path | None, help="write the figures to this file")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=["cpu", "cuda", "auto"], default="auto")
    return parser


@one_line_errors()
def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    options = build_parser().parse_args(arguments)
    prepare(options.threads)
    device = choose_device(options.device)
    results = [time_kernels(case, device, options.repeats) for case in CASES]
    show(results)
    if options.json is not None:
        content = {"kernels": [asdict(result) for result in results]}
        write_in_one_piece(options.json, json_text(json.loads(json.dumps(content))).encode())


if __name__ == "__main__":
    main()
