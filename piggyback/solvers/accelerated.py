"""Nesterov's accelerated gradient method for strongly convex energies: the
baseline every peer uses."""

from __future__ import annotations

from dataclasses import dataclass

from piggyback.problems.base import LowerProblem
from piggyback.solvers.loop import Iteration, State
from piggyback.solvers.lower import LowerSolver, SolverTask
from piggyback.types import PerSample, Primal, Scalar


@dataclass(frozen=True)
class AcceleratedState(State):
    """Extrapolated point ``v``, its gradient, and the last iterate, all
    ``(batch, ...)``."""

    point: Primal
    gradient: Primal
    previous: Primal


class AcceleratedGradient(LowerSolver):
    """``x+ = v - grad h(v)/L``, ``v+ = x+ + q (x+ - x)``, ``q = (sqrt L - sqrt
    mu)/(sqrt L + sqrt mu)``.

    ``L = L_g + ||D^{1/2} K||^2`` with ``D`` the largest curvatures (Nesterov
    2004, 2.2.11). One step costs one ``K`` and one ``K^T``.
    """

    def bind(self, task: SolverTask[LowerProblem]) -> Iteration:
        problem = task.problem
        smoothness = problem.data.smoothness + problem.stiffness()
        return AcceleratedIteration(task, smoothness)


class AcceleratedIteration(Iteration[AcceleratedState]):
    """Accelerated gradient on one batch.

    The result is the extrapolated point, whose gradient is known: that of the
    iterate would cost a further application of ``K`` and ``K^T``.

    Args:
        task: what is solved, from where, how well.
        smoothness: ``L``, at least the norm of every Hessian of ``h``; a tensor
            ``()``.
    """

    def __init__(
        self, task: SolverTask[LowerProblem], smoothness: Scalar
    ) -> None:
        self.task = task
        self.smoothness = smoothness
        # q of Nesterov's rule, by the root of the condition number
        ratio = (task.problem.data.strong_convexity / smoothness).sqrt()
        self.momentum = (1 - ratio) / (1 + ratio)

    def start(self) -> AcceleratedState:
        x = self.task.start
        # no momentum yet: the last iterate is the start itself
        return AcceleratedState(x, self.task.problem.gradient(x), x)

    def step(self, state: AcceleratedState) -> AcceleratedState:
        x = state.point - state.gradient / self.smoothness
        point = x + self.momentum * (x - state.previous)
        gradient = self.task.problem.gradient(point)
        return AcceleratedState(point, gradient, x)

    def error(self, state: AcceleratedState) -> PerSample:
        return self.task.error(state.gradient)

    def result(self, state: AcceleratedState) -> tuple[Primal, ...]:
        return (state.point,)
