"""Gradient descent with the constant step ``1/L``: slow, and the map that
unrolled and truncated methods differentiate."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from piggyback.problems.base import LowerProblem
from piggyback.solvers.loop import Iteration, State
from piggyback.solvers.lower import LowerSolver, SolverTask
from piggyback.types import PerSample, Primal, Scalar


def step_length(problem: LowerProblem) -> Scalar:
    """``1/L`` with ``L`` at least the norm of every Hessian of ``h``."""
    return 1 / (problem.data.smoothness + problem.stiffness())


@dataclass(frozen=True)
class GradientState(State):
    """The iterate and its gradient."""

    x: Primal
    gradient: Primal


class GradientDescent(LowerSolver):
    """``x+ = x - grad h(x)/L``; contracts by ``1 - mu/L``. One step costs one
    ``K`` and one ``K^T``."""

    def bind(self, lower: SolverTask[LowerProblem]) -> Iteration:
        return GradientIteration(lower, step_length(lower.problem))


class GradientIteration(Iteration[GradientState]):
    """Gradient descent on one batch."""

    def __init__(self, lower: SolverTask[LowerProblem], length: Scalar) -> None:
        self.lower = lower
        self.length = length

    def start(self) -> GradientState:
        return GradientState(
            self.lower.start, self.lower.problem.gradient(self.lower.start)
        )

    def step(self, state: GradientState) -> GradientState:
        x = state.x - self.length * state.gradient
        return GradientState(x, self.lower.problem.gradient(x))

    def error(self, state: GradientState) -> PerSample:
        return self.lower.error(state.gradient)

    def result(self, state: GradientState) -> tuple[Primal, ...]:
        return (state.x,)

    def select(self, index: Tensor) -> GradientIteration:
        return GradientIteration(self.lower.select(index), self.length)
