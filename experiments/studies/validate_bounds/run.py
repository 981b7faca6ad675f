"""True error of hypergradients beside their worst-case bound, local bound and
estimate.

python -m experiments.studies.validate_bounds [RUN] [--json FILE] [--out FOLDER]
[--patches N] [--side N] [--filters N] [--checks N]

The truth is computed by ``experiments.studies.shared.reference``, which shares
no solver and no formula with the package.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor

from experiments.studies.shared import bound_figures
from experiments.studies.shared.instances import (
    Instance,
    instances,
    photograph_patches,
    random_regularizer,
    starting_regularizer,
    trained_regularizer,
)
from experiments.studies.shared.reference import Reference, solve_reference
from piggyback.app.console.command import command
from piggyback.app.console.progress import progress_bar
from piggyback.app.console.runtime import prepare
from piggyback.app.console.terminal import Terminal
from piggyback.app.files.outputs import Output, Outputs
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
from piggyback.certificates.bounds import local_bound
from piggyback.certificates.certify import examine
from piggyback.certificates.loss import corrected_loss
from piggyback.certificates.worst_case import worst_case_bound
from piggyback.hypergradients.base import HypergradientMethod
from piggyback.hypergradients.implicit import ImplicitCG
from piggyback.hypergradients.on_demand import OnDemand
from piggyback.hypergradients.piggyback import Piggyback, PiggybackIteration
from piggyback.operators.counting import ApplicationCounter
from piggyback.problems.pair import Accuracy, Sensitivity, WarmStart
from piggyback.problems.posed import pose
from piggyback.solvers.lower import SolverTask, radius_per_element
from piggyback.solvers.pdhg import Steps
from piggyback.solvers.stopping import Schedule

WINDOW = (1e-6, 1e-1)
"""True errors, relative, for which the ratio of bound and true error is summed
up."""
WANTED = 0.01
"""Relative error up to which the cost of certified and of plain gradients is
compared."""
ADJOINT = 30.0
"""Tolerance of the adjoint over that of the image, which is in grey values."""

METHODS: Mapping[str, HypergradientMethod] = {
    "implicit": ImplicitCG(),
    "piggyback": Piggyback(),
}


@dataclass(frozen=True)
class Solve:
    """One way to come to a pair; ``tolerance``: RMS error of the image, in grey
    values."""

    method: str
    precision: torch.dtype
    tolerance: float

    @property
    def accuracy(self) -> Accuracy:
        return accuracy_for(self.tolerance)


def accuracy_for(tolerance: float) -> Accuracy:
    """Both tolerances tied to the one of the image."""
    return Accuracy(tolerance, min(ADJOINT * tolerance, 0.5))


@dataclass(frozen=True)
class Check:
    """One pair of one image.

    ``true_error``, the bounds, ``estimate`` and ``lower``: Euclidean errors of
    the whole gradient over the norm of the exact one. ``local``: the certified
    bound of the assessment, which corrects the pair as far as it must;
    ``plain_local``: the same kind of bound of the pair as it is. Losses are
    absolute. Applications: of the solve, and of the assessment.
    """

    problem: str
    image: int
    potential: str
    own: bool
    smoothing: float
    dtype: str
    method: str
    tolerance: float
    operator_applications: float
    true_error: float
    worst_case: float
    local: float
    estimate: float
    lower: float
    plain_local: float
    assessment_applications: float
    loss_error: float
    corrected_loss_error: float
    corrected_loss_bound: float

    @property
    def violated(self) -> list[str]:
        """The statements that are wrong; a bound that is not a number is."""
        statements = {
            "worst_case": self.worst_case >= self.true_error,
            "local": self.local >= self.true_error,
            "plain_local": self.plain_local >= self.true_error,
            "lower": self.lower <= self.true_error,
            "corrected_loss_bound": self.corrected_loss_bound
            >= self.corrected_loss_error,
        }
        return [name for name, holds in statements.items() if not holds]

    def row(self) -> dict[str, Json]:
        return {**asdict(self), "violated": self.violated}


@dataclass(frozen=True)
class Overhead:
    """Operator applications until the certified and until the true relative
    error is at most ``WANTED``."""

    problem: str
    method: str
    certified_applications: float
    certified_error: float
    certified_true_error: float
    plain_applications: float
    plain_tolerance: float
    plain_true_error: float

    @property
    def ratio(self) -> float:
        return self.certified_applications / self.plain_applications

    def row(self) -> dict[str, Json]:
        return {**asdict(self), "ratio": self.ratio}


# --- checks -------------------------------------------------------------------


def spread(first: float, last: float, count: int) -> list[float]:
    """``count`` numbers in geometric progression."""
    return [float(value) for value in np.geomspace(first, last, count)]


def solves(instance: Instance, count: int) -> list[Solve]:
    """``count`` tolerances per precision, more where the figures look
    (``is_shown``), and one for piggyback where it is quick."""
    single, double = torch.float32, torch.float64
    fine = (
        spread(1e-2, 1e-7, 4 * count)
        if is_shown(instance)
        else spread(1e-3, 1e-6, count)
    )
    chosen = [
        Solve("implicit", single, tolerance)
        for tolerance in spread(1e-2, 1e-5, count)
    ]
    chosen += [Solve("implicit", double, tolerance) for tolerance in fine]
    middle, denoise = (
        0.005 < instance.smoothing < 0.05,
        instance.name.endswith("/denoise"),
    )
    # with less smoothing it takes thousands of iterations
    if instance.own or (middle and denoise):
        chosen.append(Solve("piggyback", single, 1e-3))
    if instance.name == "start/denoise" and instance.own:
        chosen.append(Solve("piggyback", double, 1e-2))
    return chosen


def is_shown(instance: Instance) -> bool:
    """Whether the figures over operator applications show this instance."""
    return (
        instance.name == "trained/denoise"
        and instance.own
        and instance.image == 0
    )


def check(instance: Instance, reference: Reference, solve: Solve) -> Check:
    """Errors and bounds of one pair."""
    counter = ApplicationCounter()
    regularizer, data, loss = instance.at(solve.precision)
    pair = METHODS[solve.method].differentiate(
        regularizer.problem(data).counted(counter), loss, solve.accuracy
    )
    posed = pose(regularizer, data, loss)
    exact = posed.regularizer
    evidence, gradient = examine(posed, pair.double())
    start = WarmStart(pair.x, pair.adjoint)
    assessment = OnDemand().assess(gradient, posed, start)
    interval = corrected_loss(evidence)
    size = float(reference.gradient.norm())
    return Check(
        problem=instance.name,
        image=instance.image,
        potential=instance.potential,
        own=instance.own,
        smoothing=instance.smoothing,
        dtype=str(solve.precision).removeprefix("torch."),
        method=solve.method,
        tolerance=solve.tolerance,
        operator_applications=counter.applications,
        true_error=true_error(gradient, reference),
        worst_case=float(exact.pull_back(worst_case_bound(evidence))) / size,
        local=assessment.bound / size,
        estimate=assessment.estimate / size,
        lower=assessment.lower / size,
        plain_local=float(exact.pull_back(local_bound(evidence))) / size,
        assessment_applications=assessment.refined.applications,
        loss_error=abs(float(evidence.residuals.value) - reference.loss),
        corrected_loss_error=abs(float(interval.value) - reference.loss),
        corrected_loss_bound=float(interval.radius),
    )


# --- what a certificate costs -------------------------------------------------

TOLERANCES = [1e-2 * 0.8**power for power in range(40)]
"""What the plain methods may choose from, in grey values, knowing the true
error: no method can know it."""
CERTIFIED: Mapping[str, OnDemand] = {
    "piggyback": OnDemand(Piggyback(), Accuracy(lower=2e-4, adjoint=6e-3)),
    "implicit": OnDemand(),
}
"""The way to a certified ``WANTED``: one accuracy for all problems, corrections
do the rest."""
PLAIN_IMPLICIT = ImplicitCG(
    lower_schedule=Schedule(2000, check_every=1),
    adjoint_schedule=Schedule(1000, check_every=1),
)


def overhead(instance: Instance, reference: Reference, method: str) -> Overhead:
    """Solved in float32. The plain method is charged its solves and looks only,
    the certified one everything."""
    certified = CERTIFIED[method].differentiate(
        *instance.at(torch.float32), WANTED
    )
    plain = (
        plain_piggyback(instance, reference)
        if method == "piggyback"
        else plain_implicit(instance, reference)
    )
    return Overhead(
        problem=instance.name,
        method=method,
        certified_applications=certified.applications,
        certified_error=certified.relative_error,
        certified_true_error=true_error(certified.gradient, reference),
        plain_applications=plain.applications,
        plain_tolerance=plain.tolerance,
        plain_true_error=plain.true_error,
    )


@dataclass(frozen=True)
class Plain:
    """The loosest of ``TOLERANCES`` whose true error is at most ``WANTED``, and
    its cost; not a number if none is."""

    tolerance: float = math.nan
    applications: float = math.nan
    true_error: float = math.nan


def plain_implicit(instance: Instance, reference: Reference) -> Plain:
    """One solve after the other."""
    regularizer, data, loss = instance.at(torch.float32)
    for tolerance in TOLERANCES:
        counter = ApplicationCounter()
        pair = PLAIN_IMPLICIT.differentiate(
            regularizer.problem(data).counted(counter),
            loss,
            accuracy_for(tolerance),
        )
        error = pair_error(instance, reference, pair.x, pair.adjoint)
        if error <= WANTED:
            return Plain(tolerance, counter.applications, error)
    return Plain()


def plain_piggyback(instance: Instance, reference: Reference) -> Plain:
    """One run, which each tolerance would stop at its first look (every 10
    steps, as ``Piggyback`` does) below it."""
    schedule, counter = Piggyback().schedule, ApplicationCounter()
    regularizer, data, loss = instance.at(torch.float32)
    problem = regularizer.problem(data).detached().counted(counter)
    with torch.no_grad():
        lower = SolverTask(
            problem, data.start, radius_per_element(problem, 1.0)
        )
        iteration = PiggybackIteration(
            lower,
            loss,
            Steps.optimal(problem),
            ADJOINT,
            torch.zeros_like(data.start),
        )
        state, reached = iteration.start(), math.inf
        for taken in range(schedule.max_steps):
            if taken % schedule.check_every == 0:
                # over tolerances of 1 and ADJOINT
                missing = float(iteration.error(state))
                stopped = [
                    tolerance
                    for tolerance in TOLERANCES
                    if missing <= tolerance < reached
                ]
                error = (
                    pair_error(instance, reference, *iteration.result(state))
                    if stopped
                    else math.inf
                )
                if error <= WANTED:
                    return Plain(stopped[0], counter.applications, error)
                reached = min(reached, missing)
                if reached <= TOLERANCES[-1]:
                    break
            state = iteration.step(state)
    return Plain()


def pair_error(
    instance: Instance, reference: Reference, x: Tensor, adjoint: Tensor
) -> float:
    """True error of the gradient that is read off a pair."""
    exact, data, loss = instance.at(torch.float64)
    status = torch.zeros(len(x))
    pair = Sensitivity(x, adjoint, status, status).double()
    return true_error(examine(pose(exact, data, loss), pair)[1], reference)


def true_error(gradient: Tensor, reference: Reference) -> float:
    """Relative to the exact gradient."""
    return float(
        (gradient - reference.gradient).norm() / reference.gradient.norm()
    )


# --- summary ------------------------------------------------------------------


def summary(
    checks: Sequence[Check],
    overheads: Sequence[Overhead],
    residuals: Sequence[float],
) -> dict[str, Json]:
    """What the rows come to; ratios over the checks whose true error lies in
    ``WINDOW``, not a number without any."""
    within = [c for c in checks if WINDOW[0] <= c.true_error <= WINDOW[1]]
    local, plain, estimate, worst = (
        [getattr(c, name) / c.true_error for c in within]
        for name in ("local", "plain_local", "estimate", "worst_case")
    )
    figures: dict[str, Json] = {
        "violations": sum(len(c.violated) for c in checks),
        "checks": len(checks),
        "effectivity_checks": len(within),
        "effectivity_median": median(local),
        "effectivity_p95": percentile(local),
        "estimate_low": min(estimate, default=math.nan),
        "estimate_high": max(estimate, default=math.nan),
        "plain_effectivity_median": median(plain),
        "plain_effectivity_p95": percentile(plain),
        "worst_case_effectivity_median": median(worst),
        "assessment_overhead_median": median(
            [
                c.assessment_applications / c.operator_applications
                for c in checks
            ]
        ),
        "reference_residual": max(residuals, default=math.nan),
    }
    for name, method in (
        ("certification_overhead", "piggyback"),
        ("certification_overhead_implicit", "implicit"),
    ):
        figures[name] = median(
            [o.ratio for o in overheads if o.method == method]
        )
    return figures


def median(values: Sequence[float]) -> float:
    """Not a number without values."""
    return float(np.median(values)) if values else math.nan


def percentile(values: Sequence[float]) -> float:
    """The smallest value that at least 95 % of them do not exceed."""
    return (
        float(np.quantile(values, 0.95, method="inverted_cdf"))
        if values
        else math.nan
    )


def show(
    checks: Sequence[Check], overheads: Sequence[Overhead], console: Console
) -> None:
    """Tables on the terminal: one line per problem and potential, then the
    costs."""
    table = Table(
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title_justify="left",
        title="largest true error, medians of bound / true error, wrong statements",
    )
    for name in (
        "problem",
        "potential",
        "error",
        "certified",
        "plain",
        "worst",
        "wrong",
    ):
        table.add_column(name, no_wrap=True)
    for (problem, potential, smoothing), group in grouped(checks).items():
        local, plain, worst = (
            median([getattr(c, name) / c.true_error for c in group])
            for name in ("local", "plain_local", "worst_case")
        )
        table.add_row(
            problem,
            f"{potential} {smoothing:.2g}",
            f"{max(c.true_error for c in group):.0e}",
            f"{local:.2f}",
            f"{plain:.0e}",
            f"{worst:.0e}",
            str(sum(len(c.violated) for c in group)),
        )
    console.print(table)
    costs = Table(
        "problem",
        "method",
        "certified",
        "plain",
        "ratio",
        "bound",
        "its true error",
        box=SIMPLE_HEAD,
        title=f"operator applications until the relative error is {WANTED:.0%}",
        title_justify="left",
        padding=(0, 1, 0, 0),
    )
    for o in overheads:
        costs.add_row(
            o.problem,
            o.method,
            f"{o.certified_applications:.0f}",
            f"{o.plain_applications:.0f}",
            f"{o.ratio:.2f}",
            f"{o.certified_error:.1e}",
            f"{o.certified_true_error:.1e}",
        )
    console.print(costs)


def grouped(
    checks: Sequence[Check],
) -> dict[tuple[str, str, float], list[Check]]:
    """By problem, potential and smoothing, in the order of appearance."""
    groups: dict[tuple[str, str, float], list[Check]] = {}
    for c in checks:
        groups.setdefault((c.problem, c.potential, c.smoothing), []).append(c)
    return groups


# --- command line -------------------------------------------------------------


@dataclass(frozen=True)
class Results:
    """All rows; ``residuals``: of the references, relative."""

    checks: list[Check]
    overheads: list[Overhead]
    residuals: list[float]

    def json(self) -> dict[str, Json]:
        return {
            "rows": [c.row() for c in self.checks],
            "overheads": [o.row() for o in self.overheads],
            "summary": summary(self.checks, self.overheads, self.residuals),
        }


def is_contested(instance: Instance) -> bool:
    """Whether the cost of certificates is measured on this instance: denoising,
    one potential per regularizer."""
    usual = instance.own or (
        instance.name.startswith("random")
        and abs(instance.smoothing - 0.01) < 1e-6
    )
    return usual and instance.name.endswith("/denoise") and instance.image == 0


def run_checks(
    chosen: Sequence[Instance], count: int, console: Console
) -> Results:
    """Every check of every instance, with a progress bar."""
    results = Results([], [], [])
    with progress_bar(console) as bar:
        units = [
            len(solves(instance, count))
            + 5 * len(CERTIFIED) * is_contested(instance)
            for instance in chosen
        ]
        task = bar.add_task("", total=sum(units))
        for instance in chosen:
            bar.update(task, description=instance.label)
            reference = solve_reference(
                instance.regularizer, instance.data, instance.clean
            )
            results.residuals.append(reference.residual)
            for solve in solves(instance, count):
                results.checks.append(check(instance, reference, solve))
                bar.advance(task)
            for method in CERTIFIED if is_contested(instance) else ():
                results.overheads.append(overhead(instance, reference, method))
                bar.advance(task, 5)
    return results


FIGURES = ("bounds.png", "effectivities.png", "corrected_loss.png")


def draw(checks: Sequence[Check], places: Sequence[Output]) -> None:
    """The three ``FIGURES``."""
    shown = [
        c
        for c in checks
        if c.problem == "trained/denoise" and c.own and c.image == 0
    ]
    curve = sorted(
        (c for c in shown if c.method == "implicit" and c.dtype == "float64"),
        key=lambda c: c.operator_applications,
    )
    within = [c for c in checks if WINDOW[0] <= c.true_error <= WINDOW[1]]
    bounds, effectivities, losses = places
    bound_figures.errors_and_bounds([c.row() for c in curve], bounds)
    bound_figures.effectivities([c.row() for c in within], effectivities)
    bound_figures.losses([c.row() for c in curve], losses)


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(
        "python -m experiments.studies.validate_bounds",
        "True errors of hypergradients beside their bounds and estimates.",
    )
    parser.add_argument(
        "run",
        type=path,
        nargs="?",
        help="run folder of the trained regularizer (default: shipped)",
    )
    parser.add_argument(
        "--json", type=path, help="write rows and summary to this file"
    )
    parser.add_argument(
        "--out",
        type=path,
        default=Path("runs/bounds"),
        help="folder of the figures",
    )
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
    trained = trained_regularizer(options.run)
    channels = trained.config.channels
    regularizers = {
        "random": random_regularizer(options.filters, options.size, channels),
        "start": starting_regularizer(options.filters, options.size, channels),
        "trained": trained,
    }
    clean = photograph_patches(options.patches, options.side, channels)
    chosen = list(instances(regularizers, clean))
    outputs = Outputs(options.run)
    figures = outputs.json(options.json, ("rows", "overheads", "summary"))
    places = outputs.figures(options.out, FIGURES)
    results = run_checks(chosen, options.checks, Terminal(stderr=True))
    figures.write_json(results.json())
    draw(results.checks, places)
    console = Terminal()
    show(results.checks, results.overheads, console)
    console.print(results.json()["summary"])
