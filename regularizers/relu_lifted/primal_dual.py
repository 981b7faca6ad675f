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
    """Step sizes, block by block (eq. 6).

    Args:
        image: primal step of the image.
        hidden: primal step of the hidden layers.
        dual: dual step.
        omega: extrapolation.
    """

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

        Args:
            problem: gives the moduli and the norm.
        """
        data = problem.data
        energy = problem.regularizer
        # the norm is a bound: steps may be too short, never too long
        m = (2 / energy.norm(data)).to(data.start)
        return BlockSteps(
            image=m / (2 * data.base.strong_convexity),
            hidden=m / (2 * data.ridge),
            dual=m / (2 * energy.smoothing),
            omega=1 / (1 + m),
        )

    @staticmethod
    def uniform(problem: ReLULiftedProblem) -> BlockSteps:
        """One primal step for everything, from the smaller modulus: what eq. 6
        says without scaling (for comparison).

        Args:
            problem: gives the modulus and the stiffness.
        """
        data = problem.data
        ratio = data.strong_convexity / problem.stiffness()
        m = 2 * ratio.sqrt().to(data.start)
        tau = m / (2 * data.strong_convexity)
        return BlockSteps(
            image=tau,
            hidden=tau,
            dual=m / (2 * problem.regularizer.smoothing),
            omega=1 / (1 + m),
        )


@dataclass(frozen=True)
class ReLULiftedState(State):
    """Where the iteration is.

    Args:
        x: flat primal variable, ``(batch, n)``.
        y: flat dual variable, ``(batch, 2 n_hidden)``.
        pulled: ``K^T y``, which the next step needs.
    """

    x: Primal
    y: Tensor
    pulled: Primal


@dataclass(frozen=True)
class ReLULiftedPrimalDual(LowerSolver):
    """PDHG on ``(x, s)`` and the pairs of dual variables (eqs. 6 and N11).

    Args:
        steps: how the step sizes follow from the problem.
    """

    steps: Callable[[ReLULiftedProblem], BlockSteps] = field(
        default=BlockSteps.balanced
    )

    def bind(self, lower: SolverTask[LowerProblem]) -> Iteration:
        problem = require_relu_lifted(lower.problem, "ReLULiftedPrimalDual")
        task = SolverTask(problem, lower.start, lower.radius)
        return ReLULiftedIteration(task, self.steps(problem))


class ReLULiftedIteration(Iteration[ReLULiftedState]):
    """The iteration on one batch.

    Args:
        lower: the problem, and where it starts.
        steps: sizes of the steps.
    """

    def __init__(
        self, lower: SolverTask[ReLULiftedProblem], steps: BlockSteps
    ) -> None:
        self.task = lower
        self.steps = steps
        self.output = lower.problem.regularizer.output(lower.start)

    def start(self) -> ReLULiftedState:
        energy = self.task.problem.regularizer
        x = self.task.start
        # the dual variables that belong to it: nothing is gained from zeros
        y = energy.duals(energy.points(x))
        return ReLULiftedState(x, energy.layout.pack(y), energy.adjoint(y))

    def step(self, state: ReLULiftedState) -> ReLULiftedState:
        problem = self.task.problem
        energy = problem.regularizer
        steps = self.steps
        slope = state.pulled + self.output
        x = primal_step(problem, steps, state.x, slope)
        # where the dual step looks: ahead of the primal one (eq. 6)
        extrapolated = x + steps.omega * (x - state.x)
        ahead = energy.points(extrapolated)
        arguments = dual_argument(energy, steps, state.y, ahead)
        y = [dual_prox(energy, steps, block) for block in arguments]
        problem.count(x)
        return ReLULiftedState(
            x=x,
            y=energy.layout.pack(y),
            pulled=energy.adjoint(y),
        )

    def error(self, state: ReLULiftedState) -> PerSample:
        return self.task.error(self.task.problem.gradient(state.x))

    def result(self, state: ReLULiftedState) -> tuple[Primal, ...]:
        return (state.x,)

    def select(self, index: Tensor) -> ReLULiftedIteration:
        return ReLULiftedIteration(self.task.select(index), self.steps)


def primal_step(
    problem: ReLULiftedProblem, steps: BlockSteps, x: Primal, slope: Primal
) -> Primal:
    """The prox of ``g + ridge/2 |s|^2`` at ``x - tau slope``, block by block.

    Args:
        problem: whose data term is meant.
        steps: ``tau`` of the image and of the hidden layers.
        x: flat, ``(batch, n)``.
        slope: flat, like ``x``.
    """
    data = problem.data
    image, hidden = _moved(problem, steps, x, slope)
    return data.layout.join(data.base.prox(image, steps.image), hidden)


def adjoint_step(
    problem: ReLULiftedProblem, steps: BlockSteps, x: Primal, slope: Primal
) -> Primal:
    """The derivative of ``primal_step``, applied to ``x - tau slope``.

    Args:
        problem: whose data term is meant.
        steps: ``tau`` of the image and of the hidden layers.
        x: adjoint variable, flat.
        slope: flat, like ``x``.
    """
    data = problem.data
    image, hidden = _moved(problem, steps, x, slope)
    return data.layout.join(data.base.resolvent(image, steps.image), hidden)


def _moved(
    problem: ReLULiftedProblem, steps: BlockSteps, x: Primal, slope: Primal
) -> tuple[Primal, list[Tensor]]:
    """The image before its prox, and the hidden layers after theirs, which is
    linear: the same for the variable and its adjoint."""
    image, hidden = problem.layout.split(x)
    image_slope, hidden_slopes = problem.layout.split(slope)
    shrink = 1 + steps.hidden * problem.data.ridge
    layers = []
    # the prox of a quadratic about zero shrinks
    for s, down in zip(hidden, hidden_slopes, strict=True):
        layers.append((s - steps.hidden * down) / shrink)
    return image - steps.image * image_slope, layers


def dual_argument(
    energy: ReLULiftedEnergy,
    steps: BlockSteps,
    y: Tensor,
    ahead: Sequence[Block],
) -> list[Block]:
    """``y + sigma w``.

    Args:
        energy: knows the layout.
        steps: ``sigma``.
        y: flat dual variable.
        ahead: ``w``, the points of the extrapolated variable.
    """
    found = []
    blocks = energy.layout.unpack(y)
    for (p, q), (z, s) in zip(blocks, ahead, strict=True):
        first = torch.add(p, steps.dual * z)
        second = torch.add(q, steps.dual * s)
        found.append((first, second))
    return found


def dual_prox(
    energy: ReLULiftedEnergy, steps: BlockSteps, block: Block
) -> Block:
    """``prox_{sigma f*}``, ``f* = support function + smoothing/2 |.|^2``: by
    Moreau ``(v - Pi v) / (1 + sigma smoothing)``, the epigraph being a cone.

    Args:
        energy: knows the epigraph and the smoothing.
        steps: ``sigma``.
        block: ``v`` of one layer.
    """
    p, q = block
    # onto the epigraph itself: a cone, so no scaling with sigma
    first, second = project(p, q, energy.leak)
    scale = 1 + steps.dual * energy.smoothing
    return (p - first) / scale, (q - second) / scale
