"""Every hypergradient method on the same three problems: error against the
exact gradient, certificate, cost, time, memory.

python -m experiments.studies.compare_methods [--json FILE] [--out DIR]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from experiments.studies.compare_methods import figures as method_figures
from experiments.studies.compare_methods.comparison import (
    Method,
    Row,
    Setting,
    TrainingRow,
    measure,
    methods,
    settings,
    train,
)
from piggyback.app.console.command import command
from piggyback.app.console.progress import progress_bar
from piggyback.app.console.runtime import prepare
from piggyback.app.console.terminal import Terminal
from piggyback.app.files.outputs import Outputs
from piggyback.app.options.parser import (
    FILTERS,
    SIDE,
    STEPS,
    Parser,
    odd,
    path,
    positive,
    tolerance,
    whole,
)
from piggyback.app.runs.folder import Json
from piggyback.problems.pair import Accuracy

DIGITS = 178
"""Half of the examples of the two digits that scikit-learn ships."""


def compare(
    chosen: Sequence[Setting],
    asked: dict[str, Method],
    accuracy: Accuracy,
    training: Accuracy,
    steps: int,
    rate: float,
    console: Console,
) -> tuple[list[Row], list[TrainingRow]]:
    """All methods on all problems, and a training with each (at the accuracy
    ``training``); with a progress bar."""
    rows, curves = [], []
    with progress_bar(console) as bar:
        task = bar.add_task("", total=2 * len(chosen) * len(asked))
        for setting in chosen:
            for name, method in asked.items():
                bar.update(task, description=f"{setting.name}: {name}")
                rows.append(measure(setting, name, method, accuracy))
                bar.advance(task)
                curves += train(setting, name, method, training, steps, rate)
                bar.advance(task)
    return rows, curves


def show(
    rows: Sequence[Row], curves: Sequence[TrainingRow], console: Console
) -> None:
    """One table per problem.

    ``promise``: the certified relative error, or what the method gives instead;
    ``cost``: operator applications; ``solved``: whether its solves reached the
    tolerance; ``trained``: upper loss after training over that of the start.
    """
    for problem in dict.fromkeys(row.problem for row in rows):
        table = Table(
            box=SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
            title=problem,
            title_justify="left",
        )
        for name in (
            "method",
            "promise",
            "error",
            "cosine",
            "cost",
            "s",
            "MB",
            "solved",
            "trained",
        ):
            table.add_column(
                name,
                no_wrap=True,
                justify="left" if name in ("method", "promise") else "right",
            )
        for row in (row for row in rows if row.problem == problem):
            own = [
                curve
                for curve in curves
                if curve.problem == problem and curve.method == row.method
            ]
            promise = (
                f"≤ {row.bound:.1e}"
                if row.guarantee == "certified"
                else row.guarantee
            )
            table.add_row(
                row.method,
                promise,
                f"{row.relative_error:.1e}",
                f"{row.cosine:+.3f}",
                f"{row.operator_applications:.0f}",
                f"{row.seconds:.2f}",
                f"{row.peak_mb:.1f}",
                "yes" if row.converged else "no",
                f"{own[-1].upper_loss / own[0].upper_loss:.1%}",
            )
        console.print(table)


def report(
    rows: Sequence[Row], curves: Sequence[TrainingRow]
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
    parser = Parser(
        "python -m experiments.studies.compare_methods",
        "Every hypergradient method on denoising, deblurring and logistic "
        "regression, against exact gradients.",
    )
    parser.add_argument("--json", type=path, help="write the rows to this file")
    parser.add_argument(
        "--out",
        type=path,
        default=Path("runs/methods"),
        help="folder of the figures",
    )
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
    outputs = Outputs()
    figures = outputs.json(options.json, ("rows", "training", "unconverged"))
    errors, training = outputs.figures(
        options.out, ["methods_errors.png", "methods_training.png"]
    )
    accuracy, coarse = (
        Accuracy(value, value)
        for value in (options.tolerance, options.training_tolerance)
    )
    asked, steps = dict(methods(options.steps)), options.training_steps
    rows, curves = compare(
        chosen,
        asked,
        accuracy,
        coarse,
        steps,
        options.rate,
        Terminal(stderr=True),
    )
    figures.write_json(report(rows, curves))
    method_figures.errors(rows, errors)
    method_figures.training(curves, training)
    show(rows, curves, Terminal())
