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
    ``K^T Y`` (eq. 7)."""

    x: Primal
    y: Dual
    adjoint_x: Primal
    adjoint_y: Dual
    pulled: Primal
    adjoint_pulled: Primal


class PairIteration(Iteration[PiggybackState], Generic[P, T]):
    """A saddle problem and its adjoint side by side, by primal-dual ``steps``;
    the result is ``(x, P)``.

    Args:
        lower: problem, start and radius of the solution.
        loss: upper-level loss of the primal variable.
        steps: step lengths.
        tolerance: of the adjoint, relative.
        warm: where the adjoint starts, ``(batch, ...)``.
    """

    def __init__(
        self,
        lower: SolverTask[P],
        loss: Loss,
        steps: T,
        tolerance: float,
        warm: Primal,
    ) -> None:
        self.task = lower
        self.loss = loss
        self.steps = steps
        self.tolerance = tolerance
        self.warm = warm

    @abstractmethod
    def errors(self, state: PiggybackState) -> tuple[PerSample, PerSample]:
        """Residuals of the two systems with the duals eliminated, over their
        tolerances.

        Args:
            state: of the iteration.
        """

    def error(self, state: PiggybackState) -> PerSample:
        # one loop stops for both: the slower system decides
        return torch.maximum(*self.errors(state))

    def result(self, state: PiggybackState) -> tuple[Primal, Primal]:
        # X solves the adjoint saddle problem, whose right-hand side is -grad l
        return state.x, -state.adjoint_x

    def select(self, index: Tensor) -> PairIteration[P, T]:
        return type(self)(
            lower=self.task.select(index),
            loss=self.loss.select(index),
            # step lengths are those of the operator, which all samples share
            steps=self.steps,
            tolerance=self.tolerance,
            warm=self.warm[index],
        )

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
        """The pair to the accuracy.

        Args:
            problem: outside any graph.
            steps: step lengths.
            loss: upper-level loss of the primal variable.
            accuracy: of both systems.
            start: None: that of the data term, and a zero adjoint.
            schedule: how often it looks, and how long it may take.
        """
        loss.check()
        x = checked_start(
            problem,
            None if start is None else start.x,
        )
        warm = torch.zeros_like(x)
        if start is not None:
            warm = checked_start(
                problem, start.adjoint, "the start of the adjoint"
            )
        with torch.no_grad():
            # the iteration itself never reads a value
            checked_slope(loss, x)
            radius = radius_per_element(problem, accuracy.lower)
            lower = SolverTask(problem, x, radius)
            pair = cls(
                lower,
                loss,
                steps,
                accuracy.adjoint,
                warm,
            )
            outcome = iterate(pair, schedule)
        x, adjoint = outcome.result
        # one iteration, which ends when both systems are solved
        return Sensitivity(x, adjoint, outcome.status, outcome.status)


class PiggybackIteration(PairIteration[SaddleProblem, Steps]):
    """Eq. 7 of docs/theory.md; ``K`` and ``K^T`` see both problems in one
    batched call."""

    def start(self) -> PiggybackState:
        x = self.task.start
        # the adjoint saddle problem has the solution X = -P
        adjoint_x = -self.warm
        y, adjoint_y = self.task.problem.duals(x, adjoint_x)
        return self._pulled(x, y, adjoint_x, adjoint_y)

    def step(self, state: PiggybackState) -> PiggybackState:
        problem = self.task.problem
        tau = self.steps.tau
        sigma = self.steps.sigma
        omega = self.steps.omega
        x = problem.data.prox(
            state.x - tau * state.pulled,
            tau,
        )
        # at the new x: the adjoint follows the solution, not its past
        slope = self.loss.gradient(x)
        # the adjoint problem is quadratic; the derivative of the prox is the
        # resolvent of H
        adjoint_x = problem.data.resolvent(
            state.adjoint_x - tau * (state.adjoint_pulled + slope), tau
        )
        ahead = x + omega * (x - state.x)
        adjoint_ahead = adjoint_x + omega * (adjoint_x - state.adjoint_x)
        both = torch.cat([ahead, adjoint_ahead])
        image, adjoint_image = problem.operator.forward(both).chunk(2)
        # the dual step and its derivative, which is the dual step of the
        # adjoint
        y, derivative = problem.potential.conjugate_prox_and_derivative(
            state.y + sigma * image, sigma
        )
        adjoint_y = derivative * (state.adjoint_y + sigma * adjoint_image)
        return self._pulled(x, y, adjoint_x, adjoint_y)

    def _pulled(
        self, x: Primal, y: Dual, adjoint_x: Primal, adjoint_y: Dual
    ) -> PiggybackState:
        """The state with ``K^T`` of both duals, in one call."""
        both = torch.cat([y, adjoint_y])
        pulled, adjoint_pulled = self.task.problem.operator.adjoint(both).chunk(
            2
        )
        return PiggybackState(
            x, y, adjoint_x, adjoint_y, pulled, adjoint_pulled
        )

    def errors(self, state: PiggybackState) -> tuple[PerSample, PerSample]:
        problem = self.task.problem
        x, adjoint = self.result(state)
        slope = self.loss.gradient(x)
        # the duals of the iteration lag behind (x, P): their residuals would
        # say nothing of the pair that is returned
        gradient, gap = problem.residuals(x, adjoint, slope)
        missing = relative_residual(
            problem.data,
            gap,
            slope,
            self.tolerance,
        )
        return self.task.error(gradient), missing


@dataclass(frozen=True)
class Piggyback(HypergradientMethod):
    """PDHG on the saddle problem and on its adjoint at once (Bogensperger,
    Chambolle, Pock 2022).

    A look at the residuals costs one extra pair per variable, hence the longer
    interval between looks (eq. 7).

    Args:
        schedule: how often it looks, and how long it may take.
    """

    capabilities = Capabilities(
        name="piggyback",
        formula="(x, y) and (X, Y) by the same primal–dual steps; y⊗X + Y⊗x",
        smoothness=Smoothness.CURVATURE,
        # f'' is evaluated in the derivative of the prox, no system is
        # multiplied by
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
        # the iteration needs the dual variable; other problems have none
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
