"""Steepest descent with the line search of the literature: at fixed tolerances,
and MAID."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from experiments.studies.compare_descents.controls import (
    DescentCheckpoint,
    PlainLevel,
    WatchedDescent,
)
from piggyback.problems.pair import Accuracy


@dataclass(frozen=True)
class LineSettings:
    """The line search of the literature, constants of its author's later code
    (Salehi, Mukherjee, Roberts, Ehrhardt 2025).

    ``shorten``/``lengthen`` of the step, ``armijo``, ``backtracks`` of one
    search, ``first_step`` over ``max(||theta||, 1) / ||z||``.
    """

    shorten: float = 0.5
    lengthen: float = 1.2
    armijo: float = 0.1
    backtracks: int = 20
    first_step: float = 0.01


@dataclass(frozen=True)
class LinePoint:
    """Where a line search of the literature stands: parameters, plain loss, its
    radius, and the next first step (0: none yet)."""

    parameters: Tensor
    value: float
    radius: float
    step: float = 0.0


def steepest(
    level: PlainLevel,
    use: LineSettings,
    at: LinePoint,
    gradient: Tensor,
    tolerance: float,
    bounds: bool,
) -> LinePoint | None:
    """A step along minus the ``gradient`` ``z``, backtracked until

        upper(theta - a z) - lower(theta) + armijo a ||z||^2 <= 0 ,

    with the radii that the losses come with, or none without ``bounds``. None
    if no step is found.
    """
    size = float(gradient.norm())
    step = at.step
    if not step:
        reach = max(float(at.parameters.norm()), 1.0)
        step = use.first_step * reach / size
    for _ in range(use.backtracks):
        ahead = at.parameters - step * gradient
        value, radius = level.solve(ahead, tolerance)
        uncertain = radius + at.radius if bounds else 0.0
        wanted = use.armijo * step * size**2
        if value - at.value + uncertain + wanted <= 0:
            return LinePoint(ahead, value, radius, use.lengthen * step)
        step *= use.shorten
    return None


class FixedSteepest(WatchedDescent):
    """Steepest descent by that line search, every solve to the same
    ``accuracy``, losses taken at their word."""

    def __init__(
        self,
        level: PlainLevel,
        accuracy: Accuracy,
        line: LineSettings | None = None,
    ) -> None:
        self.level = level
        self.accuracy = accuracy
        self.line = line if line is not None else LineSettings()

    def checkpoints(self) -> Iterator[DescentCheckpoint]:
        level = self.level
        tolerance = self.accuracy.lower
        start = level.parameters()
        at: LinePoint | None = LinePoint(start, *level.solve(start, tolerance))
        while at is not None:
            yield DescentCheckpoint(level.per_image, at.parameters, at.value)
            gradient = level.gradient(at.parameters, self.accuracy.adjoint)
            at = steepest(
                level, self.line, at, gradient, tolerance, bounds=False
            )


@dataclass(frozen=True)
class MaidSettings:
    """The rest of MAID's constants: ``tighten``/``loosen`` of the tolerance,
    ``eta`` of the descent test, ``first_tolerance`` over the RMS of ``grad h``
    at the observation, ``finest`` RMS tolerance, where it gives up.
    """

    line: LineSettings = LineSettings()
    tighten: float = 0.5
    loosen: float = 1.1
    eta: float = 0.5
    first_tolerance: float = 0.02
    finest: float = 1e-7


class Maid(WatchedDescent):
    """Steepest descent whose tolerance ``eps`` (RMS of ``x`` and of the
    adjoint's residual) follows its bounds.

    The gradient ``z`` must have a bound below ``(1 - eta) ||z||``; steps by
    ``steepest``, with first-order bounds of the plain loss.
    """

    def __init__(
        self, level: PlainLevel, settings: MaidSettings | None = None
    ) -> None:
        self.level = level
        self.settings = settings if settings is not None else MaidSettings()

    def checkpoints(self) -> Iterator[DescentCheckpoint]:
        use = self.settings
        level = self.level
        tolerance = self._first_tolerance()
        start = level.parameters()
        at = LinePoint(start, *level.solve(start, tolerance))
        yield DescentCheckpoint(level.per_image, at.parameters, at.value)
        while tolerance > use.finest:
            gradient, bound = level.bounded_gradient(
                at.parameters, self._relative(tolerance)
            )
            found = None
            if bound <= (1 - use.eta) * float(gradient.norm()):
                found = steepest(
                    level, use.line, at, gradient, tolerance, bounds=True
                )
            # an uncertain direction or a failed search: both ask for more
            # accuracy at the same parameters
            if found is None:
                tolerance *= use.tighten
                value, radius = level.solve(at.parameters, tolerance)
                at = replace(at, value=value, radius=radius)
                continue
            at = found
            tolerance *= use.loosen
            yield DescentCheckpoint(level.per_image, at.parameters, at.value)

    def _first_tolerance(self) -> float:
        level = self.level
        problem = level.problem(level.parameters())
        with torch.no_grad():
            gradient = problem.gradient(level.samples.degraded)
        size = float(gradient.square().mean().sqrt())
        return self.settings.first_tolerance * size

    def _relative(self, tolerance: float) -> float:
        """The RMS ``tolerance`` of the adjoint's residual, relative to its
        right-hand side."""
        right = self.level.loss.gradient(self.level.x)
        return tolerance / float(right.square().mean().sqrt())
