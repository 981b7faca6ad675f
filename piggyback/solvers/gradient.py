"""Gradient descent with the constant step ``1/L``: slow, and the map that
unrolled and truncated methods differentiate."""

from __future__ import annotations

from dataclasses import dataclass

from piggyback.problems.base import LowerProblem
from piggyback.solvers.loop import Iteration, State
from piggyback.solvers.lower import LowerSolver, SolverTask
from piggyback.types import PerSample, Primal, Scalar


def step_length(problem: LowerProblem) -> Scalar:
    """``1/L`` with ``L`` at least the norm of every Hessian of ``h``; ``()``.

    Args:
        problem: the batch of problems.
    """
    return 1 / (problem.data.smoothness + problem.stiffness())


@dataclass(frozen=True)
class GradientState(State):
    """The iterate and its gradient, both ``(batch, ...)``."""

    x: Primal
    gradient: Primal


class GradientDescent(LowerSolver):
    """``x+ = x - grad h(x)/L``; contracts by ``1 - mu/L``. One step costs one
    ``K`` and one ``K^T``."""

    def bind(self, task: SolverTask[LowerProblem]) -> Iteration:
        return GradientIteration(task, step_length(task.problem))


class GradientIteration(Iteration[GradientState]):
    """Gradient descent on one batch.

    Args:
        task: what is solved, from where, how well.
        length: the step, a tensor ``()``; converges below ``2/L``.
    """

    def __init__(self, task: SolverTask[LowerProblem], length: Scalar) -> None:
        self.task = task
        self.length = length

    def start(self) -> GradientState:
        x = self.task.start
        return GradientState(x, self.task.problem.gradient(x))

    def step(self, state: GradientState) -> GradientState:
        x = state.x - self.length * state.gradient
        # of the new point: the look at the error then costs nothing
        return GradientState(x, self.task.problem.gradient(x))

    def error(self, state: GradientState) -> PerSample:
        return self.task.error(state.gradient)

    def result(self, state: GradientState) -> tuple[Primal, ...]:
        return (state.x,)
