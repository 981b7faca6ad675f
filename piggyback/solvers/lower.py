"""What the lower-level algorithms share: the stopping measure, the entry point
``solve_lower``, and a certified distance."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Generic

import torch
from torch import Tensor

from piggyback.batched import ROUNDING_TERMS, require_same_device
from piggyback.problems.base import LowerProblem, ProblemT
from piggyback.problems.saddle import SaddleProblem, require_saddle
from piggyback.solvers.loop import Iteration, iterate
from piggyback.solvers.stopping import Outcome, Schedule
from piggyback.types import PerSample, Primal
from piggyback.values import (
    first_bad_sample,
    require_kind,
    require_positive,
    require_samples,
)


@dataclass(frozen=True)
class SolverTask(Generic[ProblemT]):
    """A batch of problems, where to start, and how close to come.

    ``radius`` ``(batch,)``: the solve stops when ``||grad h(x)||_{H^{-1}} <=
    sqrt(mu) * radius``, which bounds ``||x - x*|| <= radius`` up to rounding
    (docs/theory.md, eq. 10); ``certified_distance`` includes the rounding.
    """

    problem: ProblemT
    start: Primal
    radius: PerSample

    def error(self, gradient: Primal) -> PerSample:
        """Distance to the solution over the wanted one, bounded up to the
        rounding of the working precision."""
        return self.problem.data.dual_norm(gradient) / (
            self.problem.data.strong_convexity**0.5 * self.radius
        )

    def select(self, index: Tensor) -> SolverTask[ProblemT]:
        return replace(
            self,
            problem=self.problem.select(index),
            start=self.start[index],
            radius=self.radius[index],
        )

    def saddle(self, method: str) -> SolverTask[SaddleProblem]:
        """The same level, for a ``method`` that needs ``R(x) = f(K x)``; raises
        ``ValueError`` for other problems."""
        return SolverTask(
            require_saddle(self.problem, method), self.start, self.radius
        )


class LowerSolver(ABC):
    """A lower-level algorithm: binds to a batch of problems."""

    @abstractmethod
    def bind(self, lower: SolverTask[LowerProblem]) -> Iteration:
        """The iteration; its result is ``(x,)``."""


def radius_per_element(problem: LowerProblem, tolerance: float) -> PerSample:
    """Radius for a root-mean-square error of ``tolerance`` grey values per
    element of ``x``.

    Raises ``ValueError`` for a tolerance that is not positive and finite.
    """
    require_positive("the tolerance", tolerance)
    like = problem.data.start
    elements = like.shape[1:].numel()
    return torch.full(
        (like.shape[0],),
        tolerance * elements**0.5,
        dtype=like.dtype,
        device=like.device,
    )


def solve_lower(
    problem: LowerProblem,
    solver: LowerSolver,
    radius: PerSample,
    start: Primal | None = None,
    schedule: Schedule | None = None,
) -> Outcome:
    """Solve every problem of the batch until ``||x - x*|| <= radius`` by the
    residual in working precision.

    Returns an ``Outcome`` whose result is ``(x,)``; ``outcome.error * radius``
    is the measured distance also where the status is not ``CONVERGED``;
    ``certified_distance`` turns it into a bound.

    Raises ``ValueError`` for non-finite or non-positive data, radius and start,
    or an operator that is not what it says.
    """
    require_kind("the solver", solver, LowerSolver)
    problem = problem.detached()
    problem.check()
    begin = checked_start(problem, start)
    require_samples(begin)
    require_same_device("start", begin, "the data are", problem.data.start)
    require_same_device("radius", radius, "the data are", problem.data.start)
    _check_radius(radius, begin)
    with torch.no_grad():
        return iterate(
            solver.bind(SolverTask(problem, begin, radius)),
            schedule or Schedule(),
        )


def checked_start(
    problem: LowerProblem, start: Primal | None, name: str = "the start"
) -> Primal:
    """Where to begin: ``start``, in the precision of the problem, or the cold
    start of the data for None.

    Raises ``ValueError`` for a start of another shape or with NaN or infinite
    values (synchronises).
    """
    cold = problem.data.start
    if start is None:
        return cold
    if start.shape != cold.shape:
        raise ValueError(
            f"{name} has shape {tuple(start.shape)}, the problem {tuple(cold.shape)}"
        )
    bad = first_bad_sample(start)
    if bad is not None:
        raise ValueError(
            f"{name}: sample {bad} of the batch has NaN or infinite values"
        )
    return start.to(cold.dtype)


def _check_radius(radius: PerSample, like: Primal) -> None:
    if radius.shape != like.shape[:1]:
        raise ValueError(
            "the radius needs one number per sample, shape "
            f"({like.shape[0]},), got {tuple(radius.shape)}"
        )
    good = (radius > 0) & torch.isfinite(radius)
    if not (radius.is_meta or bool(good.all())):
        worst = float(radius[~good][0])
        raise ValueError(f"the radius must be positive and finite, got {worst}")


def certified_energy(problem: LowerProblem, x: Primal) -> PerSample:
    """A bound of ``||x - x*||_H`` per sample, from one residual in float64 (eq.
    10); rounding included.

    For ``H = B^T B + ridge I`` it bounds the distance in the data, ``||B (x -
    x*)||``, however small the ridge (eq. 28). Infinite for an ``x`` that is NaN
    or infinite. Raises ``ValueError`` for one of another shape than the
    problem.
    """
    # broadcasting would certify one image for another sample
    if x.shape != problem.data.start.shape:
        raise ValueError(
            f"x has shape {tuple(x.shape)}, the problem {tuple(problem.data.start.shape)}"
        )
    problem = problem.double()
    with torch.no_grad():
        x = x.double()
        gradient, size = problem.gradient_and_rounding(x)
        lost = ROUNDING_TERMS * problem.data.unit_roundoff(x.dtype) * size
        bound = (
            problem.data.dual_norm(gradient)
            + lost / problem.data.strong_convexity**0.5
        )
        return bound.masked_fill(bound.isnan(), math.inf)


def certified_distance(problem: LowerProblem, x: Primal) -> PerSample:
    """A bound of ``||x - x*||`` per sample: ``certified_energy`` over the root
    of the strong convexity (eq. 10)."""
    return certified_energy(problem, x) / problem.data.strong_convexity**0.5
