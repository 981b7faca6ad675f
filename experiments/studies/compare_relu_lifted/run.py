"""The ReLU-lifted form of a ReLU network against the nested one: time and steps to
the same energy, and conditioning.

python -m experiments.studies.compare_relu_lifted [--json FILE] [--figure FILE]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from experiments.studies.compare_relu_lifted.figure import draw
from experiments.studies.compare_relu_lifted.race import (
    Conditioning,
    RaceInstance,
    RacePoint,
    conditioning,
    contestants,
    pose,
    race,
)
from experiments.studies.compare_relu_lifted.table import (
    show,
    show_conditioning,
)
from experiments.studies.shared.command import (
    Places,
    add_json,
    command_line,
    progress,
)
from piggyback.app.console.command import command
from piggyback.app.console.runtime import prepare
from piggyback.app.console.terminal import Terminal
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

ARCHITECTURES = (
    (8, 4),
    (16, 8),
    (32, 16),
    (8, 4, 4),
    (16, 8, 4),
    (8, 4, 4, 4),
    (16, 8, 4, 4),
)


def compare(instance: RaceInstance, limit: float) -> list[RacePoint]:
    """Everybody's points; with a progress bar."""
    points = []
    entered = list(contestants(instance))
    with progress(len(entered)) as bar:
        for contestant in entered:
            bar.now(f"{contestant.name} {contestant.smoothing:g}")
            points += race(instance, contestant, limit)
            bar.done()
    return points


def study(
    architectures: Sequence[tuple[int, ...]],
    size: int,
    side: int,
    smoothing: float,
    steps: int,
) -> list[Conditioning]:
    """Conditioning against depth and width; with a progress bar."""
    found = []
    with progress(len(architectures)) as bar:
        for widths in architectures:
            bar.now(f"widths {widths}")
            found.append(conditioning(widths, size, side, smoothing, steps))
            bar.done()
    return found


def build_parser() -> Parser:
    """The command line."""
    parser = command_line(
        "compare_relu_lifted",
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
    add_json(parser, "the figures")
    parser.add_argument(
        "--figure", type=path, help="draw the race into this PNG file"
    )
    return parser


@command()
def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    options = build_parser().parse_args(arguments)
    prepare(threads=1)
    places = Places()
    file = places.json(
        options.json,
        ("gap_of_start", "reference_uncertainty", "race", "conditioning"),
    )
    figure = places.figure(options.figure)
    console = Terminal()
    instance = pose(tuple(options.widths), options.size, options.side)
    points = compare(instance, options.limit)
    rows = study(
        ARCHITECTURES,
        options.size,
        options.side,
        options.smoothing,
        options.steps,
    )
    file.write_json(
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
