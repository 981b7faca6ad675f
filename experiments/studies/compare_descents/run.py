"""Does it pay to let certificates choose the tolerances? Operator applications
to the same training loss, method by method.

python -m experiments.studies.compare_descents [--json FILE] [--out FOLDER]

Every method starts at the same point. Which loss an iterate really has is
computed afterwards, to high accuracy, for all methods alike: nobody is believed
on its own word.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor

from experiments.studies.compare_descents.controls import (
    WORST_CASE,
    Adaptive,
    Checkpoint,
    Control,
    FixedSteepest,
    FixedTolerance,
    Maid,
    PlainLevel,
)
from experiments.studies.compare_descents.figure import descents
from experiments.studies.shared.instances import (
    NOISE,
    photograph_patches,
    scaled,
    starting_regularizer,
    with_potential,
)
from piggyback.app.console.command import command
from piggyback.app.console.progress import progress_bar
from piggyback.app.console.runtime import prepare
from piggyback.app.console.terminal import Terminal
from piggyback.app.files.outputs import Outputs
from piggyback.app.images.sources import add_noise
from piggyback.app.options.parser import (
    FILTERS,
    SIDE,
    THREADS,
    Parser,
    odd,
    path,
    positive,
    whole,
)
from piggyback.problems.pair import Accuracy
from piggyback.training.bilevel import BilevelOracle, BilevelSettings, Samples
from regularizers.linear import LinearRegularizer

OURS, MAID, HINDSIGHT = "adaptive", "MAID", "our steps, fixed 1e-2 / 1e-1"
FIXED = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
"""RMS error of ``x`` over the noise level, and relative residual of the
adjoint."""
LITERATURE = (MAID, *(f"fixed {tolerance:.0e}" for tolerance in FIXED))
"""Steepest descent with the line search of the literature; the other methods
take our quasi-Newton steps in our metric."""
REMAINING = (0.5, 0.25, 0.1, 0.05, 0.02)
"""Target losses: what is left of the way from the start to the best loss that
any method reached."""
ILL_SMOOTHING, ILL_WEIGHT = 0.001, 2.0
"""Smoothing, in grey values, and factor of the weights of the ill-conditioned
problem."""
EXACT = Accuracy(lower=3e-5, adjoint=2e-2)


@dataclass(frozen=True)
class Problem:
    """A regularizer to start from (a fresh one per method) and what it is
    trained on."""

    name: str
    regularizer: Callable[[], LinearRegularizer]
    samples: Samples


@dataclass(frozen=True)
class Point:
    """An accepted iterate: applications per image so far, the loss the method
    ``claimed``, the ``loss`` it has."""

    applications: float
    claimed: float
    loss: float


@dataclass(frozen=True)
class Curve:
    """All accepted iterates of one method on one problem; ``exhausted``: it
    ended before the budget did."""

    problem: str
    method: str
    points: list[Point]
    exhausted: bool

    def cost(self, target: float) -> float:
        """Applications per image of the first iterate whose true loss is at
        most ``target`` (infinite: none)."""
        return next(
            (
                point.applications
                for point in self.points
                if point.loss <= target
            ),
            math.inf,
        )


def problems(side: int, filters: int, size: int) -> list[Problem]:
    """One image, eight images, and one image with sharp potentials of double
    weight."""

    def start() -> LinearRegularizer:
        return starting_regularizer(filters, size, 1)

    def sharp() -> LinearRegularizer:
        return scaled(
            with_potential(start(), "charbonnier", ILL_SMOOTHING), ILL_WEIGHT
        )

    one, eight = samples(1, side), samples(8, side)
    return [
        Problem("1 image", start, one),
        Problem("8 images", start, eight),
        Problem("ill-conditioned", sharp, one),
    ]


def samples(count: int, side: int) -> Samples:
    """Seeded noisy patches of the embedded photographs."""
    clean = photograph_patches(count, side, 1)
    return Samples(
        clean, add_noise(clean, NOISE, torch.Generator().manual_seed(5))
    )


def methods(problem: Problem) -> dict[str, Control]:
    """Everything that is compared, each with a regularizer of its own."""

    def level() -> PlainLevel:
        return PlainLevel(problem.regularizer(), problem.samples)

    def ours_fixed(lower: float, adjoint: float) -> Control:
        return FixedTolerance(
            level(),
            Accuracy(lower * NOISE, adjoint),
            problem.regularizer().metric(),
        )

    chosen: dict[str, Control] = {
        OURS: Adaptive(
            problem.regularizer(), problem.samples, BilevelSettings()
        ),
        "worst-case bounds": Adaptive(
            problem.regularizer(), problem.samples, WORST_CASE
        ),
        MAID: Maid(level()),
    }
    for tolerance in FIXED:
        chosen[f"fixed {tolerance:.0e}"] = FixedSteepest(
            level(), Accuracy(tolerance * NOISE, tolerance)
        )
    for tolerance in FIXED:
        chosen[f"our steps, fixed {tolerance:.0e}"] = ours_fixed(
            tolerance, tolerance
        )
    chosen[HINDSIGHT] = ours_fixed(1e-2, 1e-1)
    return chosen


class Judge:
    """True losses, by solves whose certified radius is kept: ``radius`` is the
    largest so far."""

    def __init__(self, problem: Problem) -> None:
        settings = BilevelSettings(accuracy=EXACT)
        self.oracle = BilevelOracle(
            problem.regularizer(), problem.samples, settings
        )
        self.radius = 0.0

    def loss(self, parameters: Tensor) -> float:
        evaluation = self.oracle.evaluate(parameters, 1.0)
        self.radius = max(self.radius, evaluation.value_error)
        return evaluation.value


def watch(control: Control, budget: float) -> tuple[list[Checkpoint], bool]:
    """The start and all checkpoints within ``budget`` applications per image,
    and whether the method ended by itself."""
    seen: list[Checkpoint] = []
    for checkpoint in control.checkpoints():
        if seen and checkpoint.applications > budget:
            return seen, False
        seen.append(checkpoint)
    return seen, True


def compare(
    problem: Problem, budget: float, advance: Callable[[str], None]
) -> tuple[list[Curve], float]:
    """The curves of all methods, and the certified radius of the losses in
    them."""
    judge, curves = Judge(problem), []
    for method, control in methods(problem).items():
        advance(f"{problem.name}: {method}")
        checkpoints, exhausted = watch(control, budget)
        points = [
            Point(c.applications, c.claimed, judge.loss(c.parameters))
            for c in checkpoints
        ]
        curves.append(Curve(problem.name, method, points, exhausted))
    return curves, judge.radius


@dataclass(frozen=True)
class Level:
    """Costs of one target loss: of all methods, and ours over the best of
    others.

    ``against_literature``: MAID and the fixed tolerances with its line search;
    ``against_all``: worst-case bounds and fixed tolerances with our own steps
    too; ``against_hindsight``: the pair of tolerances picked knowing all
    results.
    """

    problem: str
    remaining: float
    target: float
    costs: dict[str, float]
    against_literature: float
    against_all: float
    against_hindsight: float


def levels(curves: Sequence[Curve]) -> Iterator[Level]:
    """The targets of one problem."""
    start = curves[0].points[0].loss
    best = min(point.loss for curve in curves for point in curve.points)
    for remaining in REMAINING:
        target = best + remaining * (start - best)
        costs = {curve.method: curve.cost(target) for curve in curves}

        def ratio(
            others: Sequence[str], costs: dict[str, float] = costs
        ) -> float:
            return costs[OURS] / min(costs[method] for method in others)

        known = [method for method in costs if method not in (OURS, HINDSIGHT)]
        yield Level(
            curves[0].problem,
            remaining,
            target,
            costs,
            ratio(LITERATURE),
            ratio(known),
            ratio([HINDSIGHT]),
        )


def show(found: Sequence[Level], console: Console) -> None:
    """One table per problem: methods down, targets across."""
    for problem in dict.fromkeys(level.problem for level in found):
        chosen = [level for level in found if level.problem == problem]
        table = Table(
            "left of the way",
            *(f"{level.remaining:.0%}" for level in chosen),
            box=SIMPLE_HEAD,
            title=f"{problem}: operator applications per image",
            title_justify="left",
        )
        for method in chosen[0].costs:
            table.add_row(
                method, *(_cell(level.costs[method]) for level in chosen)
            )
        table.add_row(
            "adaptive / literature",
            *(_ratio(level.against_literature) for level in chosen),
            style="bold",
        )
        table.add_row(
            "adaptive / all of the above",
            *(_ratio(level.against_all) for level in chosen),
            style="bold",
        )
        table.add_row(
            "adaptive / picked in hindsight",
            *(_ratio(level.against_hindsight) for level in chosen),
        )
        console.print(table)


def _cell(cost: float) -> str:
    return f"{cost:.0f}" if math.isfinite(cost) else "never"


def _ratio(value: float) -> str:
    """``nan``: neither gets there; ``inf``: only the others; 0: only ours."""
    return (
        "neither"
        if math.isnan(value)
        else "others only"
        if math.isinf(value)
        else f"{value:.2f}"
        if value
        else "ours only"
    )


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(
        "python -m experiments.studies.compare_descents",
        "Operator applications to the same training loss.",
    )
    parser.add_argument(
        "--json", type=path, help="write curves and costs to this file"
    )
    parser.add_argument(
        "--out",
        type=path,
        default=Path("runs/descents"),
        help="folder of the figure",
    )
    parser.add_argument(
        "--side",
        type=whole(1, SIDE),
        default=32,
        help="pixels per side of a patch",
    )
    parser.add_argument("--filters", type=whole(1, FILTERS), default=12)
    parser.add_argument(
        "--size", type=odd(), default=5, help="filters of size x size pixels"
    )
    parser.add_argument(
        "--budget",
        type=positive(),
        default=500.0,
        help="operator applications per image and method",
    )
    parser.add_argument("--threads", type=whole(1, THREADS), default=1)
    return parser


@command()
def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    options = build_parser().parse_args(arguments)
    prepare(options.threads)
    chosen, curves, radii = (
        problems(options.side, options.filters, options.size),
        [],
        {},
    )
    units = sum(len(methods(problem)) for problem in chosen)
    outputs = Outputs()
    figures = outputs.json(options.json, ("levels", "curves", "certified"))
    (drawing,) = outputs.figures(options.out, ["descents.png"])
    with progress_bar(Terminal(stderr=True)) as bar:
        task = bar.add_task("", total=units)
        for problem in chosen:
            found, radii[problem.name] = compare(
                problem,
                options.budget,
                lambda label: bar.update(task, description=label, advance=1),
            )
            curves += found
    by_problem = [
        [curve for curve in curves if curve.problem == problem.name]
        for problem in chosen
    ]
    found = [level for group in by_problem for level in levels(group)]
    rows = [asdict(curve) for curve in curves]
    figures.write_json(
        {
            "levels": [asdict(level) for level in found],
            "curves": rows,
            "certified": radii,
        }
    )
    descents(rows, drawing)
    console = Terminal()
    show(found, console)
    console.print(
        f"true losses are certified to {max(radii.values()):.1e}",
        highlight=False,
    )
