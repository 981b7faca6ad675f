"""Side-by-side measurements of one run: convolution kernels, lower-level
solvers, hypergradients of all kinds, growth.

python -m experiments.studies.benchmark [--json FILE]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console

from experiments.studies.benchmark import growth as benchmark_growth
from experiments.studies.benchmark import (
    hypergradients as benchmark_hypergradients,
)
from experiments.studies.benchmark import kernels as benchmark_kernels
from experiments.studies.benchmark import solver_table
from experiments.studies.benchmark import solvers as benchmark_solvers
from experiments.studies.benchmark.steps import step_costs
from experiments.studies.shared.command import (
    Places,
    add_json,
    command_line,
    progress,
)
from experiments.studies.truth_test.ways import has_cone
from piggyback.app.console.command import command
from piggyback.app.console.runtime import Device, choose_device, prepare
from piggyback.app.console.terminal import Terminal
from piggyback.app.errors import UserError
from piggyback.app.options.parser import (
    FILTERS,
    SIDE,
    STEPS,
    THREADS,
    Parser,
    among,
    positive,
    several,
    whole,
)
from piggyback.app.runs.folder import Json

WIDTH = 132
"""Columns that the widest table needs."""
PARTS = ("kernels", "solvers", "hypergradients", "growth")
KEYS = (
    "kernels",
    "solvers",
    "steps",
    "wanted",
    "hypergradients",
    "growth",
    "memory",
)


@dataclass(frozen=True)
class BenchmarkOptions:
    """The parsed command line. Raises ``UserError`` for sizes that cannot be
    used."""

    parts: list[str]
    json: Path | None
    repeats: int
    threads: int
    device: Device
    wanted: float
    solver_side: int
    side: int
    filters: int
    sides: list[int]
    counts: list[int]
    batches: list[int]
    cone_sides: list[int]

    def __post_init__(self) -> None:
        if not 0 < self.wanted < 1:
            raise UserError(
                f"--wanted must lie between 0 and 1, got {self.wanted}"
            )


def build_parser() -> Parser:
    """The command line."""
    parser = command_line(
        "benchmark",
        "Side-by-side measurements of one run.",
    )
    parser.add_argument(
        "--parts",
        type=among(PARTS),
        default=list(PARTS),
        help=f"of {', '.join(PARTS)} (default: all), like [growth]",
    )
    add_json(parser, "the figures")
    parser.add_argument(
        "--repeats",
        type=whole(1, STEPS),
        default=5,
        help="timings are medians over so many",
    )
    parser.add_argument("--threads", type=whole(1, THREADS), default=1)
    parser.add_argument(
        "--device",
        choices=["cpu", "cuda", "auto"],
        default="auto",
        help="of kernels, steps and growth",
    )
    parser.add_argument(
        "--wanted",
        type=positive(),
        default=0.01,
        help="relative error that a hypergradient must not exceed",
    )
    parser.add_argument(
        "--solver-side",
        type=whole(8, SIDE),
        default=64,
        help="pixels per side in the contest of solvers",
    )
    parser.add_argument(
        "--side",
        type=whole(8, SIDE),
        default=48,
        help="pixels per side in the contest of hypergradients",
    )
    parser.add_argument(
        "--filters",
        type=whole(1, FILTERS),
        default=24,
        help="7x7 filters there, and where growth starts",
    )
    parser.add_argument(
        "--sides",
        type=several(whole(16, SIDE)),
        default=[32, 64, 128],
        help="image sides of the growth part",
    )
    parser.add_argument(
        "--counts",
        type=several(whole(1, FILTERS)),
        default=[8, 48],
        help="other numbers of filters there",
    )
    parser.add_argument(
        "--batches",
        type=several(whole(1, FILTERS)),
        default=[4, 16],
        help="other batch sizes there",
    )
    parser.add_argument(
        "--cone-sides",
        type=several(whole(4, 64)),
        default=[8, 12],
        help="image sides for cvxpylayers, 3x3 filters",
    )
    return parser


@command()
def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    options = BenchmarkOptions(**vars(build_parser().parse_args(arguments)))
    prepare(options.threads)
    device = choose_device(options.device)
    console = Terminal()
    # also where the output goes to a file
    console.width = max(console.width, WIDTH)
    file = Places().json(options.json, KEYS)
    content: dict[str, Json] = {}
    with progress(None) as bar:
        measure = {
            "kernels": kernels,
            "solvers": solvers,
            "hypergradients": hypergradients,
            "growth": growth,
        }
        for part in options.parts:
            content |= measure[part](
                options,
                device,
                console,
                bar.now,
            )
            file.write_json(content)  # the parts so far: each takes minutes


def kernels(
    options: BenchmarkOptions,
    device: torch.device,
    console: Console,
    note: Callable[[str], None],
) -> dict[str, Json]:
    """The convolution kernels."""
    note("convolution kernels")
    results = [
        benchmark_kernels.time_kernels(case, device, 3 * options.repeats)
        for case in benchmark_kernels.CASES
    ]
    benchmark_kernels.show(results, console)
    return {"kernels": [asdict(result) for result in results]}


def solvers(
    options: BenchmarkOptions,
    device: torch.device,
    console: Console,
    note: Callable[[str], None],
) -> dict[str, Json]:
    """The lower-level solvers; their contest on the CPU, where SciPy's are."""
    found = benchmark_solvers.contest(options.solver_side, note)
    note("steps")
    steps = step_costs(options.repeats, device)
    solver_table.show(found, steps, console)
    return {
        "solvers": [asdict(one) for one in found],
        "steps": [asdict(one) for one in steps],
    }


def hypergradients(
    options: BenchmarkOptions,
    device: torch.device,
    console: Console,
    note: Callable[[str], None],
) -> dict[str, Json]:
    """The contest, on the CPU: its reference is computed there."""
    large = benchmark_hypergradients.image_instance(
        options.side, options.filters, 7
    )
    found = benchmark_hypergradients.contest(
        large, options.wanted, options.repeats, False, note
    )
    cone = has_cone()
    for small in (
        benchmark_hypergradients.cone_instances(options.cone_sides, 3)
        if cone
        else ()
    ):
        found += benchmark_hypergradients.contest(
            small, options.wanted, options.repeats, True, note
        )
    benchmark_hypergradients.show(found, console)
    if not cone:
        console.print(
            "cvxpylayers is not installed: left out (pip install 'piggyback-bilevel[oracle]')"
        )
    return {
        "wanted": options.wanted,
        "hypergradients": [asdict(one) for one in found],
    }


def growth(
    options: BenchmarkOptions,
    device: torch.device,
    console: Console,
    note: Callable[[str], None],
) -> dict[str, Json]:
    """Growth with sides, filters and batch; memory at two tolerances."""
    chosen = list(
        benchmark_growth.shapes(
            options.sides, options.filters, options.counts, options.batches
        )
    )
    found, memory = benchmark_growth.grow(chosen, options.repeats, device, note)
    benchmark_growth.show(found, memory, console)
    return {
        "growth": [asdict(one) for one in found],
        "memory": [asdict(one) for one in memory],
    }
