"""Piggyback: the adjoint saddle problem rides on the primal-dual iterations of
the lower level."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from piggyback.hypergradients.base import HypergradientMethod
from piggyback.hypergradients.capabilities import (
    Capabilities,
    Guarantee,
    Memory,
    Smoothness,
)
from piggyback.problems.base import LowerProblem
from piggyback.problems.pair import (
    Accuracy,
    Sensitivity,
    WarmStart,
    checked_slope,
)
from piggyback.problems.saddle import SaddleProblem, require_saddle
from piggyback.solvers.linear import relative_residual
from piggyback.solvers.loop import Iteration, State, iterate
from piggyback.solvers.lower import (
    SolverTask,
    checked_start,
    radius_per_element,
)
from piggyback.solvers.pdhg import Steps
from piggyback.solvers.stopping import Schedule
from piggyback.terms.losses import Loss
from piggyback.types import Dual, PerSample, Primal

P = TypeVar("P", bound=LowerProblem)
T = TypeVar("T")


@dataclass(frozen=True)
class PiggybackState(State):
    """``(x, y)``, the adjoint pair ``(X, Y)`` with ``X -> -P``, and ``K^T y``,
    ``K^T Y``."""

    x: Primal
    y: Dual
    adjoint_x: Primal
    adjoint_y: Dual
    pulled: Primal
    adjoint_pulled: Primal


class PairIteration(Iteration[PiggybackState], Generic[P, T]):
    """A saddle problem and its adjoint side by side, by primal-dual ``steps``;
    the result is ``(x, P)``."""

    def __init__(
        self,
        lower: SolverTask[P],
        loss: Loss,
        steps: T,
        tolerance: float,
        warm: Primal,
    ) -> None:
        self.lower = lower
        self.loss = loss
        self.steps = steps
        self.tolerance = tolerance
        self.warm = warm

    @abstractmethod
    def errors(self, state: PiggybackState) -> tuple[PerSample, PerSample]:
        """Residuals of the two systems with the duals eliminated, over their
        tolerances."""

    def error(self, state: PiggybackState) -> PerSample:
        return torch.maximum(*self.errors(state))

    def result(self, state: PiggybackState) -> tuple[Primal, Primal]:
        return state.x, -state.adjoint_x

    def select(self, index: Tensor) -> PairIteration[P, T]:
        lower, loss, warm = (
            self.lower.select(index),
            self.loss.select(index),
            self.warm[index],
        )
        return type(self)(lower, loss, self.steps, self.tolerance, warm)

    @classmethod
    def solve(
        cls,
        problem: P,
        steps: T,
        loss: Loss,
        accuracy: Accuracy,
        start: WarmStart | None,
        schedule: Schedule,
    ) -> Sensitivity:
        """The pair to the ``accuracy``, from ``start`` (None: that of the data
        term)."""
        loss.check()
        x = checked_start(problem, None if start is None else start.x)
        warm = (
            torch.zeros_like(x)
            if start is None
            else checked_start(
                problem, start.adjoint, "the start of the adjoint"
            )
        )
        with torch.no_grad():
            checked_slope(loss, x)
            lower = SolverTask(
                problem, x, radius_per_element(problem, accuracy.lower)
            )
            outcome = iterate(
                cls(lower, loss, steps, accuracy.adjoint, warm), schedule
            )
        x, adjoint = outcome.result
        return Sensitivity(x, adjoint, outcome.status, outcome.status)


class PiggybackIteration(PairIteration[SaddleProblem, Steps]):
    """Eq. 7 of docs/theory.md; ``K`` and ``K^T`` see both problems in one
    batched call."""

    def start(self) -> PiggybackState:
        problem, x, adjoint_x = self.lower.problem, self.lower.start, -self.warm
        y, adjoint_y = problem.duals(x, adjoint_x)
        pulled, adjoint_pulled = problem.operator.adjoint(
            torch.cat([y, adjoint_y])
        ).chunk(2)
        return PiggybackState(
            x, y, adjoint_x, adjoint_y, pulled, adjoint_pulled
        )

    def step(self, state: PiggybackState) -> PiggybackState:
        problem, steps = self.lower.problem, self.steps
        x = problem.data.prox(state.x - steps.tau * state.pulled, steps.tau)
        slope = self.loss.gradient(x)
        adjoint_x = problem.data.resolvent(
            state.adjoint_x - steps.tau * (state.adjoint_pulled + slope),
            steps.tau,
        )
        ahead = torch.cat(
            [
                x + steps.omega * (x - state.x),
                adjoint_x + steps.omega * (adjoint_x - state.adjoint_x),
            ]
        )
        image, adjoint_image = problem.operator.forward(ahead).chunk(2)
        y, derivative = problem.potential.conjugate_prox_and_derivative(
            state.y + steps.sigma * image, steps.sigma
        )
        adjoint_y = derivative * (state.adjoint_y + steps.sigma * adjoint_image)
        pulled, adjoint_pulled = problem.operator.adjoint(
            torch.cat([y, adjoint_y])
        ).chunk(2)
        return PiggybackState(
            x, y, adjoint_x, adjoint_y, pulled, adjoint_pulled
        )

    def errors(self, state: PiggybackState) -> tuple[PerSample, PerSample]:
        problem = self.lower.problem
        x, adjoint = self.result(state)
        slope = self.loss.gradient(x)
        # the duals of the iteration lag behind (x, P): their residuals would
        # say nothing of the pair that is returned
        gradient, gap = problem.residuals(x, adjoint, slope)
        missing = relative_residual(problem.data, gap, slope, self.tolerance)
        return self.lower.error(gradient), missing


@dataclass(frozen=True)
class Piggyback(HypergradientMethod):
    """PDHG on the saddle problem and on its adjoint at once (Bogensperger,
    Chambolle, Pock 2022).

    A look at the residuals costs one extra pair per variable, hence the longer
    interval between looks.
    """

    capabilities = Capabilities(
        name="piggyback",
        formula="(x, y) and (X, Y) by the same primal–dual steps; y⊗X + Y⊗x",
        smoothness=Smoothness.CURVATURE,
        hessian_products=False,
        strong_convexity=True,
        memory=Memory.CONSTANT,
        guarantee=Guarantee.CERTIFIED,
        error="to the tolerance, certified",
        cost="2 per primal–dual step",
    )

    schedule: Schedule = Schedule(max_steps=20000, check_every=10)

    def differentiate(
        self,
        problem: LowerProblem,
        loss: Loss,
        accuracy: Accuracy,
        start: WarmStart | None = None,
    ) -> Sensitivity:
        problem = require_saddle(problem, "Piggyback").detached()
        problem.check()
        return PiggybackIteration.solve(
            problem,
            Steps.optimal(problem),
            loss,
            accuracy,
            start,
            self.schedule,
        )
