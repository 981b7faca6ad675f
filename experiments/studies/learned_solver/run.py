"""A lower-level solver that learns: start, steps and metric from solved images;
same minimiser and certificate, less work.

python -m experiments.studies.learned_solver [--json FILE]
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Literal

import torch
import torch.nn.functional as nnf
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor

from experiments.studies.learned_solver.solver import (
    FilteredStart,
    LearnedSolver,
    Warped,
    activity,
)
from experiments.studies.shared.instances import (
    BLUR_SIDE,
    BLUR_WEIGHT,
    deblurring,
    denoising,
    scaled,
    trained_regularizer,
)
from piggyback.app.console.command import command
from piggyback.app.console.progress import progress_bar
from piggyback.app.console.runtime import prepare
from piggyback.app.console.terminal import Terminal
from piggyback.app.errors import UserError
from piggyback.app.files.outputs import Outputs
from piggyback.app.images.sources import draw_patches, embedded_photographs
from piggyback.app.options.parser import PATCHES, SIDE, Parser, path, whole
from piggyback.batched import inner, per_sample, safe_divide
from piggyback.operators.counting import ApplicationCounter
from piggyback.operators.preconditioners import Preconditioner
from piggyback.problems.base import LowerProblem
from piggyback.problems.posed import double_copy
from piggyback.problems.saddle import SaddleProblem, UnitForm
from piggyback.solvers.loop import Iteration
from piggyback.solvers.lower import (
    LowerSolver,
    SolverTask,
    certified_distance,
    radius_per_element,
    solve_lower,
)
from piggyback.solvers.nonlinear_cg import NonlinearCG, NonlinearCGIteration
from piggyback.solvers.stopping import Schedule
from piggyback.terms.data.base import DataTerm
from regularizers.linear import LinearRegularizer

Task = Literal["denoise", "deblur"]
TASKS: tuple[Task, ...] = ("denoise", "deblur")
TOLERANCES = (1e-3, 1e-4, 1e-5)
"""RMS errors that are asked for, in grey values."""
PATIENT = Schedule(max_steps=5000, check_every=1)
START_SIDE, KINDS = 9, 8
"""Filters of the learned start, one for each kind of neighbourhood."""
RELAXATIONS = (1.0, 1.2, 1.4, 1.6)
WARP_SIDE, WARP_STEPS, KRYLOV = 5, 30, 8
"""Side of the filter of the metric, and steps of Adam for it, each through so
many conjugate gradients."""
TUNED_ON = 16
"""Training images that relaxation and metric are learned from."""


@dataclass(frozen=True)
class SolverRow:
    """One solver on the test images of a task.

    ``operator_applications`` per image; ``seconds`` for all of them, the
    learned start included; ``certified_rms``: largest certified RMS distance to
    the minimiser; ``difference_rms``: largest RMS difference to a solve that is
    far more exact.
    """

    task: str
    solver: str
    tolerance: float
    operator_applications: float
    seconds: float
    certified_rms: float
    difference_rms: float
    converged: bool


@dataclass(frozen=True, eq=False)
class Case:
    """Problems to learn from (float32) and to be judged by (float64), and their
    minimisers."""

    task: Task
    training: SaddleProblem
    solutions: Tensor
    test: SaddleProblem
    reference: Tensor


@dataclass(frozen=True)
class Learned:
    """A start by one filter, a start by a filter for each kind of pixel, and
    the solver without and with its own metric."""

    linear: FilteredStart
    start: FilteredStart
    relaxed: LearnedSolver
    warped: LearnedSolver


# --- problems -----------------------------------------------------------------


def pose(
    task: Task,
    regularizer: LinearRegularizer,
    side: int,
    patches: int,
    images: int,
) -> Case:
    """Patches of the training photographs to learn from, of the test
    photographs to be judged by."""
    if task == "deblur":
        regularizer = scaled(regularizer, BLUR_WEIGHT)
    training = regularizer.problem(
        observations(task, "train", side, patches)
    ).detached()
    test = (
        double_copy(regularizer)
        .problem(observations(task, "test", side, images).double())
        .detached()
    )
    (reference,) = solve_lower(
        test, NonlinearCG(), radius_per_element(test, 1e-8), schedule=PATIENT
    ).result
    return Case(
        task, training, solved_in_parts(training, 1e-3), test, reference
    )


def observations(
    task: Task, split: Literal["train", "test"], side: int, count: int
) -> DataTerm:
    """Seeded observations; another seed for each split."""
    seed = int(split == "test")
    clean = draw_patches(
        embedded_photographs(split),
        count,
        side,
        torch.Generator().manual_seed(seed),
        1,
    )
    return (
        deblurring(clean, seed) if task == "deblur" else denoising(clean, seed)
    )


def solved_in_parts(
    problem: SaddleProblem, tolerance: float, size: int = 32
) -> Tensor:
    """The minimisers, so many images at a time."""
    parts = []
    for index in torch.arange(problem.data.start.shape[0]).split(size):
        part = problem.select(index)
        parts.append(
            solve_lower(
                part, NonlinearCG(), radius_per_element(part, tolerance)
            ).result[0]
        )
    return torch.cat(parts)


# --- learning -----------------------------------------------------------------


def learn(case: Case) -> Learned:
    """Everything, from the solved training images; relaxation and metric for
    solves that begin at the learned start."""
    problem = case.training
    start = learn_start(problem.data.start, case.solutions, START_SIDE, KINDS)
    few = problem.select(torch.arange(min(TUNED_ON, case.solutions.shape[0])))
    begin = start(few.data)
    relaxed = learn_relaxation(few, begin)
    warp = learn_warp(
        few, begin, case.solutions[: begin.shape[0]], relaxed.floor
    )
    linear = learn_start(problem.data.start, case.solutions, START_SIDE, 1)
    return Learned(linear, start, relaxed, replace(relaxed, taps=warp))


def learn_start(
    data: Tensor, solutions: Tensor, side: int, kinds: int
) -> FilteredStart:
    """Filters by least squares, for equally frequent kinds of pixels of grey
    images; in float64."""
    active = activity(data.double()).flatten()
    edges = torch.quantile(
        active, torch.linspace(0, 1, kinds + 1).double()[1:-1]
    )
    extended = nnf.pad(data.double(), (side // 2,) * 4, mode="reflect")
    windows = (
        nnf.unfold(extended, side).transpose(1, 2).reshape(-1, side * side)
    )
    wanted, kind = solutions.double().flatten(), torch.bucketize(active, edges)
    taps = [
        torch.linalg.lstsq(
            windows[kind == k], wanted[kind == k].unsqueeze(-1)
        ).solution
        for k in range(kinds)
    ]
    return FilteredStart(torch.stack(taps).view(kinds, side, side), edges)


def learn_relaxation(problem: SaddleProblem, start: Tensor) -> LearnedSolver:
    """The relaxation with which the training images need the fewest
    applications."""
    solvers = [LearnedSolver(relaxation) for relaxation in RELAXATIONS]
    radius = radius_per_element(problem, 1e-3)
    work = [
        float(solve_lower(problem, solver, radius, start, PATIENT).steps.sum())
        for solver in solvers
    ]
    return solvers[min(range(len(solvers)), key=work.__getitem__)]


def learn_warp(
    problem: SaddleProblem, start: Tensor, solution: Tensor, floor: float
) -> Tensor:
    """Taps ``(k, k)`` of ``Q``: what is left of the error, in the energy norm,
    after a few conjugate gradients is differentiated.

    The systems are ``A(x*) d = A(x*) (start - x*)``, the preconditioner is the
    one that a solve begins with.
    """
    energy = problem.in_units()
    base = energy.preconditioner(
        energy.penalty.slope_secant_curvature(energy.arguments(start))[1], start
    )
    curvature, error = problem.curvature(solution), start - solution
    taps = torch.zeros(WARP_SIDE, WARP_SIDE, dtype=start.dtype)
    taps[WARP_SIDE // 2, WARP_SIDE // 2] = 1.0
    taps.requires_grad_()
    optimizer = torch.optim.Adam([taps], lr=0.02)
    for _ in range(WARP_STEPS):
        optimizer.zero_grad()
        left = conjugate_gradients(
            lambda v: problem.hessian(curvature, v),
            Warped(base, taps, floor).apply,
            error,
        )
        left.log().mean().backward()
        optimizer.step()
    return taps.detach()


def conjugate_gradients(
    hessian: Callable[[Tensor], Tensor],
    metric: Callable[[Tensor], Tensor],
    x: Tensor,
) -> Tensor:
    """``<x, A x>`` ``(batch,)`` after a few preconditioned steps on ``A x =
    0``, with their graph."""
    residual = -hessian(x)
    direction = step = metric(residual)
    energy = inner(residual, step)
    for _ in range(KRYLOV):
        image = hessian(direction)
        alpha = per_sample(safe_divide(energy, inner(direction, image)), x)
        x, residual = x + alpha * direction, residual - alpha * image
        step = metric(residual)
        before, energy = energy, inner(residual, step)
        direction = (
            step + per_sample(safe_divide(energy, before), x) * direction
        )
    return inner(x, -residual)


# --- the limit ----------------------------------------------------------------


class InverseMatrices(Preconditioner):
    """One matrix ``(batch, n, n)`` per image of ``n`` numbers."""

    def __init__(self, matrices: Tensor) -> None:
        self.matrices = matrices

    def apply(self, v: Tensor) -> Tensor:
        return (self.matrices @ v.reshape(v.shape[0], -1, 1)).view_as(v)

    def select(self, index: Tensor) -> Preconditioner:
        return InverseMatrices(self.matrices[index])


@dataclass(frozen=True)
class FixedForm(UnitForm):
    """The same energy, preconditioned by ``metric`` wherever the solver is."""

    metric: Preconditioner = field(kw_only=True)

    def preconditioner(self, curvature: Tensor, like: Tensor) -> Preconditioner:
        return self.metric

    def select(self, index: Tensor) -> FixedForm:
        return replace(super().select(index), metric=self.metric.select(index))  # pyright: ignore[reportReturnType]


@dataclass(frozen=True)
class ExactMetric(LowerSolver):
    """The default solver in a metric that nobody has before the problem is
    solved: what learned ones are measured by."""

    metric: Preconditioner

    def bind(self, lower: SolverTask[LowerProblem]) -> Iteration:
        level = lower.saddle("ExactMetric")
        energy = level.problem.in_units()
        parts = {
            part.name: getattr(energy, part.name) for part in fields(UnitForm)
        }
        return NonlinearCGIteration(
            level, FixedForm(**parts, metric=self.metric)
        )


def exact_metric(problem: SaddleProblem, solution: Tensor) -> Preconditioner:
    """The inverse Hessian at the minimisers, dense; for small images."""
    shape, n = solution.shape[1:], solution[0].numel()
    unit, inverses = torch.eye(n, dtype=solution.dtype).view(n, *shape), []
    for index in torch.arange(solution.shape[0]).split(1):
        one = problem.select(index)
        curvature = one.curvature(solution[index])
        columns = [
            one.hessian(
                curvature.expand(len(part), *curvature.shape[1:]), part
            ).reshape(len(part), n)
            for part in unit.split(128)
        ]
        inverses.append(torch.linalg.inv(torch.cat(columns)))
    return InverseMatrices(torch.stack(inverses))


# --- judging ------------------------------------------------------------------


def run(
    case: Case,
    name: str,
    solver: LowerSolver,
    begin: Callable[[DataTerm], Tensor] | None,
    tolerance: float,
) -> SolverRow:
    """Solve the test images and look at what came out; the faster of two times."""
    radius, seconds = radius_per_element(case.test, tolerance), []
    for _ in range(2):
        counter = ApplicationCounter()
        since = time.perf_counter()
        start = None if begin is None else begin(case.test.data)
        outcome = solve_lower(
            case.test.counted(counter), solver, radius, start, PATIENT
        )
        seconds.append(time.perf_counter() - since)
    (x,) = outcome.result
    root = x[0].numel() ** 0.5
    return SolverRow(
        task=case.task,
        solver=name,
        tolerance=tolerance,
        operator_applications=counter.applications / x.shape[0],
        seconds=min(seconds),
        certified_rms=float(certified_distance(case.test, x).max()) / root,
        difference_rms=float((x - case.reference).flatten(1).norm(dim=1).max())
        / root,
        converged=outcome.converged,
    )


def compare(
    case: Case,
    learned: Learned,
    tolerances: Sequence[float],
    limit: bool = False,
) -> list[SolverRow]:
    """The default solver, cold, and what each learned part makes of it; with
    ``limit`` also with the best of all metrics."""
    rows: list[tuple[str, LowerSolver, Callable[[DataTerm], Tensor] | None]] = [
        ("default", NonlinearCG(), None),
        ("learned steps", learned.relaxed, None),
        ("learned steps, metric", learned.warped, None),
        ("learned start, one filter", NonlinearCG(), learned.linear),
        ("learned start", NonlinearCG(), learned.start),
        ("learned start, steps", learned.relaxed, learned.start),
        ("learned start, steps, metric", learned.warped, learned.start),
    ]
    if limit:
        newton = ExactMetric(exact_metric(case.test, case.reference))
        rows += [
            ("exact metric", newton, None),
            ("learned start, exact metric", newton, learned.start),
        ]
    return [
        run(case, name, solver, begin, tolerance)
        for tolerance in tolerances
        for name, solver, begin in rows
    ]


def show(rows: Sequence[SolverRow], console: Console) -> None:
    """One line per solver and task; for each tolerance operator applications
    per image, and seconds for all images."""
    tolerances = sorted({row.tolerance for row in rows}, reverse=True)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("task", "solver"):
        table.add_column(name, no_wrap=True)
    for tolerance in tolerances:
        table.add_column(f"{tolerance:.0e}", justify="right")
        table.add_column("s", justify="right")
    for task, solver in dict.fromkeys((row.task, row.solver) for row in rows):
        own = [row for row in rows if (row.task, row.solver) == (task, solver)]
        cells = [
            text
            for row in own
            for text in (
                f"{row.operator_applications:.1f}",
                f"{row.seconds:.2f}",
            )
        ]
        table.add_row(task, solver, *cells)
    console.print(table)
    worst = max(row.certified_rms / row.tolerance for row in rows)
    console.print(
        f"certified RMS distance to the minimiser over the tolerance: at most {worst:.4f}"
    )


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(
        "python -m experiments.studies.learned_solver",
        "Learn to solve the lower level.",
    )
    parser.add_argument(
        "--run",
        type=path,
        help="run folder of a linear model (default: the packaged denoiser)",
    )
    parser.add_argument("--json", type=path, help="write the rows to this file")
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
    figures = Outputs(options.run).json(options.json, ("rows",))
    rows: list[SolverRow] = []
    with progress_bar(Terminal(stderr=True)) as bar:
        progress = bar.add_task("", total=3 * len(TASKS))
        for task in TASKS:
            bar.update(progress, description=f"{task}: solving training images")
            case = pose(
                task, regularizer, options.side, options.patches, options.images
            )
            bar.update(progress, description=f"{task}: learning", advance=1)
            learned = learn(case)
            bar.update(progress, description=f"{task}: testing", advance=1)
            rows += compare(case, learned, TOLERANCES, options.limit)
            bar.advance(progress)
    figures.write_json({"rows": [asdict(row) for row in rows]})
    show(rows, Terminal())
