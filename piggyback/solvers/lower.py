"""What the lower-level algorithms share: the task that they are bound to, the
entry point ``solve_lower``, and a certified distance."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic

import torch

from piggyback.batched import ROUNDING_TERMS, require_same_device
from piggyback.copies import Copyable
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
class SolverTask(Copyable, Generic[ProblemT]):
    """A batch of problems, where to start, and how close to come.

    The solve stops when ``||grad h(x)||_{H^{-1}} <= sqrt(mu) * radius``, which
    bounds ``||x - x*|| <= radius`` up to rounding (docs/theory.md, eq. 10);
    ``certified_distance`` includes the rounding.

    Args:
        problem: the batch of problems.
        start: the first iterate, ``(batch, ...)``.
        radius: the wanted distance to the solution, ``(batch,)``, in the
            Euclidean norm of a whole sample.
    """

    problem: ProblemT
    start: Primal
    radius: PerSample

    def error(self, gradient: Primal) -> PerSample:
        """Distance to the solution over the wanted one, bounded up to the
        rounding of the working precision (eq. 10).

        Args:
            gradient: ``grad h(x)``, ``(batch, ...)``.

        Returns:
            ``(batch,)``; done at or below 1.
        """
        data = self.problem.data
        wanted = data.strong_convexity**0.5 * self.radius
        return data.dual_norm(gradient) / wanted

    def saddle(self, method: str) -> SolverTask[SaddleProblem]:
        """The same task, for a method that needs ``R(x) = f(K x)``.

        Args:
            method: its name, for the message.

        Raises:
            ValueError: for other problems.
        """
        problem = require_saddle(self.problem, method)
        return SolverTask(problem, self.start, self.radius)


class LowerSolver(ABC):
    """A lower-level algorithm: binds to a batch of problems."""

    @abstractmethod
    def bind(self, task: SolverTask[LowerProblem]) -> Iteration:
        """The algorithm on one batch.

        Args:
            task: what is solved, from where, how well.

        Returns:
            The iteration; its result is ``(x,)``.

        Raises:
            ValueError: for a kind of problem that the algorithm cannot take.
        """


def radius_per_element(problem: LowerProblem, tolerance: float) -> PerSample:
    """Radius for a root-mean-square error per element of ``x``.

    Args:
        problem: the batch of problems.
        tolerance: the error, in grey values.

    Returns:
        ``(batch,)``: ``tolerance`` times the root of the number of elements.

    Raises:
        ValueError: for a tolerance that is not positive and finite.
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
    residual in working precision (eq. 10).

    Args:
        problem: the batch of problems; it is detached, and left alone.
        solver: the algorithm.
        radius: the wanted distance to the solution, ``(batch,)``.
        start: the first iterate, ``(batch, ...)``; None: that of the data.
        schedule: when to look and when to give up; None: the default.

    Returns:
        An outcome whose result is ``(x,)``; ``outcome.error * radius`` is the
        measured distance also where the status is not ``CONVERGED``;
        ``certified_distance`` turns it into a bound.

    Raises:
        ValueError: for non-finite or non-positive data, radius and start, an
            empty batch, tensors on several devices, or an operator that is not
            what it says.
    """
    require_kind("the solver", solver, LowerSolver)
    problem = problem.detached()
    problem.check()
    # each refusal names its culprit: the loop would fail far from it
    begin = checked_start(problem, start)
    require_samples(begin)
    require_same_device("start", begin, "the data are", problem.data.start)
    require_same_device("radius", radius, "the data are", problem.data.start)
    _check_radius(radius, begin)
    task = SolverTask(problem, begin, radius)
    with torch.no_grad():
        return iterate(solver.bind(task), schedule or Schedule())


def checked_start(
    problem: LowerProblem, start: Primal | None, name: str = "the start"
) -> Primal:
    """Where to begin (synchronises).

    Args:
        problem: the batch of problems.
        start: ``(batch, ...)``; None: the cold start of the data.
        name: what messages call it.

    Returns:
        The start in the precision of the problem.

    Raises:
        ValueError: for a start of another shape or with NaN or infinite values.
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
    # NaN fails the comparison
    good = (radius > 0) & torch.isfinite(radius)
    if not (radius.is_meta or bool(good.all())):
        worst = float(radius[~good][0])
        raise ValueError(f"the radius must be positive and finite, got {worst}")


def certified_energy(problem: LowerProblem, x: Primal) -> PerSample:
    """A bound of ``||x - x*||_H`` from one residual in float64 (eq. 10);
    rounding included.

    For ``H = B^T B + ridge I`` it bounds the distance in the data, ``||B (x -
    x*)||``, however small the ridge (eq. 28).

    Args:
        problem: the batch of problems.
        x: anything near the solutions, ``(batch, ...)``.

    Returns:
        ``(batch,)`` in float64; infinite for an ``x`` that is NaN or infinite.

    Raises:
        ValueError: for an ``x`` of another shape than the problem.
    """
    # broadcasting would certify one image for another sample
    if x.shape != problem.data.start.shape:
        raise ValueError(
            f"x has shape {tuple(x.shape)}, the problem {tuple(problem.data.start.shape)}"
        )
    problem = problem.double()
    data = problem.data
    with torch.no_grad():
        x = x.double()
        # the size of what was added up, which rounding is proportional to
        gradient, size = problem.gradient_and_rounding(x)
        lost = ROUNDING_TERMS * data.unit_roundoff(x.dtype) * size
        measured = data.dual_norm(gradient)
        # ||d||_{H^{-1}} <= ||d|| / sqrt(mu) for the rounding d of the gradient
        bound = measured + lost / data.strong_convexity**0.5
        # infinity is an honest bound, NaN is none
        return bound.masked_fill(bound.isnan(), math.inf)


def certified_distance(problem: LowerProblem, x: Primal) -> PerSample:
    """A bound of ``||x - x*||``: ``certified_energy`` over the root of the
    strong convexity (eq. 10).

    Args:
        problem: the batch of problems.
        x: anything near the solutions, ``(batch, ...)``.

    Returns:
        ``(batch,)`` in float64.

    Raises:
        ValueError: as ``certified_energy``.
    """
    return certified_energy(problem, x) / problem.data.strong_convexity**0.5
