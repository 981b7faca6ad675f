"""Descents that can be watched: ours, and what it is compared with.

One fixed tolerance, and MAID, the adaptive line search of the literature, see
the plain loss at the computed reconstructions; neither knows the corrected one.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

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
from piggyback.training.bilevel import EACH_STEP, BilevelOracle, BilevelSettings
from piggyback.training.descent import AdaptiveDescent, StopReason
from piggyback.training.oracle import Evaluation
from piggyback.training.samples import Samples
from piggyback.training.search import Pairs, QuasiNewtonSearch
from regularizers.linear import LinearRegularizer


@dataclass(frozen=True)
class DescentCheckpoint:
    """Where a descent stood after so many operator applications per image, and
    what it believed the loss to be."""

    applications: float
    parameters: Tensor
    claimed: float


class WatchedDescent(ABC):
    """A descent that can be watched."""

    @abstractmethod
    def checkpoints(self) -> Iterator[DescentCheckpoint]:
        """The start and every accepted step; ends where the method finds no
        further one."""


class Adaptive(WatchedDescent):
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

    def checkpoints(self) -> Iterator[DescentCheckpoint]:
        state = self.descent.start()
        work = 0.0
        while state.reason is StopReason.RUNNING:
            work += state.work
            yield DescentCheckpoint(
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
        # warm starts, from one solve to the next
        self.x = samples.degraded
        self.adjoint = torch.zeros_like(samples.degraded)

    @property
    def per_image(self) -> float:
        """Applications so far per image."""
        return self.counter.applications / len(self.samples)

    def parameters(self) -> Tensor:
        return parameter_vector(self.regularizer)

    def problem(self, parameters: Tensor) -> SaddleProblem:
        """The lower level at these parameters, its applications counted."""
        assign(self.regularizer, parameters)
        data = Denoising(self.samples.degraded)
        return self.regularizer.problem(data).counted(self.counter)

    def solve(
        self, parameters: Tensor, tolerance: float
    ) -> tuple[float, float]:
        """Mean loss for an RMS error ``tolerance`` of ``x``, and its
        first-order radius from the measured residuals."""
        problem = self.problem(parameters)
        radius = radius_per_element(problem, tolerance)
        outcome = solve_lower(
            problem, EACH_STEP.solver, radius, self.x, EACH_STEP.lower_schedule
        )
        (self.x,) = outcome.result
        value = self.loss.value(self.x).mean()
        # the error of a solve is its residual over the radius that was asked for
        distance = outcome.error * radius
        slope = self.loss.gradient(self.x).flatten(1).norm(dim=1)
        first_order = slope * distance + 0.5 * distance.square()
        return float(value), float(first_order.mean())

    def gradient(self, parameters: Tensor, tolerance: float) -> Tensor:
        """Hypergradient at the last ``x``, the adjoint solved to the relative
        residual ``tolerance``."""
        problem = self.problem(parameters)
        self._solve_adjoint(problem, tolerance)
        surrogate = problem.surrogate(self.x, self.adjoint).mean()
        return flat_gradient(surrogate, list(self.regularizer.parameters()))

    def bounded_gradient(
        self, parameters: Tensor, tolerance: float
    ) -> tuple[Tensor, float]:
        """The same with a bound of its error (our local one, which is the
        smallest there is)."""
        status = self._solve_adjoint(self.problem(parameters), tolerance)
        pair = Sensitivity(self.x, self.adjoint, status, status)
        data = Denoising(self.samples.degraded).double()
        certification = Certification(loss=plain_loss)
        result = certify(
            pose(double_copy(self.regularizer), data, self.loss.double()),
            pair,
            certification,
        )
        count = len(self.samples)
        # certificates are of sums over the samples, the level of their mean
        mean = (result.gradient / count).to(parameters)
        return mean, result.gradient_error / count

    def _solve_adjoint(
        self, problem: SaddleProblem, tolerance: float
    ) -> Tensor:
        system = adjoint_system(
            problem, self.loss, self.x, tolerance, self.adjoint
        )
        solver = EACH_STEP.adjoint(system)
        with torch.no_grad():
            outcome = iterate(solver, EACH_STEP.adjoint_schedule)
        (self.adjoint,) = outcome.result
        return outcome.status


class FixedTolerance(WatchedDescent):
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

    def checkpoints(self) -> Iterator[DescentCheckpoint]:
        current: Evaluation | None = self.evaluate(self.level.parameters())
        pairs: Pairs = ()
        while current is not None:
            yield DescentCheckpoint(
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


WORST_CASE = BilevelSettings(
    certification=Certification(worst_case_bound, plain_loss)
)
"""The bounds of the literature: global constants for the gradient, first order
for the loss."""
