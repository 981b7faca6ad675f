"""The ReLU-lifted form of a ReLU network against the nested one: time and steps to
the same energy, and conditioning.

python -m experiments.studies.compare_relu_lifted [--json FILE] [--figure FILE]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from experiments.studies.compare_relu_lifted.race import (
    LEVELS,
    Conditioning,
    Instance,
    Point,
    conditioning,
    contestants,
    first_below,
    pose,
    race,
)
from piggyback.app.console.command import command
from piggyback.app.console.progress import progress_bar
from piggyback.app.console.runtime import prepare
from piggyback.app.console.terminal import Terminal
from piggyback.app.files.outputs import Output, Outputs
from piggyback.app.options.parser import (
    FILTERS,
    SIDE,
    STEPS,
    Parser,
    odd,
    path,
    positive,
    whole,
)
from piggyback.app.report.figures import save, tidy

ARCHITECTURES = (
    (8, 4),
    (16, 8),
    (32, 16),
    (8, 4, 4),
    (16, 8, 4),
    (8, 4, 4, 4),
    (16, 8, 4, 4),
)


def compare(instance: Instance, limit: float, console: Console) -> list[Point]:
    """Everybody's points; with a progress bar."""
    points, entered = [], list(contestants(instance))
    with progress_bar(console) as bar:
        task = bar.add_task("", total=len(entered))
        for contestant in entered:
            bar.update(
                task, description=f"{contestant.name} {contestant.smoothing:g}"
            )
            points += race(instance, contestant, limit)
            bar.advance(task)
    return points


def study(
    architectures: Sequence[tuple[int, ...]],
    size: int,
    side: int,
    smoothing: float,
    steps: int,
    console: Console,
) -> list[Conditioning]:
    """Conditioning against depth and width; with a progress bar."""
    found = []
    with progress_bar(console) as bar:
        task = bar.add_task("", total=len(architectures))
        for widths in architectures:
            bar.update(task, description=f"widths {widths}")
            found.append(conditioning(widths, size, side, smoothing, steps))
            bar.advance(task)
    return found


def curves(points: Sequence[Point]) -> dict[tuple[str, float], list[Point]]:
    """Points by method and smoothing."""
    grouped: dict[tuple[str, float], list[Point]] = {}
    for point in points:
        grouped.setdefault((point.method, point.smoothing), []).append(point)
    return grouped


def show(instance: Instance, points: Sequence[Point], console: Console) -> None:
    """One row per method and level, at the smoothing that reached it first
    (chosen knowing the result).

    ``pairs``: operator pairs; ``lowest``: smallest part of the gap that the
    method reached at all.
    """
    table = Table(
        "method",
        "gap left",
        "smoothing",
        "steps",
        "pairs",
        "seconds",
        "lowest",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title=f"nested ReLU energy: {instance.gap:.4g} above the reference at the start; the reference is at most "
        f"{instance.uncertain / instance.gap:.1e} of that above the minimum (certified)",
        title_justify="left",
    )
    grouped = curves(points)
    for method in dict.fromkeys(method for method, _ in grouped):
        own = [curve for (name, _), curve in grouped.items() if name == method]
        lowest = min(point.gap for curve in own for point in curve)
        for level in LEVELS:
            reached = [
                point
                for curve in own
                if (point := first_below(curve, level)) is not None
            ]
            best = min(reached, key=lambda point: point.seconds, default=None)
            cells = ["–"] * 4
            if best is not None:
                cells = [
                    f"{best.smoothing:g}",
                    f"{best.steps}",
                    f"{best.operator_pairs:.0f}",
                    f"{best.seconds:.2f}",
                ]
            table.add_row(
                method if level == LEVELS[0] else "",
                f"{level:g}",
                *cells,
                f"{lowest:.1e}",
            )
    console.print(table)


def show_conditioning(
    rows: Sequence[Conditioning], limit: int, console: Console
) -> None:
    """Depth and width against condition figures and steps."""
    table = Table(
        "widths",
        "condition, block steps",
        "condition, one step",
        "steps, block",
        "steps, one",
        box=SIMPLE_HEAD,
        title="lifted operator: bounds of the condition, PDHG steps to RMS 1e-3",
        title_justify="left",
    )
    for row in rows:
        steps = [
            f"> {limit}" if count is None else f"{count}"
            for count in (row.block_steps, row.uniform_steps)
        ]
        table.add_row(
            ", ".join(map(str, row.widths)),
            f"{row.block_condition:.2g}",
            f"{row.uniform_condition:.2g}",
            *steps,
        )
    console.print(table)


def draw(points: Sequence[Point], path: Path | Output) -> None:
    """Energy gap against seconds, one line per method and smoothing."""
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axis = figure.subplots()
    grouped = curves(points)
    names = list(dict.fromkeys(method for method, _ in grouped))
    for (method, smoothing), curve in grouped.items():
        shades = sorted({s for name, s in grouped if name == method})
        style = ("-", "--", ":")[shades.index(smoothing)]
        label = f"{method}, {smoothing:g}" if smoothing else method
        gaps = [max(point.gap, 1e-7) for point in curve]
        colour = f"C{names.index(method)}"
        axis.plot(
            [point.seconds for point in curve],
            gaps,
            style,
            color=colour,
            linewidth=1.3,
            label=label,
        )
    axis.set(
        xscale="log",
        yscale="log",
        xlabel="seconds, one core",
        ylabel="energy above the reference / at the start",
    )
    tidy(axis)
    axis.legend(
        frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5)
    )
    save(figure, path)


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(
        "python -m experiments.studies.compare_relu_lifted",
        "The ReLU-lifted form of a ReLU network against the nested one, to the "
        "same energy; conditioning by depth.",
    )
    parser.add_argument(
        "--widths",
        type=whole(1, FILTERS),
        nargs="+",
        default=[8, 4],
        help="channels of the hidden layers of the race",
    )
    parser.add_argument(
        "--size", type=odd(), default=5, help="filters of size x size pixels"
    )
    parser.add_argument(
        "--side",
        type=whole(1, SIDE),
        default=24,
        help="pixels per side of the image",
    )
    parser.add_argument(
        "--limit",
        type=positive(),
        default=2.0,
        help="seconds per method and smoothing",
    )
    parser.add_argument(
        "--smoothing",
        type=positive(least=1e-6, most=1e3),
        default=0.05,
        help="of the conditioning study; its ridge is the same",
    )
    parser.add_argument(
        "--steps",
        type=whole(1, STEPS),
        default=1000,
        help="most PDHG steps of the conditioning study",
    )
    parser.add_argument(
        "--json", type=path, help="write the figures to this file"
    )
    parser.add_argument(
        "--figure", type=path, help="draw the race into this PNG file"
    )
    return parser


@command()
def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    options = build_parser().parse_args(arguments)
    prepare(threads=1)
    outputs = Outputs()
    figures = outputs.json(
        options.json,
        ("gap_of_start", "reference_uncertainty", "race", "conditioning"),
    )
    figure = outputs.figure(options.figure)
    progress, console = Terminal(stderr=True), Terminal()
    instance = pose(tuple(options.widths), options.size, options.side)
    points = compare(instance, options.limit, progress)
    rows = study(
        ARCHITECTURES,
        options.size,
        options.side,
        options.smoothing,
        options.steps,
        progress,
    )
    figures.write_json(
        {
            "gap_of_start": instance.gap,
            "reference_uncertainty": instance.uncertain,
            "race": [asdict(point) for point in points],
            "conditioning": [asdict(row) for row in rows],
        }
    )
    if options.figure is not None:
        draw(points, figure)
    show(instance, points, console)
    show_conditioning(rows, options.steps, console)
