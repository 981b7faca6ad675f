"""Does it pay to let certificates choose the tolerances? Operator applications
to the same training loss, method by method.

python -m experiments.studies.compare_descents [--json FILE] [--out FOLDER]

Every method starts at the same point. Which loss an iterate really has is
computed afterwards, to high accuracy, for all methods alike: nobody is believed
on its own word.
"""

from __future__ import annotations

from dataclasses import asdict

from torch import Tensor

from experiments.studies.compare_descents.controls import (
    DescentCheckpoint,
    WatchedDescent,
)
from experiments.studies.compare_descents.figure import descents
from experiments.studies.compare_descents.problems import (
    DescentProblem,
    methods,
    problems,
)
from experiments.studies.compare_descents.table import show
from experiments.studies.compare_descents.targets import (
    DescentCurve,
    DescentPoint,
    levels,
)
from experiments.studies.shared.command import (
    Places,
    Progress,
    add_folder,
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
    THREADS,
    Parser,
    odd,
    positive,
    whole,
)
from piggyback.problems.pair import Accuracy
from piggyback.training.bilevel import BilevelOracle, BilevelSettings

EXACT = Accuracy(lower=3e-5, adjoint=2e-2)
"""Of the solves that find out which loss an iterate really has."""


class Judge:
    """True losses, by solves whose certified radius is kept: ``radius`` is the
    largest so far."""

    def __init__(self, problem: DescentProblem) -> None:
        settings = BilevelSettings(accuracy=EXACT)
        self.oracle = BilevelOracle(
            problem.regularizer(), problem.samples, settings
        )
        self.radius = 0.0

    def loss(self, parameters: Tensor) -> float:
        """Mean over the samples, within ``radius``."""
        evaluation = self.oracle.evaluate(parameters, 1.0)
        self.radius = max(self.radius, evaluation.value_error)
        return evaluation.value


def watch(
    control: WatchedDescent, budget: float
) -> tuple[list[DescentCheckpoint], bool]:
    """The start and all checkpoints within ``budget`` applications per image,
    and whether the method ended by itself."""
    seen: list[DescentCheckpoint] = []
    for checkpoint in control.checkpoints():
        # a start that costs more than the budget is still a point
        if seen and checkpoint.applications > budget:
            return seen, False
        seen.append(checkpoint)
    return seen, True


def compare(
    problem: DescentProblem, budget: float, bar: Progress
) -> tuple[list[DescentCurve], float]:
    """The curves of all methods, and the certified radius of the losses in
    them."""
    judge = Judge(problem)
    curves = []
    for method, control in methods(problem).items():
        bar.now(f"{problem.name}: {method}")
        checkpoints, exhausted = watch(control, budget)
        points = [
            DescentPoint(c.applications, c.claimed, judge.loss(c.parameters))
            for c in checkpoints
        ]
        curves.append(DescentCurve(problem.name, method, points, exhausted))
        bar.done()
    return curves, judge.radius


def build_parser() -> Parser:
    """The command line."""
    parser = command_line(
        "compare_descents",
        "Operator applications to the same training loss.",
    )
    add_json(parser, "curves and costs")
    add_folder(parser, "runs/descents")
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
    chosen = problems(options.side, options.filters, options.size)
    curves: list[DescentCurve] = []
    radii: dict[str, float] = {}
    units = sum(len(methods(problem)) for problem in chosen)
    places = Places()
    file = places.json(options.json, ("levels", "curves", "certified"))
    (drawing,) = places.figures(options.out, "descents.png")
    with progress(units) as bar:
        for problem in chosen:
            own, radius = compare(problem, options.budget, bar)
            curves += own
            radii[problem.name] = radius
    by_problem = [
        [curve for curve in curves if curve.problem == problem.name]
        for problem in chosen
    ]
    found = [level for group in by_problem for level in levels(group)]
    rows = [asdict(curve) for curve in curves]
    # before the drawing: figures can be made again, runs cost minutes
    file.write_json(
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
