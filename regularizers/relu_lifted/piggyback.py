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
from regularizers.icnn.layer import Layer
from regularizers.relu_lifted.network import Block
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
    which each point lies in (eq. N14).

    Args:
        lower: the problem, and where it starts.
        loss: of the flat variable.
        steps: sizes of the steps.
        tolerance: relative, of the adjoint.
        warm: an adjoint to start from, flat.
    """

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
        energy = self.task.problem.regularizer
        x = self.task.start
        # the adjoint variable of the iteration is -P
        adjoint_x = -self.warm
        points = energy.points(x)
        y = energy.duals(points)
        adjoint_y = energy.curvature_product(
            energy.pieces(points),
            energy.forward(adjoint_x),
        )
        return self._state(
            x=x,
            adjoint_x=adjoint_x,
            y=energy.layout.pack(y),
            adjoint_y=energy.layout.pack(adjoint_y),
        )

    def step(self, state: PiggybackState) -> PiggybackState:
        problem = self.task.problem
        energy = problem.regularizer
        x, adjoint_x = self._primal_steps(state)
        omega = self.steps.omega
        # one pass for both: a batch twice as large costs less than two
        ahead = torch.cat(
            [
                x + omega * (x - state.x),
                adjoint_x + omega * (adjoint_x - state.adjoint_x),
            ]
        )
        both = dual_argument(
            energy,
            self.steps,
            torch.cat([state.y, state.adjoint_y]),
            energy.forward(ahead),
        )
        # twice the batch: two pairs per sample are counted
        problem.count(ahead)
        y = []
        adjoint_y = []
        for block, layer in zip(both, energy.network.layers, strict=True):
            dual, adjoint_dual = self._dual_steps(block, layer)
            y.append(dual)
            adjoint_y.append(adjoint_dual)
        return self._state(
            x=x,
            adjoint_x=adjoint_x,
            y=energy.layout.pack(y),
            adjoint_y=energy.layout.pack(adjoint_y),
        )

    def _primal_steps(self, state: PiggybackState) -> tuple[Primal, Primal]:
        """Of the variable, and of the adjoint at the new one."""
        problem = self.task.problem
        x = primal_step(
            problem,
            self.steps,
            state.x,
            state.pulled + self.output,
        )
        adjoint_x = adjoint_step(
            problem,
            self.steps,
            state.adjoint_x,
            state.adjoint_pulled + self.loss.gradient(x),
        )
        return x, adjoint_x

    def _dual_steps(self, both: Block, layer: Layer) -> tuple[Block, Block]:
        """Of one layer, from the arguments of the variable and of its adjoint,
        one after the other in the batch."""
        energy = self.task.problem.regularizer
        steps = self.steps
        p, q = both
        z, adjoint_z = p.chunk(2)
        s, adjoint_s = q.chunk(2)
        # the offsets belong to the variable, not to its derivative
        z = z + steps.dual * layer.offset
        dual = dual_prox(energy, steps, (z, s))
        # the cone of the new argument: in the limit that of K x + b
        first, second = remainder(
            cone(z, s, energy.leak),
            adjoint_z,
            adjoint_s,
            energy.leak,
        )
        scale = 1 + steps.dual * energy.smoothing
        return dual, (first / scale, second / scale)

    def _state(
        self, x: Primal, adjoint_x: Primal, y: Tensor, adjoint_y: Tensor
    ) -> PiggybackState:
        energy = self.task.problem.regularizer
        # K^T of both in one pass, kept for the next step
        both = energy.layout.unpack(torch.cat([y, adjoint_y]))
        pulled, adjoint_pulled = energy.adjoint(both).chunk(2)
        return PiggybackState(
            x,
            y,
            adjoint_x,
            adjoint_y,
            pulled,
            adjoint_pulled,
        )

    def errors(self, state: PiggybackState) -> tuple[PerSample, PerSample]:
        problem = self.task.problem
        x, adjoint = self.result(state)
        slope = self.loss.gradient(x)
        # the adjoint system at x, whatever the dual variables are
        gap = slope - problem.hessian(problem.curvature(x), adjoint)
        adjoint_error = relative_residual(
            problem.data,
            gap,
            slope,
            self.tolerance,
        )
        return self.task.error(problem.gradient(x)), adjoint_error


@dataclass(frozen=True)
class ReLULiftedPiggyback(HypergradientMethod):
    """PDHG on the ReLU-lifted form of a piecewise linear network and on its adjoint
    at once; no step constant is chosen by hand.

    The loss is one of the flat variable, usually an ``ImageLoss``.

    Args:
        schedule: when to look at the errors, and when to give up.

    Raises:
        ValueError: (from ``differentiate``) for problems that are not lifted.
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
        # the steps below assume finite and non-negative weights
        lifted.check()
        steps = BlockSteps.balanced(lifted)
        return ReLULiftedPiggybackIteration.solve(
            lifted,
            steps,
            loss,
            accuracy,
            start,
            self.schedule,
        )
