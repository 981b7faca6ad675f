"""Every hypergradient method on the same three problems: error against the
exact gradient, certificate, cost, time, memory.

python -m experiments.studies.compare_methods [--json FILE] [--out DIR]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from experiments.studies.compare_methods import figure as method_figures
from experiments.studies.compare_methods.comparison import (
    Method,
    MethodProblem,
    MethodRow,
    MethodTrainingRow,
    measure,
    methods,
    settings,
    train,
)
from experiments.studies.compare_methods.table import show
from experiments.studies.shared.command import (
    Places,
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
    STEPS,
    Parser,
    odd,
    positive,
    tolerance,
    whole,
)
from piggyback.app.runs.folder import Json
from piggyback.problems.pair import Accuracy

DIGITS = 178
"""Half of the examples of the two digits that scikit-learn ships."""


def compare(
    chosen: Sequence[MethodProblem],
    asked: dict[str, Method],
    accuracy: Accuracy,
    training: Accuracy,
    steps: int,
    rate: float,
) -> tuple[list[MethodRow], list[MethodTrainingRow]]:
    """All methods on all problems, and a training with each (at the accuracy
    ``training``); with a progress bar."""
    rows = []
    curves = []
    with progress(2 * len(chosen) * len(asked)) as bar:
        for setting in chosen:
            # errors first: a method that fails at once fails before its
            # training
            for name, method in asked.items():
                bar.now(f"{setting.name}: {name}")
                rows.append(measure(setting, name, method, accuracy))
                bar.done()
                curves += train(setting, name, method, training, steps, rate)
                bar.done()
    return rows, curves


def report(
    rows: Sequence[MethodRow], curves: Sequence[MethodTrainingRow]
) -> dict[str, Json]:
    """What is written: the rows, the trainings, and which rows come from solves
    that did not reach their tolerance."""
    columns = [
        {
            name: value
            for name, value in asdict(row).items()
            if name != "converged"
        }
        for row in rows
    ]
    missed: list[Json] = [
        f"{row.problem}: {row.method}" for row in rows if not row.converged
    ]
    return {
        "rows": columns,
        "training": [asdict(curve) for curve in curves],
        "unconverged": missed,
    }


def build_parser() -> Parser:
    """The command line."""
    parser = command_line(
        "compare_methods",
        "Every hypergradient method on denoising, deblurring and logistic "
        "regression, against exact gradients.",
    )
    add_json(parser)
    add_folder(parser, "runs/methods")
    parser.add_argument(
        "--side",
        type=whole(1, SIDE),
        default=16,
        help="pixels per side of the image",
    )
    parser.add_argument("--filters", type=whole(1, FILTERS), default=6)
    parser.add_argument(
        "--size", type=odd(), default=3, help="filters of size x size pixels"
    )
    parser.add_argument(
        "--examples",
        type=whole(2, DIGITS),
        default=120,
        help="digits to train on, and as many to validate on",
    )
    parser.add_argument(
        "--steps",
        type=whole(1, STEPS),
        default=150,
        help="of the unrolled methods, and terms of the Neumann series",
    )
    parser.add_argument(
        "--tolerance",
        type=tolerance,
        default=1e-5,
        help="of the lower level (RMS) and of the adjoint",
    )
    parser.add_argument(
        "--training-steps",
        type=whole(1, STEPS),
        default=6,
        help="upper steps (Adam) with each method",
    )
    parser.add_argument(
        "--training-tolerance",
        type=tolerance,
        default=1e-3,
        help="the same while training",
    )
    parser.add_argument(
        "--rate", type=positive(most=100.0), default=0.05, help="of Adam"
    )
    return parser


@command()
def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    options = build_parser().parse_args(arguments)
    prepare(threads=1)
    chosen = list(
        settings(options.side, options.filters, options.size, options.examples)
    )
    places = Places()
    file = places.json(options.json, ("rows", "training", "unconverged"))
    errors, training = places.figures(
        options.out, "methods_errors.png", "methods_training.png"
    )
    accuracy, coarse = (
        Accuracy(value, value)
        for value in (options.tolerance, options.training_tolerance)
    )
    asked = dict(methods(options.steps))
    steps = options.training_steps
    rows, curves = compare(
        chosen,
        asked,
        accuracy,
        coarse,
        steps,
        options.rate,
    )
    file.write_json(report(rows, curves))
    method_figures.errors(rows, errors)
    method_figures.training(curves, training)
    show(rows, curves, Terminal())
