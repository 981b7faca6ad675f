"""Descents that can be watched: ours, and what it is compared with.

One fixed tolerance, and MAID, the adaptive line search of the literature, see
the plain loss at the computed reconstructions; neither knows the corrected one.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from piggyback.certificates.certify import (
    Certification,
    assign,
    certify,
    parameter_vector,
)
from piggyback.certificates.loss import plain_loss
from piggyback.certificates.worst_case import worst_case_bound
from piggyback.hypergradients.implicit import adjoint_system
from piggyback.operators.counting import ApplicationCounter
from piggyback.problems.pair import Accuracy, Sensitivity, flat_gradient
from piggyback.problems.posed import double_copy, pose
from piggyback.problems.saddle import SaddleProblem
from piggyback.solvers.loop import iterate
from piggyback.solvers.lower import radius_per_element, solve_lower
from piggyback.terms.data.denoising import Denoising
from piggyback.terms.losses import SquaredError
from piggyback.training.bilevel import (
    EACH_STEP,
    BilevelOracle,
    BilevelSettings,
    Samples,
)
from piggyback.training.descent import AdaptiveDescent, StopReason
from piggyback.training.oracle import Evaluation
from piggyback.training.search import Pairs, QuasiNewtonSearch
from regularizers.linear import LinearRegularizer


@dataclass(frozen=True)
class Checkpoint:
    """Where a descent stood after so many operator applications per image, and
    what it believed the loss to be."""

    applications: float
    parameters: Tensor
    claimed: float


class Control(ABC):
    """A descent that can be watched."""

    @abstractmethod
    def checkpoints(self) -> Iterator[Checkpoint]:
        """The start and every accepted step; ends where the method finds no
        further one."""


class Adaptive(Control):
    """Our descent, with the certificates of ``settings``."""

    def __init__(
        self,
        regularizer: LinearRegularizer,
        samples: Samples,
        settings: BilevelSettings,
    ) -> None:
        self.images = len(samples)
        self.descent = AdaptiveDescent(
            BilevelOracle(regularizer, samples, settings),
            metric=regularizer.metric(),
        )

    def checkpoints(self) -> Iterator[Checkpoint]:
        state, work = self.descent.start(), 0.0
        while state.reason is StopReason.RUNNING:
            work += state.work
            yield Checkpoint(
                work / self.images,
                state.current.parameters,
                state.current.value,
            )
            state = self.descent.advance(state)


class PlainLevel:
    """The upper level without certificates: mean loss at the computed ``x``,
    warm starts, every application counted."""

    def __init__(
        self, regularizer: LinearRegularizer, samples: Samples
    ) -> None:
        self.regularizer = regularizer
        self.samples = samples
        self.loss = SquaredError(samples.clean)
        self.counter = ApplicationCounter()
        self.x, self.adjoint = (
            samples.degraded,
            torch.zeros_like(samples.degraded),
        )

    @property
    def per_image(self) -> float:
        """Applications so far per image."""
        return self.counter.applications / len(self.samples)

    def parameters(self) -> Tensor:
        return parameter_vector(self.regularizer)

    def _problem(self, parameters: Tensor) -> SaddleProblem:
        assign(self.regularizer, parameters)
        return self.regularizer.problem(
            Denoising(self.samples.degraded)
        ).counted(self.counter)

    def solve(
        self, parameters: Tensor, tolerance: float
    ) -> tuple[float, float]:
        """Mean loss for an RMS error ``tolerance`` of ``x``, and its
        first-order radius from the measured residuals."""
        problem = self._problem(parameters)
        radius = radius_per_element(problem, tolerance)
        outcome = solve_lower(
            problem, EACH_STEP.solver, radius, self.x, EACH_STEP.lower_schedule
        )
        (self.x,) = outcome.result
        distance, slope = (
            outcome.error * radius,
            self.loss.gradient(self.x).flatten(1).norm(dim=1),
        )
        return float(self.loss.value(self.x).mean()), float(
            (slope * distance + 0.5 * distance.square()).mean()
        )

    def gradient(self, parameters: Tensor, tolerance: float) -> Tensor:
        """Hypergradient at the last ``x``, the adjoint solved to the relative
        residual ``tolerance``."""
        problem = self._problem(parameters)
        self._solve_adjoint(problem, tolerance)
        return flat_gradient(
            problem.surrogate(self.x, self.adjoint).mean(),
            list(self.regularizer.parameters()),
        )

    def bounded_gradient(
        self, parameters: Tensor, tolerance: float
    ) -> tuple[Tensor, float]:
        """The same with a bound of its error (our local one, which is the
        smallest there is)."""
        status = self._solve_adjoint(self._problem(parameters), tolerance)
        pair = Sensitivity(self.x, self.adjoint, status, status)
        data, certification = (
            Denoising(self.samples.degraded).double(),
            Certification(loss=plain_loss),
        )
        result = certify(
            pose(double_copy(self.regularizer), data, self.loss.double()),
            pair,
            certification,
        )
        count = len(self.samples)
        return (result.gradient / count).to(
            parameters
        ), result.gradient_error / count

    def _solve_adjoint(
        self, problem: SaddleProblem, tolerance: float
    ) -> Tensor:
        system = adjoint_system(
            problem, self.loss, self.x, tolerance, self.adjoint
        )
        with torch.no_grad():
            outcome = iterate(
                EACH_STEP.adjoint(system), EACH_STEP.adjoint_schedule
            )
        (self.adjoint,) = outcome.result
        return outcome.status


class FixedTolerance(Control):
    """Our quasi-Newton steps in our metric, with Armijo's test on computed
    values, every solve to the same ``accuracy``."""

    def __init__(
        self, level: PlainLevel, accuracy: Accuracy, metric: Tensor
    ) -> None:
        self.level = level
        self.accuracy = accuracy
        self.search = QuasiNewtonSearch(metric)

    def evaluate(self, parameters: Tensor) -> Evaluation:
        """Plain loss and gradient; nothing is promised."""
        value, _ = self.level.solve(parameters, self.accuracy.lower)
        gradient = self.level.gradient(parameters, self.accuracy.adjoint)
        return Evaluation(
            parameters, value, math.inf, gradient, math.inf, 0.0, True
        )

    def checkpoints(self) -> Iterator[Checkpoint]:
        current: Evaluation | None = self.evaluate(self.level.parameters())
        pairs: Pairs = ()
        while current is not None:
            yield Checkpoint(
                self.level.per_image, current.parameters, current.value
            )
            step = self.search.step(self.evaluate, current, pairs)
            # as ours does: once more without the memory
            if step.reached is None and pairs:
                pairs = ()
                step = self.search.step(self.evaluate, current, pairs)
            if step.reached is not None:
                pairs = self.search.remembered(pairs, current, step.reached)
            current = step.reached


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
class Reached:
    """Where a line search of the literature stands: parameters, plain loss, its
    radius, and the next first step (0: none yet)."""

    parameters: Tensor
    value: float
    radius: float
    step: float = 0.0


def steepest(
    level: PlainLevel,
    use: LineSettings,
    at: Reached,
    gradient: Tensor,
    tolerance: float,
    bounds: bool,
) -> Reached | None:
    """A step along minus the ``gradient`` ``z``, backtracked until

        upper(theta - a z) - lower(theta) + armijo a ||z||^2 <= 0 ,

    with the radii that the losses come with, or none without ``bounds``. None
    if no step is found.
    """
    size = float(gradient.norm())
    step = (
        at.step
        if at.step
        else use.first_step * max(float(at.parameters.norm()), 1.0) / size
    )
    for _ in range(use.backtracks):
        ahead = at.parameters - step * gradient
        value, radius = level.solve(ahead, tolerance)
        uncertain = radius + at.radius if bounds else 0.0
        if value - at.value + uncertain + use.armijo * step * size**2 <= 0:
            return Reached(ahead, value, radius, use.lengthen * step)
        step *= use.shorten
    return None


class FixedSteepest(Control):
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

    def checkpoints(self) -> Iterator[Checkpoint]:
        level, tolerance = self.level, self.accuracy.lower
        at: Reached | None = Reached(
            level.parameters(), *level.solve(level.parameters(), tolerance)
        )
        while at is not None:
            yield Checkpoint(level.per_image, at.parameters, at.value)
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


class Maid(Control):
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

    def checkpoints(self) -> Iterator[Checkpoint]:
        use, level = self.settings, self.level
        tolerance = self._first_tolerance()
        at = Reached(
            level.parameters(), *level.solve(level.parameters(), tolerance)
        )
        yield Checkpoint(level.per_image, at.parameters, at.value)
        while tolerance > use.finest:
            gradient, bound = level.bounded_gradient(
                at.parameters, self._relative(tolerance)
            )
            found = None
            if bound <= (1 - use.eta) * float(gradient.norm()):
                found = steepest(
                    level, use.line, at, gradient, tolerance, bounds=True
                )
            if found is None:
                tolerance *= use.tighten
                value, radius = level.solve(at.parameters, tolerance)
                at = replace(at, value=value, radius=radius)
                continue
            at, tolerance = found, tolerance * use.loosen
            yield Checkpoint(level.per_image, at.parameters, at.value)

    def _first_tolerance(self) -> float:
        level = self.level
        with torch.no_grad():
            gradient = level._problem(level.parameters()).gradient(
                level.samples.degraded
            )
        return self.settings.first_tolerance * float(
            gradient.square().mean().sqrt()
        )

    def _relative(self, tolerance: float) -> float:
        """The RMS ``tolerance`` of the adjoint's residual, relative to its
        right-hand side."""
        return tolerance / float(
            self.level.loss.gradient(self.level.x).square().mean().sqrt()
        )


WORST_CASE = BilevelSettings(
    certification=Certification(worst_case_bound, plain_loss)
)
"""The bounds of the literature: global constants for the gradient, first order
for the loss."""
