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
    observed = problem.data.start
    start = learn_start(observed, case.solutions, START_SIDE, KINDS)
    # solves are dear, and a relaxation and a metric are few numbers
    count = min(TUNED_ON, case.solutions.shape[0])
    few = problem.select(torch.arange(count))
    begin = start(few.data)
    relaxed = learn_relaxation(few, begin)
    warp = learn_warp(few, begin, case.solutions[:count], relaxed.floor)
    linear = learn_start(observed, case.solutions, START_SIDE, 1)
    return LearnedParts(linear, start, relaxed, replace(relaxed, taps=warp))


def learn_start(
    data: Tensor, solutions: Tensor, side: int, kinds: int
) -> FilteredStart:
    """Filters by least squares, for equally frequent kinds of pixels of grey
    images; in float64.

    Args:
        data: what a solve would begin with, ``(batch, 1, height, width)``, in
            grey values.
        solutions: the minimisers, of the same shape.
        side: of the filters, in pixels; odd.
        kinds: of pixels, by their activity; one filter for each.

    Returns:
        The start.
    """
    observed = data.double()
    active = activity(observed).flatten()
    # quantiles: each kind has as many pixels to learn from
    shares = torch.linspace(0, 1, kinds + 1).double()
    edges = torch.quantile(active, shares[1:-1])
    kind = torch.bucketize(active, edges)
    windows = _windows(observed, side)
    wanted = solutions.double().flatten().unsqueeze(-1)
    taps = []
    for index in range(kinds):
        own = kind == index
        fitted = torch.linalg.lstsq(windows[own], wanted[own])
        taps.append(fitted.solution)
    return FilteredStart(torch.stack(taps).view(kinds, side, side), edges)


def _windows(images: Tensor, side: int) -> Tensor:
    """The surroundings of every pixel, ``(pixels, side^2)``."""
    extended = nnf.pad(images, (side // 2,) * 4, mode="reflect")
    columns = nnf.unfold(extended, side)
    return columns.transpose(1, 2).reshape(-1, side * side)


def learn_relaxation(problem: SaddleProblem, start: Tensor) -> LearnedSolver:
    """The relaxation with which the training images need the fewest
    applications."""
    solvers = [LearnedSolver(relaxation) for relaxation in RELAXATIONS]
    radius = radius_per_element(problem, 1e-3)
    work = []
    for solver in solvers:
        outcome = solve_lower(problem, solver, radius, start, PATIENT)
        work.append(float(outcome.steps.sum()))
    return solvers[work.index(min(work))]


def learn_warp(
    problem: SaddleProblem, start: Tensor, solution: Tensor, floor: float
) -> Tensor:
    """Taps ``(k, k)`` of ``Q``: what is left of the error, in the energy norm,
    after a few conjugate gradients is differentiated.

    The systems are ``A(x*) d = A(x*) (start - x*)``, the preconditioner is the
    one that a solve begins with.
    """
    energy = problem.in_units()
    arguments = energy.arguments(start)
    _, secant, *_ = energy.penalty.slope_secant_curvature(arguments)
    base = energy.preconditioner(secant, start)
    curvature = problem.curvature(solution)
    error = start - solution
    # a single tap of 1 changes nothing: it begins with the metric as it is
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
        # the logarithm: images that are hard and easy to solve count alike
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
        length = safe_divide(energy, inner(direction, image))
        alpha = per_sample(length, x)
        x = x + alpha * direction
        residual = residual - alpha * image
        step = metric(residual)
        before = energy
        energy = inner(residual, step)
        beta = per_sample(safe_divide(energy, before), x)
        direction = step + beta * direction
    # the residual is -A x
    return inner(x, -residual)
