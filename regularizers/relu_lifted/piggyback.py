"""Piggyback on the ReLU-lifted saddle form: the adjoint saddle problem rides on the
block-wise primal-dual steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from piggyback.hypergradients.base import HypergradientMethod
from piggyback.hypergradients.capabilities import (
    Capabilities,
    Guarantee,
    Memory,
    Smoothness,
)
from piggyback.hypergradients.piggyback import PairIteration, PiggybackState
from piggyback.problems.base import LowerProblem
from piggyback.problems.pair import Accuracy, Sensitivity, WarmStart
from piggyback.solvers.linear import relative_residual
from piggyback.solvers.lower import SolverTask
from piggyback.solvers.stopping import Schedule
from piggyback.terms.epigraph import cone, remainder
from piggyback.terms.losses import Loss
from piggyback.types import PerSample, Primal
from regularizers.relu_lifted.primal_dual import (
    BlockSteps,
    adjoint_step,
    dual_argument,
    dual_prox,
    primal_step,
)
from regularizers.relu_lifted.problem import (
    ReLULiftedProblem,
    require_relu_lifted,
)


class ReLULiftedPiggybackIteration(
    PairIteration[ReLULiftedProblem, BlockSteps]
):
    """Eq. 7 block by block; the derivative of the dual prox is that of the cone
    which each point lies in (eq. N14)."""

    def __init__(
        self,
        lower: SolverTask[ReLULiftedProblem],
        loss: Loss,
        steps: BlockSteps,
        tolerance: float,
        warm: Primal,
    ) -> None:
        super().__init__(lower, loss, steps, tolerance, warm)
        self.output = lower.problem.regularizer.output(lower.start)

    def start(self) -> PiggybackState:
        energy, x, adjoint_x = (
            self.lower.problem.regularizer,
            self.lower.start,
            -self.warm,
        )
        points = energy.points(x)
        y = energy.layout.pack(energy.duals(points))
        adjoint_y = energy.layout.pack(
            energy.bent(energy.pieces(points), energy.forward(adjoint_x))
        )
        return self._state(x, adjoint_x, y, adjoint_y)

    def step(self, state: PiggybackState) -> PiggybackState:
        problem, steps = self.lower.problem, self.steps
        energy = problem.regularizer
        x = primal_step(problem, steps, state.x, state.pulled + self.output)
        slope = self.loss.gradient(x)
        adjoint_x = adjoint_step(
            problem, steps, state.adjoint_x, state.adjoint_pulled + slope
        )
        ahead = torch.cat(
            [
                x + steps.omega * (x - state.x),
                adjoint_x + steps.omega * (adjoint_x - state.adjoint_x),
            ]
        )
        both = dual_argument(
            energy,
            steps,
            torch.cat([state.y, state.adjoint_y]),
            energy.forward(ahead),
        )
        problem.count(ahead)
        y, adjoint_y, scale = [], [], 1 + steps.dual * energy.smoothing
        for (p, q), layer in zip(both, energy.network.layers, strict=True):
            (z, turned_z), (s, turned_s) = p.chunk(2), q.chunk(2)
            z = z + steps.dual * layer.offset
            y.append(dual_prox(energy, steps, (z, s)))
            first, second = remainder(
                cone(z, s, energy.leak), turned_z, turned_s, energy.leak
            )
            adjoint_y.append((first / scale, second / scale))
        return self._state(
            x, adjoint_x, energy.layout.pack(y), energy.layout.pack(adjoint_y)
        )

    def _state(
        self, x: Primal, adjoint_x: Primal, y: Tensor, adjoint_y: Tensor
    ) -> PiggybackState:
        energy = self.lower.problem.regularizer
        pulled, adjoint_pulled = energy.adjoint(
            energy.layout.unpack(torch.cat([y, adjoint_y]))
        ).chunk(2)
        return PiggybackState(
            x, y, adjoint_x, adjoint_y, pulled, adjoint_pulled
        )

    def errors(self, state: PiggybackState) -> tuple[PerSample, PerSample]:
        problem, (x, adjoint) = self.lower.problem, self.result(state)
        slope = self.loss.gradient(x)
        gap = slope - problem.hessian(problem.curvature(x), adjoint)
        return self.lower.error(problem.gradient(x)), relative_residual(
            problem.data, gap, slope, self.tolerance
        )


@dataclass(frozen=True)
class ReLULiftedPiggyback(HypergradientMethod):
    """PDHG on the ReLU-lifted form of a piecewise linear network and on its adjoint
    at once; no step constant is chosen by hand.

    The loss is one of the flat variable, usually an ``ImageLoss``. Raises
    ``ValueError`` for problems that are not lifted.
    """

    capabilities = Capabilities(
        name="relu-lifted-piggyback",
        formula="piggyback on image, hidden layers and their duals, one step per block",
        smoothness=Smoothness.CURVATURE,
        hessian_products=False,
        strong_convexity=True,
        memory=Memory.CONSTANT,
        guarantee=Guarantee.CERTIFIED,
        error="to the tolerance, certified",
        cost="2 per primal–dual step",
    )

    schedule: Schedule = Schedule(max_steps=20000, check_every=20, patience=200)

    def differentiate(
        self,
        problem: LowerProblem,
        loss: Loss,
        accuracy: Accuracy,
        start: WarmStart | None = None,
    ) -> Sensitivity:
        lifted = require_relu_lifted(problem.detached(), "ReLULiftedPiggyback")
        lifted.check()
        steps = BlockSteps.balanced(lifted)
        return ReLULiftedPiggybackIteration.solve(
            lifted, steps, loss, accuracy, start, self.schedule
        )
