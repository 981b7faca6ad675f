"""A lower-level solver that learns: start, first steps and preconditioner from solved images; same minimiser, less work.

python -m experiments.learned_solver [--json FILE]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as nnf
from jsonargparse import ArgumentParser
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor

from experiments.data import add_noise, draw_patches, embedded_photographs
from experiments.errors import one_line_errors, require_positive
from experiments.instances import NOISE, starting_regularizer
from experiments.run_folder import write_json
from experiments.runtime import prepare
from piggyback.operators import ApplicationCounter, Preconditioner, ScalarPreconditioner
from piggyback.problem import SaddleProblem
from piggyback.solve import Schedule
from piggyback.solvers.learned import LearnedSolver, SquaredFilter
from piggyback.solvers.lower import LowerSolver, certified_distance, radius_per_element, solve_lower
from piggyback.solvers.nonlinear_cg import NonlinearCG
from piggyback.terms.quadratic import Denoising

FLOOR = 1e-3
PATIENT = Schedule(max_steps=5000, check_every=1)


@dataclass(frozen=True)
class SolverRow:
    """One solver on the test images of a task.

    ``operator_applications`` per image; ``certified_rms``: largest certified RMS distance to the minimiser; ``difference_rms``: largest
    RMS difference to a solve that is far more exact.
    """

    solver: str
    operator_applications: float
    certified_rms: float
    difference_rms: float
    converged: bool


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
    preconditioner = learn_preconditioner(*trajectory(problem, start, solution), size)
    return Learned(taps, LearnedSolver(preconditioner, learn_lengths(problem, preconditioner, start, solution, steps)))


def trajectory(problem: SaddleProblem, start: Tensor, solution: Tensor) -> tuple[Tensor, Tensor]:
    """Errors ``x - x*`` and gradients at a few points along solves without a preconditioner."""
    errors, gradients = [], []
    one = LearnedSolver(ScalarPreconditioner(torch.ones((), dtype=start.dtype)))
    for count in (0, 2, 5, 10, 20):
        schedule = Schedule(max_steps=count, check_every=1)
        (x,) = solve_lower(problem, one, radius_per_element(problem, 1e-6), start, schedule).result
        errors.append(x - solution)
        gradients.append(problem.gradient(x))
    return torch.cat(errors), torch.cat(gradients)


def learn_preconditioner(errors: Tensor, gradients: Tensor, size: int) -> SquaredFilter:
    """Taps of ``Q`` such that ``P grad h(x)`` is close to ``x - x*``, relative to its size (a warped gradient)."""
    scale = errors.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1).clamp(min=1e-12)
    errors, gradients = errors / scale, gradients / scale
    taps = torch.zeros(size, size, dtype=errors.dtype)
    taps[size // 2, size // 2] = 0.5
    taps.requires_grad_()
    optimizer = torch.optim.Adam([taps], lr=0.02)
    for _ in range(200):
        optimizer.zero_grad()
        (SquaredFilter(taps, FLOOR).apply(gradients) - errors).square().sum().backward()
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


def run(
    name: str, problem: SaddleProblem, solver: LowerSolver, start: Tensor | None, tolerance: float, reference: Tensor
) -> SolverRow:
    """Solve the test images and look at what came out."""
    counter = ApplicationCounter()
    radius = radius_per_element(problem, tolerance)
    outcome = solve_lower(problem.counted(counter), solver, radius, start, PATIENT)
    (x,) = outcome.result
    root = x[0].numel() ** 0.5
    return SolverRow(
        name,
        counter.applications / x.shape[0],
        float(certified_distance(problem, x).max()) / root,
        float((x - reference).flatten(1).norm(dim=1).max()) / root,
        outcome.converged,
    )


def compare(side: int, images: int, filters: int, steps: int, tolerance: float) -> list[SolverRow]:
    """Learn on patches of the training photographs, solve patches of the test photographs."""
    regularizer = starting_regularizer(filters, 5, 1).double()
    noisy = []
    for seed, split in enumerate(("train", "test")):
        generator = torch.Generator().manual_seed(seed)
        clean = draw_patches(embedded_photographs(split), images, side, generator, 1)
        noisy.append(add_noise(clean, NOISE, generator).double())
    training, test = (regularizer.problem(Denoising(data)).detached() for data in noisy)
    learned = learn(training, noisy[0], 7, steps)
    (reference,) = solve_lower(test, NonlinearCG(), radius_per_element(test, 1e-9), schedule=PATIENT).result
    start = filtered(noisy[1], learned.start)
    plain = LearnedSolver(ScalarPreconditioner(torch.ones((), dtype=start.dtype)))
    steered = LearnedSolver(learned.solver.preconditioner)
    rows: Sequence[tuple[str, LowerSolver, Tensor | None]] = (
        ("no preconditioner", plain, None),
        ("learned start", plain, start),
        ("learned preconditioner", steered, None),
        ("learned start and preconditioner", steered, start),
        ("learned start, steps and preconditioner", learned.solver, start),
        ("circulant preconditioner (the default solver)", NonlinearCG(), None),
        ("the default solver from the learned start", NonlinearCG(), start),
    )
    return [run(name, test, solver, begin, tolerance, reference) for name, solver, begin in rows]


@one_line_errors()
def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    parser = ArgumentParser(prog="python -m experiments.learned_solver", description="Learn to solve the lower level.")
    parser.add_argument("--json", type=Path | None, help="write the rows to this file")
    parser.add_argument("--side", type=int, default=32, help="pixels per side of the patches")
    parser.add_argument("--images", type=int, default=8, help="patches to learn from, and as many to test on")
    parser.add_argument("--filters", type=int, default=6)
    parser.add_argument("--steps", type=int, default=3, help="learned steps")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="RMS error, grey values")
    options = parser.parse_args(arguments)
    require_positive(side=options.side, images=options.images, filters=options.filters, steps=options.steps)
    prepare(threads=1)
    rows = compare(options.side, options.images, options.filters, options.steps, options.tolerance)
    table = Table("solver", "applications", "certified RMS", "difference RMS", box=SIMPLE_HEAD)
    for row in rows:
        table.add_row(
            row.solver, f"{row.operator_applications:.1f}", f"{row.certified_rms:.1e}", f"{row.difference_rms:.1e}"
        )
    Console().print(table)
    if options.json is not None:
        write_json(options.json, {"rows": [asdict(row) for row in rows]})


if __name__ == "__main__":
    main()
