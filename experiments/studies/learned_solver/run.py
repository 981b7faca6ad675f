"""A lower-level solver that learns: start, steps and metric from solved images;
same minimiser and certificate, less work.

python -m experiments.studies.learned_solver [--json FILE]
"""

from __future__ import annotations

from dataclasses import asdict

from experiments.studies.learned_solver.contest import SolverRow, compare
from experiments.studies.learned_solver.learning import learn
from experiments.studies.learned_solver.problems import (
    TASKS,
    pose,
)
from experiments.studies.learned_solver.table import show
from experiments.studies.shared.command import (
    Places,
    add_json,
    command_line,
    progress,
)
from experiments.studies.shared.instances import (
    BLUR_SIDE,
    trained_regularizer,
)
from piggyback.app.console.command import command
from piggyback.app.console.runtime import prepare
from piggyback.app.console.terminal import Terminal
from piggyback.app.errors import UserError
from piggyback.app.options.parser import PATCHES, SIDE, Parser, path, whole

TOLERANCES = (1e-3, 1e-4, 1e-5)
"""RMS errors that are asked for, in grey values."""


def build_parser() -> Parser:
    """The command line."""
    parser = command_line(
        "learned_solver",
        "Learn to solve the lower level.",
    )
    parser.add_argument(
        "--run",
        type=path,
        help="run folder of a linear model (default: the packaged denoiser)",
    )
    add_json(parser)
    parser.add_argument(
        "--side",
        type=whole(BLUR_SIDE, SIDE),
        default=32,
        help="pixels per side of the patches",
    )
    parser.add_argument(
        "--patches",
        type=whole(1, PATCHES),
        default=96,
        help="patches to learn from",
    )
    parser.add_argument(
        "--images",
        type=whole(1, PATCHES),
        default=8,
        help="patches of other photographs to test on",
    )
    parser.add_argument(
        "--limit",
        action="store_true",
        help="also with the inverse Hessian at the minimiser: slow",
    )
    return parser


@command()
def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    options = build_parser().parse_args(arguments)
    prepare(threads=1)
    regularizer = trained_regularizer(options.run)
    if regularizer.config.channels != 1:
        raise UserError(
            f"{options.run}: a model of colour images; this experiment takes grey ones"
        )
    file = Places(options.run).json(options.json, ("rows",))
    rows: list[SolverRow] = []
    with progress(3 * len(TASKS)) as bar:
        for task in TASKS:
            bar.now(f"{task}: solving training images")
            solved = pose(
                task, regularizer, options.side, options.patches, options.images
            )
            bar.done()
            bar.now(f"{task}: learning")
            learned = learn(solved)
            bar.done()
            bar.now(f"{task}: testing")
            rows += compare(solved, learned, TOLERANCES, options.limit)
            bar.done()
    file.write_json({"rows": [asdict(row) for row in rows]})
    show(rows, Terminal())
