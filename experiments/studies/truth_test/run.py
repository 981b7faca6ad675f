"""A hypergradient that is wanted to 1 %: what one gets, from this package, from
residual tolerances, from cvxpylayers.

python -m experiments.studies.truth_test [RUN] [--json FILE] [--out FOLDER]

Every answer is compared with ``experiments.studies.shared.reference``, which
shares no solver and no formula with any of them.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor

from experiments.studies.shared import bound_figures
from experiments.studies.shared.instances import (
    Instance,
    denoising,
    photograph_patches,
    random_regularizer,
    tasks,
    trained_regularizer,
    with_potential,
)
from experiments.studies.shared.reference import Reference, solve_reference
from piggyback.app.console.command import command
from piggyback.app.console.progress import progress_bar
from piggyback.app.console.runtime import prepare
from piggyback.app.console.terminal import Terminal
from piggyback.app.files.outputs import Outputs
from piggyback.app.options.parser import FILTERS, SIDE, Parser, odd, path, whole
from piggyback.app.runs.folder import Json
from piggyback.batched import inner, norm
from piggyback.certificates.certify import examine
from piggyback.hypergradients.on_demand import OnDemand
from piggyback.operators.counting import ApplicationCounter
from piggyback.problems.pair import Sensitivity, flat_gradient
from piggyback.problems.posed import pose
from piggyback.problems.saddle import SaddleProblem

WANTED = 0.01
"""Relative error of the gradient that is asked for."""
CHANGES = (1e-3, 1e-4, 1e-5, 1e-6)
"""Relative changes of the iterate at which the common practice stops; the
adjoint to the same relative residual."""
MAXIMUM_STEPS, POWER_STEPS = 20_000, 50
CONE_SMOOTHING = 1e-3
CONE_WEIGHTS = (1.0, 0.05)
"""Of the small instances, in grey values."""
CERTIFIED, CONE = "certified 1 %", "cvxpylayers"


@dataclass(frozen=True)
class Answer:
    """``true_error`` and the certified ``bound`` (not a number where nothing is
    promised), relative to the exact gradient.

    ``warned``: whether the method itself said that something was wrong.
    """

    label: str
    problem: str
    potential: str
    smoothing: float
    method: str
    operator_applications: float
    seconds: float
    true_error: float
    bound: float
    warned: bool


@dataclass(frozen=True)
class Outcome:
    """What a method hands back: the gradient, its relative bound, its cost, and
    whether it complained."""

    gradient: Tensor
    bound: float = math.nan
    applications: float = math.nan
    warned: bool = False


# --- the three ways -----------------------------------------------------------


def certified(instance: Instance) -> Outcome:
    """This package, in float32, with its defaults."""
    result = OnDemand().differentiate(*instance.at(torch.float32), WANTED)
    return Outcome(
        result.gradient,
        result.relative_error,
        result.applications,
        warned=not result.relative_error <= WANTED,
    )


def by_change(instance: Instance, tolerance: float) -> Outcome:
    """Accelerated gradients until ``||x+ - x|| <= tolerance ||x||``, then CG on
    the adjoint to that relative residual.

    The power iterations for the step are not charged.
    """
    counter = ApplicationCounter()
    regularizer, data, loss = instance.at(torch.float32)
    plain = regularizer.problem(data).detached()
    problem = plain.counted(counter)
    with torch.no_grad():
        x = accelerated(problem, lipschitz(plain), tolerance)
        adjoint = conjugate_gradients(problem, x, loss.gradient(x), tolerance)
    exact, double_data, double_loss = instance.at(torch.float64)
    spent, status = counter.applications, torch.zeros(1)
    pair = Sensitivity(x, adjoint, status, status).double()
    _, gradient = examine(pose(exact, double_data, double_loss), pair)
    return Outcome(gradient, applications=spent)


def accelerated(
    problem: SaddleProblem, steepest: float, tolerance: float
) -> Tensor:
    """Nesterov's method for strongly convex functions from the observation,
    with the step ``1 / steepest``."""
    mu = problem.data.strong_convexity
    momentum = (steepest**0.5 - mu**0.5) / (steepest**0.5 + mu**0.5)
    x = ahead = problem.data.start
    for _ in range(MAXIMUM_STEPS):
        new = ahead - problem.gradient(ahead) / steepest
        change = float(norm(new - x) / norm(x))
        ahead, x = new + momentum * (new - x), new
        if change <= tolerance:
            break
    return x


def lipschitz(problem: SaddleProblem) -> float:
    """``L``, the largest eigenvalue of the steepest Hessian: power iterations
    and 2 % on top, as is usual."""
    start = problem.data.start
    curvature = problem.potential.max_curvature().expand_as(
        problem.operator.forward(start)
    )
    v = torch.randn(start.shape, generator=torch.Generator().manual_seed(0))
    value = 0.0
    for _ in range(POWER_STEPS):
        v = problem.hessian(curvature, v / norm(v))
        value = float(norm(v))
    return 1.02 * value


def conjugate_gradients(
    problem: SaddleProblem, x: Tensor, right: Tensor, tolerance: float
) -> Tensor:
    """``P`` with ``||right - A(x) P|| <= tolerance ||right||`` by plain
    conjugate gradients from zero."""
    curvature = problem.potential.curvature(problem.operator.forward(x))
    solution, residual, direction = torch.zeros_like(right), right, right
    square = float(inner(right, right))
    goal = tolerance**2 * square
    for _ in range(MAXIMUM_STEPS):
        if square <= goal:
            break
        image = problem.hessian(curvature, direction)
        step = square / float(inner(direction, image))
        solution, residual = (
            solution + step * direction,
            residual - step * image,
        )
        new = float(inner(residual, residual))
        direction, square = residual + new / square * direction, new
    return solution


def by_cone(instance: Instance) -> Outcome:
    """cvxpylayers with its own settings throughout, in float64. Raises
    ``ImportError`` without it."""
    from cvxpylayers.torch.cvxpylayer import CvxpyLayer

    regularizer, data, loss = instance.at(torch.float64)
    problem = regularizer.problem(data)
    program = problem.to_cvxpy()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        layer = CvxpyLayer(program.problem, program.parameters, [program.x])
        (x,) = layer(*program.arguments(problem))
        value = loss.value(x.reshape(instance.clean.shape)).sum()
        gradient = flat_gradient(value, list(regularizer.parameters()))
    warned = any(
        not issubclass(warning.category, DeprecationWarning)
        for warning in caught
    )
    return Outcome(gradient, warned=warned)


# --- instances and answers ----------------------------------------------------


def images(
    run: Path | None, side: int, filters: int, size: int
) -> Iterator[Instance]:
    """The trained regularizer with its own potentials, and random ones with
    Charbonnier potentials; both tasks."""
    trained = trained_regularizer(run)
    channels = trained.config.channels
    clean = photograph_patches(1, side, channels)
    yield from tasks("trained", True, trained, clean)
    for smoothing in (0.01, 0.001):
        drawn = with_potential(
            random_regularizer(filters, size, channels),
            "charbonnier",
            smoothing,
        )
        yield from tasks("random", False, drawn, clean)


def small_instances(side: int, filters: int) -> Iterator[Instance]:
    """Few pixels and 3x3 filters, which cvxpylayers can take."""
    clean = photograph_patches(1, side, 1)
    for weight in CONE_WEIGHTS:
        for penalty in ("huber", "charbonnier"):
            regularizer = with_potential(
                random_regularizer(filters, 3, 1, weight),
                penalty,
                CONE_SMOOTHING,
            )
            yield Instance(
                f"small, λ = {weight:g}",
                False,
                0,
                regularizer,
                denoising(clean, 0),
                clean,
            )


def answer(
    instance: Instance,
    reference: Reference,
    method: str,
    solve: Callable[[Instance], Outcome],
) -> Answer:
    """One method on one instance."""
    begin = time.perf_counter()
    outcome = solve(instance)
    seconds = time.perf_counter() - begin
    return Answer(
        label=instance.label,
        problem=instance.name,
        potential=instance.potential,
        smoothing=instance.smoothing,
        method=method,
        operator_applications=outcome.applications,
        seconds=seconds,
        true_error=float(
            (outcome.gradient - reference.gradient).norm()
            / reference.gradient.norm()
        ),
        bound=outcome.bound,
        warned=outcome.warned,
    )


def methods(
    small: bool, cone: bool
) -> dict[str, Callable[[Instance], Outcome]]:
    """What is asked: cvxpylayers on the small instances only, and only if it is
    there."""
    chosen: dict[str, Callable[[Instance], Outcome]] = {CERTIFIED: certified}
    for change in CHANGES:
        chosen[f"change {change:.0e}"] = lambda instance, change=change: (
            by_change(instance, change)
        )
    if small and cone:
        chosen[CONE] = by_cone
    return chosen


def has_cone() -> bool:
    """Whether cvxpylayers can be imported."""
    try:
        import cvxpylayers.torch.cvxpylayer  # noqa: F401
    except ImportError:
        return False
    return True


def run_answers(
    large: Sequence[Instance],
    small: Sequence[Instance],
    cone: bool,
    console: Console,
) -> list[Answer]:
    """All answers, with a progress bar."""
    plan = [(instance, methods(False, cone)) for instance in large]
    plan += [(instance, methods(True, cone)) for instance in small]
    answers = []
    with progress_bar(console) as bar:
        task = bar.add_task("", total=sum(len(asked) for _, asked in plan))
        for instance, asked in plan:
            bar.update(task, description=instance.label)
            reference = solve_reference(
                instance.regularizer, instance.data, instance.clean
            )
            for method, solve in asked.items():
                answers.append(answer(instance, reference, method, solve))
                bar.advance(task)
    return answers


def show(answers: Sequence[Answer], console: Console) -> None:
    """A table on the terminal."""
    table = Table(
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title_justify="left",
        title=f"a gradient wanted to {WANTED:.0%}; cost in operator applications",
    )
    for name in ("instance", "method", "cost", "true error", "promised"):
        table.add_column(name, no_wrap=True)
    for a, before in zip(answers, [None, *answers[:-1]], strict=True):
        first = before is None or before.label != a.label
        cost = (
            ""
            if math.isnan(a.operator_applications)
            else f"{a.operator_applications:.0f}"
        )
        promised = "nothing" if math.isnan(a.bound) else f"{a.bound:.1e}"
        table.add_row(
            a.label if first else "",
            a.method,
            cost,
            f"{a.true_error:.1e}",
            promised,
        )
    console.print(table)


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(
        "python -m experiments.studies.truth_test",
        "Who delivers a hypergradient that is wanted to 1 percent?",
    )
    parser.add_argument(
        "run",
        type=path,
        nargs="?",
        help="run folder of a trained regularizer (default: shipped)",
    )
    parser.add_argument("--json", type=path, help="write the rows to this file")
    parser.add_argument(
        "--out",
        type=path,
        default=Path("runs/truth"),
        help="folder of the figure",
    )
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
    outputs = Outputs(options.run)
    figures = outputs.json(options.json, ("wanted", "rows"))
    (bars,) = outputs.figures(options.out, ["truth_test.png"])
    cone = has_cone()
    answers = run_answers(large, small, cone, Terminal(stderr=True))
    rows: list[Json] = [asdict(a) for a in answers]
    figures.write_json({"wanted": WANTED, "rows": rows})
    bound_figures.truth_bars([asdict(a) for a in answers], WANTED, bars)
    console = Terminal()
    show(answers, console)
    if not cone:
        console.print(
            "cvxpylayers is not installed: its rows are left out (pip "
            "install 'piggyback-bilevel[oracle]')"
        )
