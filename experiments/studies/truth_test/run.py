"""A hypergradient that is wanted to 1 %: what one gets, from this package, from
residual tolerances, from cvxpylayers.

python -m experiments.studies.truth_test [RUN] [--json FILE] [--out FOLDER]

Asked for linear regularizers, for the default model, whose weights adapt to the
observation, and for a softplus network; RUN, a model of any of these kinds,
takes the place of the shipped one. Every answer is compared with
``experiments.studies.shared.reference``, which shares no solver and no formula
with any of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from experiments.studies.shared.command import (
    Places,
    add_folder,
    add_json,
    command_line,
    progress,
)
from experiments.studies.shared.instances import Instance
from experiments.studies.shared.reference import solve_reference
from experiments.studies.truth_test.answers import (
    Answer,
    answer,
    images,
    small_instances,
)
from experiments.studies.truth_test.figure import truth_bars
from experiments.studies.truth_test.table import (
    by_answer,
    by_model,
    certified_models,
)
from experiments.studies.truth_test.ways import WANTED, Way, has_cone, ways
from piggyback.app.console.command import command
from piggyback.app.console.runtime import prepare
from piggyback.app.console.terminal import Terminal
from piggyback.app.options.parser import FILTERS, SIDE, Parser, odd, path, whole

Question = tuple[Instance, dict[str, Way]]
"""An instance, and the ways that are asked for its gradient, by name."""


def run_answers(questions: Sequence[Question]) -> list[Answer]:
    """All answers, with progress."""
    answers = []
    with progress(sum(len(asked) for _, asked in questions)) as bar:
        for instance, asked in questions:
            bar.now(instance.label)
            reference = solve_reference(
                instance.regularizer, instance.data, instance.clean
            )
            for method, solve in asked.items():
                answers.append(answer(instance, reference, method, solve))
                bar.done()
    return answers


def build_parser() -> Parser:
    """The command line."""
    parser = command_line(
        "truth_test",
        "Who delivers a hypergradient that is wanted to 1 percent?",
    )
    parser.add_argument(
        "run",
        type=path,
        nargs="?",
        help="run folder of a trained model: linear, adaptive or a softplus "
        "network (default: shipped)",
    )
    add_json(parser)
    add_folder(parser, "runs/truth")
    parser.add_argument(
        "--side",
        type=whole(1, SIDE),
        default=48,
        help="pixels per side of the patch",
    )
    parser.add_argument(
        "--filters",
        type=whole(1, FILTERS),
        default=24,
        help="of the random regularizers",
    )
    parser.add_argument(
        "--size", type=odd(), default=7, help="of their filters, in pixels"
    )
    parser.add_argument(
        "--small-side",
        type=whole(1, SIDE),
        default=12,
        help="pixels per side of what cvxpylayers gets",
    )
    parser.add_argument(
        "--small-filters",
        type=whole(1, FILTERS),
        default=3,
        help="number of 3x3 filters there",
    )
    return parser


@command()
def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    options = build_parser().parse_args(arguments)
    prepare(threads=1)
    large = list(
        images(options.run, options.side, options.filters, options.size)
    )
    small = list(small_instances(options.small_side, options.small_filters))
    places = Places(options.run)
    file = places.json(options.json, ("wanted", "rows", "models"))
    (bars,) = places.figures(options.out, "truth_test.png")
    cone = has_cone()
    questions = [(instance, ways(False, cone)) for instance in large]
    questions += [(instance, ways(True, cone)) for instance in small]
    # every method meets the same instances
    answers = run_answers(questions)
    rows = [asdict(one) for one in answers]
    models = [one.row() for one in certified_models(answers)]
    file.write_json({"wanted": WANTED, "rows": rows, "models": models})
    truth_bars(rows, WANTED, bars)
    console = Terminal()
    console.print(by_answer(answers))
    console.print(by_model(answers))
    if not cone:
        console.print(
            "cvxpylayers is not installed: its rows are left out (pip "
            "install 'piggyback-bilevel[oracle]')"
        )
