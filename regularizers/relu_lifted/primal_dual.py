"""PDHG on the ReLU-lifted saddle form, with one step per block (docs/theory.md, eq.
N11)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from piggyback.problems.base import LowerProblem
from piggyback.solvers.loop import Iteration, State
from piggyback.solvers.lower import LowerSolver, SolverTask
from piggyback.terms.epigraph import project
from piggyback.types import PerSample, Primal, Scalar
from regularizers.relu_lifted.network import Block, ReLULiftedEnergy
from regularizers.relu_lifted.problem import (
    ReLULiftedProblem,
    require_relu_lifted,
)


@dataclass(frozen=True)
class BlockSteps:
    """Primal steps of the image and of the hidden layers, the dual step, and
    the extrapolation (eq. 6, block by block)."""

    image: Scalar
    hidden: Scalar
    dual: Scalar
    omega: Scalar

    @staticmethod
    def balanced(problem: ReLULiftedProblem) -> BlockSteps:
        """``tau_x = m/(2 mu)``, ``tau_s = m/(2 ridge)``, ``sigma = m/(2
        smoothing)``: eq. 6 after scaling to unit moduli.

        ``m = 2 / ||smoothing^{-1/2} K diag(mu, ridge)^{-1/2}||``. No constant
        is chosen by hand.
        """
        data, energy = problem.data, problem.regularizer
        m = (2 / energy.norm(data)).to(data.start)
        return BlockSteps(
            m / (2 * data.base.strong_convexity),
            m / (2 * data.ridge),
            m / (2 * energy.smoothing),
            1 / (1 + m),
        )

    @staticmethod
    def uniform(problem: ReLULiftedProblem) -> BlockSteps:
        """One primal step for everything, from the smaller modulus: what eq. 6
        says without scaling (for comparison)."""
        data, energy = problem.data, problem.regularizer
        m = 2 * (data.strong_convexity / problem.stiffness()).sqrt().to(
            data.start
        )
        tau = m / (2 * data.strong_convexity)
        return BlockSteps(tau, tau, m / (2 * energy.smoothing), 1 / (1 + m))


@dataclass(frozen=True)
class ReLULiftedState(State):
    """The primal variable, the flat dual variable, and ``K^T y``."""

    x: Primal
    y: Tensor
    pulled: Primal


@dataclass(frozen=True)
class ReLULiftedPrimalDual(LowerSolver):
    """PDHG on ``(x, s)`` and the pairs of dual variables; ``steps`` says how
    its steps follow from the problem."""

    steps: Callable[[ReLULiftedProblem], BlockSteps] = field(
        default=BlockSteps.balanced
    )

    def bind(self, lower: SolverTask[LowerProblem]) -> Iteration:
        problem = require_relu_lifted(lower.problem, "ReLULiftedPrimalDual")
        return ReLULiftedIteration(
            SolverTask(problem, lower.start, lower.radius), self.steps(problem)
        )


class ReLULiftedIteration(Iteration[ReLULiftedState]):
    """The iteration on one batch."""

    def __init__(
        self, lower: SolverTask[ReLULiftedProblem], steps: BlockSteps
    ) -> None:
        self.lower = lower
        self.steps = steps
        self.output = lower.problem.regularizer.output(lower.start)

    def start(self) -> ReLULiftedState:
        energy, x = self.lower.problem.regularizer, self.lower.start
        y = energy.duals(energy.points(x))
        return ReLULiftedState(x, energy.layout.pack(y), energy.adjoint(y))

    def step(self, state: ReLULiftedState) -> ReLULiftedState:
        problem, steps = self.lower.problem, self.steps
        energy = problem.regularizer
        x = primal_step(problem, steps, state.x, state.pulled + self.output)
        ahead = dual_argument(
            energy,
            steps,
            state.y,
            energy.points(x + steps.omega * (x - state.x)),
        )
        y = [dual_prox(energy, steps, block) for block in ahead]
        problem.count(x)
        return ReLULiftedState(x, energy.layout.pack(y), energy.adjoint(y))

    def error(self, state: ReLULiftedState) -> PerSample:
        return self.lower.error(self.lower.problem.gradient(state.x))

    def result(self, state: ReLULiftedState) -> tuple[Primal, ...]:
        return (state.x,)

    def select(self, index: Tensor) -> ReLULiftedIteration:
        return ReLULiftedIteration(self.lower.select(index), self.steps)


def primal_step(
    problem: ReLULiftedProblem, steps: BlockSteps, x: Primal, slope: Primal
) -> Primal:
    """The prox of ``g + ridge/2 |s|^2`` at ``x - tau slope``, block by block."""
    data = problem.data
    image, hidden = _moved(problem, steps, x, slope)
    return data.layout.join(data.base.prox(image, steps.image), hidden)


def adjoint_step(
    problem: ReLULiftedProblem, steps: BlockSteps, x: Primal, slope: Primal
) -> Primal:
    """Its derivative, applied to ``x - tau slope``."""
    data = problem.data
    image, hidden = _moved(problem, steps, x, slope)
    return data.layout.join(data.base.resolvent(image, steps.image), hidden)


def _moved(
    problem: ReLULiftedProblem, steps: BlockSteps, x: Primal, slope: Primal
) -> tuple[Primal, list[Tensor]]:
    """The image before its prox, and the hidden layers after theirs."""
    layout, shrink = problem.layout, 1 + steps.hidden * problem.data.ridge
    (image, hidden), (down, turns) = layout.split(x), layout.split(slope)
    return image - steps.image * down, [
        (s - steps.hidden * turn) / shrink
        for s, turn in zip(hidden, turns, strict=True)
    ]


def dual_argument(
    energy: ReLULiftedEnergy,
    steps: BlockSteps,
    y: Tensor,
    ahead: Sequence[Block],
) -> list[Block]:
    """``y + sigma w``."""
    pairs = zip(energy.layout.unpack(y), ahead, strict=True)
    return [
        (torch.add(p, steps.dual * z), torch.add(q, steps.dual * s))
        for (p, q), (z, s) in pairs
    ]


def dual_prox(
    energy: ReLULiftedEnergy, steps: BlockSteps, block: Block
) -> Block:
    """``prox_{sigma f*}``, ``f* = support function + smoothing/2 |.|^2``: by
    Moreau ``(v - Pi v) / (1 + sigma smoothing)``, the epigraph being a cone."""
    p, q = block
    first, second = project(p, q, energy.leak)
    scale = 1 + steps.dual * energy.smoothing
    return (p - first) / scale, (q - second) / scale
