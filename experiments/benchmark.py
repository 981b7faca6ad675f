"""Side-by-side measurements of one run: convolution kernels, lower-level solvers, hypergradients of all kinds, growth.

python -m experiments.benchmark [--json FILE]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jsonargparse import ArgumentParser
from rich.console import Console

from experiments import benchmark_growth, benchmark_hypergradients, benchmark_kernels, benchmark_solvers
from experiments.errors import UserError, one_line_errors, require_positive
from experiments.progress import progress_bar
from experiments.run_folder import Json, write_json
from experiments.runtime import Device, choose_device, prepare
from experiments.truth_test import has_cone

WIDTH = 132
"""Columns that the widest table needs."""
PARTS = ("kernels", "solvers", "hypergradients", "growth")


@dataclass(frozen=True)
class Options:
    """The parsed command line.  Raises ``UserError`` for sizes that cannot be used."""

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
        require_positive(repeats=self.repeats, threads=self.threads, side=self.side, filters=self.filters)
        for part in self.parts:
            if part not in PARTS:
                raise UserError(f"--parts: unknown part {part!r}; choose among {', '.join(PARTS)}")
        for name, values, least in (
            ("sides", self.sides, 16), ("solver-side", [self.solver_side], 8),
            ("counts", self.counts, 1), ("batches", self.batches, 1),
        ):  # fmt: skip
            if not values or min(values) < least:
                raise UserError(f"--{name} must list numbers of at least {least}, got {values}")
        if not 0 < self.wanted < 1:
            raise UserError(f"--wanted must lie between 0 and 1, got {self.wanted}")


def build_parser() -> ArgumentParser:
    """The command line."""
    parser = ArgumentParser(prog="python -m experiments.benchmark", description="Side-by-side measurements of one run.")
    parser.add_argument("--parts", type=list[str], default=list(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--json", type=Path | None, help="write the figures to this file")
    parser.add_argument("--repeats", type=int, default=5, help="timings are medians over so many")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--device", choices=["cpu", "cuda", "auto"], default="auto", help="of kernels, steps and growth"
    )
    parser.add_argument(
        "--wanted", type=float, default=0.01, help="relative error that a hypergradient must not exceed"
    )
    parser.add_argument("--solver-side", type=int, default=64, help="pixels per side in the contest of solvers")
    parser.add_argument("--side", type=int, default=48, help="pixels per side in the contest of hypergradients")
    parser.add_argument("--filters", type=int, default=24, help="7x7 filters there, and where growth starts")
    parser.add_argument("--sides", type=list[int], default=[32, 64, 128], help="image sides of the growth part")
    parser.add_argument("--counts", type=list[int], default=[8, 48], help="other numbers of filters there")
    parser.add_argument("--batches", type=list[int], default=[4, 16], help="other batch sizes there")
    parser.add_argument(
        "--cone-sides", type=list[int], default=[8, 12], help="image sides for cvxpylayers, 3x3 filters"
    )
    return parser


@one_line_errors()
def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    options = Options(**build_parser().parse_args(arguments).as_dict())
    prepare(options.threads)
    device, console = choose_device(options.device), Console()
    console.width = max(console.width, WIDTH)  # also where the output goes to a file
    content: dict[str, Json] = {}
    with progress_bar(Console(stderr=True)) as bar:
        task = bar.add_task("", total=None)
        measure = {"kernels": kernels, "solvers": solvers, "hypergradients": hypergradients, "growth": growth}
        for part in options.parts:
            content |= measure[part](options, device, console, lambda text: bar.update(task, description=text))
    if options.json is not None:
        write_json(options.json, content)


def kernels(options: Options, device: torch.device, console: Console, note: Callable[[str], None]) -> dict[str, Json]:
    """The convolution kernels."""
    note("convolution kernels")
    results = [benchmark_kernels.time_kernels(case, device, 3 * options.repeats) for case in benchmark_kernels.CASES]
    benchmark_kernels.show(results, console)
    return {"kernels": [asdict(result) for result in results]}


def solvers(options: Options, device: torch.device, console: Console, note: Callable[[str], None]) -> dict[str, Json]:
    """The lower-level solvers; their contest on the CPU, where SciPy's are."""
    found = benchmark_solvers.contest(options.solver_side, note)
    note("steps")
    steps = benchmark_solvers.step_costs(options.repeats, device)
    benchmark_solvers.show(found, steps, console)
    return {"solvers": [asdict(one) for one in found], "steps": [asdict(one) for one in steps]}


def hypergradients(
    options: Options, device: torch.device, console: Console, note: Callable[[str], None]
) -> dict[str, Json]:
    """The contest, on the CPU: its reference is computed there."""
    large = benchmark_hypergradients.image_instance(options.side, options.filters, 7)
    found = benchmark_hypergradients.contest(large, options.wanted, options.repeats, False, note)
    cone = has_cone()
    for small in benchmark_hypergradients.cone_instances(options.cone_sides, 3) if cone else ():
        found += benchmark_hypergradients.contest(small, options.wanted, options.repeats, True, note)
    benchmark_hypergradients.show(found, console)
    if not cone:
        console.print("cvxpylayers is not installed: left out (pip install 'piggyback-bilevel\\[oracle]')")
    return {"wanted": options.wanted, "hypergradients": [asdict(one) for one in found]}


def growth(options: Options, device: torch.device, console: Console, note: Callable[[str], None]) -> dict[str, Json]:
    """Growth with sides, filters and batch; memory at two tolerances."""
    chosen = list(benchmark_growth.shapes(options.sides, options.filters, options.counts, options.batches))
    found, memory = benchmark_growth.grow(chosen, options.repeats, device, note)
    benchmark_growth.show(found, memory, console)
    return {"growth": [asdict(one) for one in found], "memory": [asdict(one) for one in memory]}


if __name__ == "__main__":
    main()
