"""A lower-level solver that learns: start, first steps and preconditioner from solved images; same minimiser, less work.

python -m experiments.learned_solver [--json FILE]
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as nnf
from jsonargparse import ArgumentParser
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor

from experiments.data import draw_patches, embedded_photographs
from experiments.errors import one_line_errors, require_positive
from experiments.instances import BLUR_WEIGHT, deblurring, denoising, scaled, starting_regularizer
from experiments.run_folder import write_json
from experiments.runtime import prepare
from piggyback.operators import ApplicationCounter, Preconditioner, ScalarPreconditioner
from piggyback.problem import SaddleProblem
from piggyback.solve import Schedule
from piggyback.solvers.gradient import step_length
from piggyback.solvers.learned import LearnedSolver, SquaredFilter
from piggyback.solvers.lower import LowerSolver, certified_distance, radius_per_element, solve_lower
from piggyback.solvers.nonlinear_cg import NonlinearCG

FLOOR, LEARNING_STEPS = 1e-3, 300
PATIENT = Schedule(max_steps=5000, check_every=1)


@dataclass(frozen=True)
class SolverRow:
    """One solver on the test images of a task.

    ``operator_applications`` per image; ``certified_rms``: largest certified RMS distance to the minimiser; ``difference_rms``:
    largest RMS difference to a solve that is far more exact.
    """

    task: str
    solver: str
    operator_applications: float
    certified_rms: float
    difference_rms: float
    converged: bool


@dataclass(frozen=True, eq=False)
class Case:
    """Problems to learn from and to be judged by, their observations, and the minimisers of the latter."""

    task: str
    training: SaddleProblem
    test: SaddleProblem
    observed: Tensor
    test_observed: Tensor
    reference: Tensor


@dataclass(frozen=True)
class Learned:
    """A filter ``(k, k)`` that maps noisy images to starts, and a solver."""

    start: Tensor
    solver: LearnedSolver


def patches_of(data: Tensor, size: int) -> Tensor:
    """All windows of reflected images, ``(pixels, size^2)``."""
    extended = nnf.pad(data, (size // 2,) * 4, mode="reflect")
    return nnf.unfold(extended, size).transpose(1, 2).reshape(-1, size * size)


def filtered(data: Tensor, taps: Tensor) -> Tensor:
    """Every channel correlated with ``taps``."""
    return (patches_of(data, taps.shape[-1]) @ taps.flatten()).view_as(data)


def learn(problem: SaddleProblem, data: Tensor, size: int, steps: int) -> Learned:
    """From solved grey images: the start by least squares, ``P`` on points of stored trajectories, lengths one by one."""
    (solution,) = solve_lower(problem, NonlinearCG(), radius_per_element(problem, 1e-6), schedule=PATIENT).result
    taps = torch.linalg.lstsq(patches_of(data, size), solution.flatten().unsqueeze(-1)).solution.view(size, size)
    start = filtered(data, taps)
    preconditioner = learn_preconditioner(problem, trajectory(problem, start), size)
    return Learned(taps, LearnedSolver(preconditioner, learn_lengths(problem, preconditioner, start, solution, steps)))


def trajectory(problem: SaddleProblem, start: Tensor) -> list[Tensor]:
    """Points along solves without a preconditioner."""
    one = LearnedSolver(ScalarPreconditioner(torch.ones((), dtype=start.dtype)))
    radius, points = radius_per_element(problem, 1e-6), []
    for count in (0, 3, 8):
        schedule = Schedule(max_steps=count, check_every=1)
        points.append(solve_lower(problem, one, radius, start, schedule).result[0])
    return points


def learn_preconditioner(problem: SaddleProblem, points: list[Tensor], size: int) -> SquaredFilter:
    """Taps of ``Q`` such that ``P A(x) v`` is close to ``v``, for random ``v`` and the Hessians at points of trajectories."""
    generator = torch.Generator().manual_seed(0)
    probes = [torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in points]
    curvatures = [problem.potential.curvature(problem.operator.forward(x)) for x in points]
    images = torch.cat([problem.hessian(d, v) for d, v in zip(curvatures, probes, strict=True)])
    taps = torch.zeros(size, size, dtype=images.dtype)
    taps[size // 2, size // 2] = float(step_length(problem)) ** 0.5
    taps.requires_grad_()
    optimizer = torch.optim.Adam([taps], lr=0.02)
    for _ in range(LEARNING_STEPS):
        optimizer.zero_grad()
        (SquaredFilter(taps, FLOOR).apply(images) - torch.cat(probes)).square().mean().backward()
        optimizer.step()
    return SquaredFilter(taps.detach(), FLOOR)


def learn_lengths(
    problem: SaddleProblem, preconditioner: Preconditioner, x: Tensor, solution: Tensor, steps: int
) -> tuple[float, ...]:
    """Each length brings the training images as close to their solutions as its step can."""
    lengths = []
    for _ in range(steps):
        direction = preconditioner.apply(problem.gradient(x))
        length = float(((x - solution) * direction).sum() / direction.square().sum())
        x = x - length * direction
        lengths.append(length)
    return tuple(lengths)


def run(case: Case, name: str, solver: LowerSolver, start: Tensor | None, tolerance: float) -> SolverRow:
    """Solve the test images and look at what came out."""
    counter = ApplicationCounter()
    radius = radius_per_element(case.test, tolerance)
    outcome = solve_lower(case.test.counted(counter), solver, radius, start, PATIENT)
    (x,) = outcome.result
    root = x[0].numel() ** 0.5
    return SolverRow(
        case.task,
        name,
        counter.applications / x.shape[0],
        float(certified_distance(case.test, x).max()) / root,
        float((x - case.reference).flatten(1).norm(dim=1).max()) / root,
        outcome.converged,
    )


def pose(task: str, side: int, images: int, filters: int) -> Case:
    """Patches of the training photographs to learn from, of the test photographs to be judged by."""
    regularizer = starting_regularizer(filters, 5, 1)
    if task == "deblur":
        regularizer = scaled(regularizer, BLUR_WEIGHT)
    problems, observed = [], []
    splits: tuple[Literal["train", "test"], ...] = ("train", "test")
    for seed, split in enumerate(splits):
        generator = torch.Generator().manual_seed(seed)
        clean = draw_patches(embedded_photographs(split), images, side, generator, 1)
        data = deblurring(clean, seed) if task == "deblur" else denoising(clean, seed)
        problems.append(copy.deepcopy(regularizer).double().problem(data.double()).detached())
        observed.append(data.observed.double())
    radius = radius_per_element(problems[1], 1e-9)
    (reference,) = solve_lower(problems[1], NonlinearCG(), radius, schedule=PATIENT).result
    return Case(task, problems[0], problems[1], observed[0], observed[1], reference)


def compare(case: Case, steps: int, tolerance: float) -> list[SolverRow]:
    """The solvers with and without what was learned."""
    learned = learn(case.training, case.observed, 7, steps)
    start = filtered(case.test_observed, learned.start)
    plain = LearnedSolver(ScalarPreconditioner(torch.ones((), dtype=start.dtype)))
    steered = LearnedSolver(learned.solver.preconditioner)
    rows: Sequence[tuple[str, LowerSolver, Tensor | None]] = (
        ("nothing", plain, None),
        ("learned start", plain, start),
        ("learned P", steered, None),
        ("learned start, P", steered, start),
        ("learned start, steps, P", learned.solver, start),
        ("default solver", NonlinearCG(), None),
        ("default, learned start", NonlinearCG(), start),
    )
    return [run(case, name, solver, begin, tolerance) for name, solver, begin in rows]


@one_line_errors()
def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    parser = ArgumentParser(prog="python -m experiments.learned_solver", description="Learn to solve the lower level.")
    parser.add_argument("--json", type=Path | None, help="write the rows to this file")
    parser.add_argument("--side", type=int, default=24, help="pixels per side of the patches")
    parser.add_argument("--images", type=int, default=8, help="patches to learn from, and as many to test on")
    parser.add_argument("--filters", type=int, default=6)
    parser.add_argument("--steps", type=int, default=3, help="learned steps")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="RMS error, grey values")
    options = parser.parse_args(arguments)
    require_positive(side=options.side, images=options.images, filters=options.filters, steps=options.steps)
    prepare(threads=1)
    rows: list[SolverRow] = []
    for task in ("denoise", "deblur"):
        rows += compare(pose(task, options.side, options.images, options.filters), options.steps, options.tolerance)
    table = Table("task", "solver", "cost", "certified RMS", "difference RMS", box=SIMPLE_HEAD)
    for row in rows:
        table.add_row(
            row.task,
            row.solver,
            f"{row.operator_applications:.1f}",
            f"{row.certified_rms:.1e}",
            f"{row.difference_rms:.1e}",
        )
    Console().print(table)
    if options.json is not None:
        write_json(options.json, {"rows": [asdict(row) for row in rows]})


if __name__ == "__main__":
    main()
