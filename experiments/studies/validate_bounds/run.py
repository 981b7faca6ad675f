"""True error of hypergradients beside their worst-case bound, local bound and
estimate.

python -m experiments.studies.validate_bounds [RUN] [--json FILE] [--out FOLDER]
[--patches N] [--side N] [--filters N] [--checks N]

Linear regularizers (random, as training starts, trained) with several
potentials, for denoising and deblurring; and, for denoising and as they were
trained, the default model, whose weights adapt to the observation, and a
softplus network. RUN, a model of any of these kinds, takes the place of the
shipped one. The truth is computed by ``experiments.studies.shared.reference``,
which shares no solver and no formula with the package.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.studies.shared.command import (
    Places,
    add_folder,
    add_json,
    command_line,
    progress,
)
from experiments.studies.shared.instances import (
    LINEAR,
    Instance,
    as_trained,
    instances,
    photograph_patches,
    random_regularizer,
    starting_regularizer,
    trained_models,
)
from experiments.studies.shared.reference import solve_reference
from experiments.studies.validate_bounds.checks import (
    BoundCheck,
    check,
    solves,
)
from experiments.studies.validate_bounds.costs import (
    CertificateCost,
    certificate_cost,
    contestants,
)
from experiments.studies.validate_bounds.figure import FIGURES, draw
from experiments.studies.validate_bounds.summary import summary
from experiments.studies.validate_bounds.table import (
    by_model,
    by_problem,
    of_costs,
)
from piggyback.app.console.command import command
from piggyback.app.console.runtime import prepare
from piggyback.app.console.terminal import Terminal
from piggyback.app.options.parser import (
    FILTERS,
    PATCHES,
    SIDE,
    Parser,
    odd,
    path,
    whole,
)
from piggyback.app.runs.folder import Json
from regularizers.linear import LinearRegularizer

COST_UNITS = 5
"""Times as long as a check a comparison of costs takes, roughly."""


@dataclass(frozen=True)
class BoundResults:
    """All rows; ``residuals``: of the references, relative."""

    checks: list[BoundCheck]
    costs: list[CertificateCost]
    residuals: list[float]

    def json(self) -> dict[str, Json]:
        """What is written to the file of results."""
        return {
            "rows": [one.row() for one in self.checks],
            "overheads": [one.row() for one in self.costs],
            "summary": summary(self.checks, self.costs, self.residuals),
        }


def chosen_instances(
    run: Path | None, patches: int, side: int, filters: int, size: int
) -> list[Instance]:
    """Everything that is checked.

    Args:
        run: run folder of a trained model, or None for the shipped ones.
        patches: test patches for each model.
        side: of a patch, in pixels.
        filters: of the random and of the starting regularizer.
        size: of their filters, in pixels per side.

    Returns:
        Linear regularizers on both tasks, then the other models.

    Raises:
        UserError: for a folder without a model, or patches that are too small.
    """
    models = trained_models(run)
    trained = models.pop(LINEAR)
    assert isinstance(trained, LinearRegularizer)
    channels = trained.config.channels
    regularizers = {
        "random": random_regularizer(filters, size, channels),
        "start": starting_regularizer(filters, size, channels),
        LINEAR: trained,
    }
    clean = photograph_patches(patches, side, channels)
    linear = list(instances(regularizers, clean))
    return linear + list(as_trained(models, patches, side))


def run_checks(chosen: Sequence[Instance], count: int) -> BoundResults:
    """Every check of every instance, with progress.

    Args:
        chosen: regularizers and images.
        count: tolerances per method and precision.

    Returns:
        All rows.
    """
    results = BoundResults([], [], [])
    units = [
        len(solves(instance, count)) + COST_UNITS * len(contestants(instance))
        for instance in chosen
    ]
    with progress(sum(units)) as bar:
        for instance in chosen:
            bar.now(instance.label)
            # one exact solution for all pairs of the instance
            reference = solve_reference(
                instance.regularizer, instance.data, instance.clean
            )
            results.residuals.append(reference.residual)
            for solve in solves(instance, count):
                results.checks.append(check(instance, reference, solve))
                bar.done()
            for method in contestants(instance):
                cost = certificate_cost(instance, reference, method)
                results.costs.append(cost)
                bar.done(COST_UNITS)
    return results


def show(results: BoundResults) -> None:
    """Three tables and the summary, on the terminal."""
    console = Terminal()
    console.print(by_problem(results.checks))
    console.print(of_costs(results.costs))
    console.print(by_model(results.checks))
    figures = summary(results.checks, results.costs, results.residuals)
    # the models have a table of their own
    del figures["models"]
    console.print(figures)


def build_parser() -> Parser:
    """The command line."""
    parser = command_line(
        "validate_bounds",
        "True errors of hypergradients beside their bounds and estimates.",
    )
    parser.add_argument(
        "run",
        type=path,
        nargs="?",
        help="run folder of a trained model: linear, adaptive or a softplus "
        "network (default: shipped)",
    )
    add_json(parser, "rows and summary")
    add_folder(parser, "runs/bounds")
    parser.add_argument(
        "--patches",
        type=whole(1, PATCHES),
        default=1,
        help="test patches, each a problem of its own",
    )
    parser.add_argument(
        "--side",
        type=whole(1, SIDE),
        default=40,
        help="pixels per side of a patch",
    )
    parser.add_argument(
        "--filters",
        type=whole(1, FILTERS),
        default=24,
        help="of the random and of the starting regularizer",
    )
    parser.add_argument(
        "--size", type=odd(), default=7, help="of their filters, in pixels"
    )
    parser.add_argument(
        "--checks",
        type=whole(1, 1000),
        default=2,
        help="tolerances per method and precision",
    )
    return parser


@command()
def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    options = build_parser().parse_args(arguments)
    prepare(threads=1)
    chosen = chosen_instances(
        options.run,
        options.patches,
        options.side,
        options.filters,
        options.size,
    )
    places = Places(options.run)
    file = places.json(options.json, ("rows", "overheads", "summary"))
    drawings = places.figures(options.out, *FIGURES)
    results = run_checks(chosen, options.checks)
    file.write_json(results.json())
    draw(results.checks, drawings)
    show(results)
