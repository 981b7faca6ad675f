"""What is learned: a start, a relaxation, a metric."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as nnf
from torch import Tensor

from experiments.studies.learned_solver.problems import (
    PATIENT,
    SolvedTask,
)
from experiments.studies.learned_solver.solver import (
    FilteredStart,
    LearnedSolver,
    Warped,
    activity,
)
from piggyback.batched import inner, per_sample, safe_divide
from piggyback.problems.saddle import SaddleProblem
from piggyback.solvers.lower import (
    radius_per_element,
    solve_lower,
)

START_SIDE, KINDS = 9, 8
"""Filters of the learned start, one for each kind of neighbourhood."""

RELAXATIONS = (1.0, 1.2, 1.4, 1.6)

WARP_SIDE, WARP_STEPS, KRYLOV = 5, 30, 8
"""Side of the filter of the metric, and steps of Adam for it, each through so
many conjugate gradients."""

TUNED_ON = 16
"""Training images that relaxation and metric are learned from."""


@dataclass(frozen=True)
class LearnedParts:
    """A start by one filter, a start by a filter for each kind of pixel, and
    the solver without and with its own metric."""

    linear: FilteredStart
    start: FilteredStart
    relaxed: LearnedSolver
    warped: LearnedSolver


def learn(case: SolvedTask) -> LearnedParts:
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
    return LearnedParts(linear, start, relaxed, replace(relaxed, taps=warp))


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
