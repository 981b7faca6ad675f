"""Six training tasks without tuning: tolerances by certificate and a raced step
size, beside five fixed pairs of tolerances.

python -m experiments.studies.compare_tolerances [--tasks NAME ...] [--steps N]
[--json FILE] [--out FOLDER]

All runs of a task see the same mini-batches. The held-out loss is computed
afterwards, to high accuracy, for all runs alike; it costs nothing here.
Operator pairs include races and assessments.
"""

from __future__ import annotations

from dataclasses import asdict, replace

import torch

from experiments.studies.compare_tolerances.figure import (
    training_without_tuning,
)
from experiments.studies.compare_tolerances.plans import plans
from experiments.studies.compare_tolerances.rows import TrainingRun
from experiments.studies.compare_tolerances.table import show
from experiments.studies.compare_tolerances.tasks import tasks
from experiments.studies.compare_tolerances.training import TrainingBench, run
from experiments.studies.compare_tolerances.verdicts import judge
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
from piggyback.app.images.sources import load_photographs
from piggyback.app.options.parser import (
    FILTERS,
    SIDE,
    STEPS,
    THREADS,
    Parser,
    odd,
    path,
    whole,
)
from piggyback.app.options.plan import Source


def build_parser() -> Parser:
    """The command line."""
    parser = command_line(
        "compare_tolerances",
        "Training without tuning, on six tasks.",
    )
    names = [task.name for task in tasks(2, 3)]
    parser.add_argument(
        "--tasks", nargs="+", choices=names, default=names, help="which ones"
    )
    parser.add_argument(
        "--train",
        type=path,
        help="folder of training images (default: embedded photographs)",
    )
    parser.add_argument(
        "--test",
        type=path,
        help="folder of held-out images (default: embedded photographs)",
    )
    parser.add_argument(
        "--steps", type=whole(10, STEPS), default=60, help="steps of a run"
    )
    parser.add_argument(
        "--side",
        type=whole(8, SIDE),
        default=24,
        help="pixels per side of a patch",
    )
    parser.add_argument("--filters", type=whole(1, FILTERS), default=8)
    parser.add_argument(
        "--size", type=odd(), default=5, help="filters of size x size pixels"
    )
    parser.add_argument("--threads", type=whole(1, THREADS), default=1)
    add_json(parser, "runs and verdicts")
    add_folder(parser, "runs/tolerances")
    return parser


@command()
def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    options = build_parser().parse_args(arguments)
    prepare(1)
    places = Places()
    file = places.json(options.json, ("verdicts", "runs"))
    (drawing,) = places.figures(options.out, "tolerances.png")
    chosen = [
        task
        for task in tasks(options.filters, options.size)
        if task.name in options.tasks
    ]
    photographs = load_photographs(options.train, "train")
    others = load_photographs(options.test, "test")
    source = Source(
        photographs, chosen[0].degradation, options.side, 1, torch.device("cpu")
    )
    held_out = replace(source, photographs=others)
    found: list[TrainingRun] = []
    with progress(len(chosen) * len(plans())) as bar:
        # patches are drawn once per task: all its runs are judged alike
        for task in chosen:
            bench = TrainingBench.of(
                task, source, held_out, options.steps, options.threads
            )
            for method, accuracy, rate in plans():
                bar.now(f"{task.name}: {method}")
                found.append(run(task, method, bench, accuracy, rate))
                bar.done()
    verdicts = []
    for task in chosen:
        own = [training for training in found if training.task == task.name]
        verdicts.append(judge(own, options.steps))
    rows = [asdict(training) for training in found]
    judged = [asdict(verdict) for verdict in verdicts]
    file.write_json({"verdicts": judged, "runs": rows})
    training_without_tuning(rows, drawing)
    show(verdicts, Terminal())
