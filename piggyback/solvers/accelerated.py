"""Nesterov's accelerated gradient method for strongly convex energies: the
baseline every peer uses."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from piggyback.problems.base import LowerProblem
from piggyback.solvers.loop import Iteration, State
from piggyback.solvers.lower import LowerSolver, SolverTask
from piggyback.types import PerSample, Primal, Scalar


@dataclass(frozen=True)
class AcceleratedState(State):
    """Extrapolated point ``v``, its gradient, and the last iterate."""

    point: Primal
    gradient: Primal
    previous: Primal


class AcceleratedGradient(LowerSolver):
    """``x+ = v - grad h(v)/L``, ``v+ = x+ + q (x+ - x)``, ``q = (sqrt L - sqrt
    mu)/(sqrt L + sqrt mu)``.

    ``L = L_g + ||D^{1/2} K||^2`` with ``D`` the largest curvatures (Nesterov
    2004, 2.2.11).
    """

    def bind(self, lower: SolverTask[LowerProblem]) -> Iteration:
        return AcceleratedIteration(
            lower, lower.problem.data.smoothness + lower.problem.stiffness()
        )


class AcceleratedIteration(Iteration[AcceleratedState]):
    """Accelerated gradient on one batch; the result is the extrapolated point,
    whose gradient is known."""

    def __init__(
        self, lower: SolverTask[LowerProblem], smoothness: Scalar
    ) -> None:
        self.lower = lower
        self.smoothness = smoothness
        ratio = (lower.problem.data.strong_convexity / smoothness).sqrt()
        self.momentum = (1 - ratio) / (1 + ratio)

    def start(self) -> AcceleratedState:
        x = self.lower.start
        return AcceleratedState(x, self.lower.problem.gradient(x), x)

    def step(self, state: AcceleratedState) -> AcceleratedState:
        x = state.point - state.gradient / self.smoothness
        point = x + self.momentum * (x - state.previous)
        return AcceleratedState(point, self.lower.problem.gradient(point), x)

    def error(self, state: AcceleratedState) -> PerSample:
        return self.lower.error(state.gradient)

    def result(self, state: AcceleratedState) -> tuple[Primal, ...]:
        return (state.point,)

    def select(self, index: Tensor) -> AcceleratedIteration:
        return AcceleratedIteration(self.lower.select(index), self.smoothness)
