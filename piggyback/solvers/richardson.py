"""Richardson iteration for the adjoint system: the partial sums of the Neumann
series."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from piggyback.solvers.conjugate_gradient import LinearSystem
from piggyback.solvers.gradient import step_length
from piggyback.solvers.loop import Iteration, State
from piggyback.types import PerSample, Primal, Scalar


@dataclass(frozen=True)
class RichardsonState(State):
    """Iterate ``P`` and residual ``r = right - A P``."""

    x: Primal
    residual: Primal


class Richardson(Iteration[RichardsonState]):
    """``P+ = P + a r`` with ``a = 1/L``; after ``n`` steps from zero ``P = a
    sum_{j < n} (I - a A)^j right``.

    ``r = (I - a A)^n right``, so the relative error is at most ``(1 - a
    mu)^n``. One step costs one ``K`` and one ``K^T``.
    """

    def __init__(
        self, system: LinearSystem, length: Scalar | None = None
    ) -> None:
        self.system = system
        self.length = step_length(system.problem) if length is None else length

    def start(self) -> RichardsonState:
        return RichardsonState(*self.system.begin())

    def step(self, state: RichardsonState) -> RichardsonState:
        change = self.length * state.residual
        image = self.system.problem.hessian(self.system.curvature, change)
        return RichardsonState(state.x + change, state.residual - image)

    def error(self, state: RichardsonState) -> PerSample:
        return self.system.error(state.residual)

    def result(self, state: RichardsonState) -> tuple[Primal, ...]:
        return (state.x,)

    def select(self, index: Tensor) -> Richardson:
        return Richardson(self.system.select(index), self.length)
