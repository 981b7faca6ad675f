"""Adapt a trained regularizer to a new noise level and to a new blur from a few
patches: meta-learned rules against plain ones.

python -m experiments.studies.few_shot [--json FILE] [--out DIR]
"""

from __future__ import annotations

from dataclasses import asdict

from experiments.studies.few_shot.adaptation import (
    families,
)
from experiments.studies.few_shot.figure import figure
from experiments.studies.few_shot.table import show
from experiments.studies.few_shot.ways import (
    WAYS,
    AdaptationBench,
    AdaptationEffort,
    AdaptationRow,
)
from experiments.studies.shared.command import (
    Places,
    add_folder,
    add_json,
    command_line,
    progress,
)
from experiments.studies.shared.instances import trained_regularizer
from piggyback.app.console.command import command
from piggyback.app.console.runtime import prepare
from piggyback.app.console.terminal import Terminal
from piggyback.app.errors import UserError
from piggyback.app.options.parser import (
    PATCHES,
    SIDE,
    STEPS,
    Parser,
    path,
    whole,
)


def build_parser() -> Parser:
    """The command line."""
    parser = command_line(
        "few_shot",
        "Adapt a regularizer to a new noise level and a new blur.",
    )
    parser.add_argument(
        "--run",
        type=path,
        help="run folder of a linear model (default: the packaged denoiser)",
    )
    add_json(parser)
    add_folder(parser, "runs/few_shot")
    parser.add_argument(
        "--shots",
        type=whole(1, PATCHES),
        default=3,
        help="support patches of a task",
    )
    parser.add_argument(
        "--steps",
        type=whole(1, STEPS),
        default=3,
        help="steps of an adaptation",
    )
    parser.add_argument(
        "--meta-steps",
        type=whole(1, STEPS),
        default=3,
        help="tasks that every rule learns from",
    )
    parser.add_argument(
        "--long-steps",
        type=whole(1, STEPS),
        default=8,
        help="steps of the long training on the new task",
    )
    parser.add_argument(
        "--draws",
        type=whole(1, STEPS),
        default=2,
        help="draws of the support patches of the new task",
    )
    parser.add_argument(
        "--side",
        type=whole(1, SIDE),
        default=16,
        help="pixels per side of the support patches",
    )
    parser.add_argument(
        "--images",
        type=whole(1, PATCHES),
        default=6,
        help="query patches, of twice the side",
    )
    return parser


@command()
def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    options = build_parser().parse_args(arguments)
    effort = AdaptationEffort(
        shots=options.shots,
        steps=options.steps,
        meta_steps=options.meta_steps,
        long_steps=options.long_steps,
        draws=options.draws,
        side=options.side,
        images=options.images,
    )
    prepare(threads=1)
    regularizer = trained_regularizer(options.run)
    if regularizer.config.channels != 1:
        raise UserError(
            f"{options.run}: a model of colour images; this experiment takes grey ones"
        )
    places = Places(options.run)
    file = places.json(options.json, ("rows",))
    (drawing,) = places.figures(options.out, "few_shot.png")
    rows: list[AdaptationRow] = []
    chosen = families()
    with progress(len(chosen) * WAYS) as bar:
        for family in chosen:
            bar.now(family.name)
            bench = AdaptationBench.of(regularizer, family, effort)
            for found in bench.ways():
                rows.append(found)
                bar.now(f"{family.name}: {found.method} done")
                bar.done()
    file.write_json({"rows": [asdict(row) for row in rows]})
    figure(rows, drawing)
    show(rows, Terminal())
