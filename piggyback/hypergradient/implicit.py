"""Implicit differentiation: solve the lower level, then the adjoint system by conjugate gradients."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from piggyback.hypergradient.base import Accuracy, HypergradientMethod, Sensitivity, WarmStart
from piggyback.losses import Loss
from piggyback.lower_problem import LowerProblem
from piggyback.solve import Outcome, Schedule, iterate
from piggyback.solvers.conjugate_gradient import ConjugateGradient, LinearSystem, relative_radius
from piggyback.solvers.lower import LowerSolver, radius_per_element, solve_lower
from piggyback.solvers.suited import SuitedSolver
from piggyback.types import Primal


def solve_adjoint(
    problem: LowerProblem, loss: Loss, x: Primal, tolerance: float, start: Primal | None, schedule: Schedule
) -> Outcome:
    """``P`` with ``||grad l(x) - A(x) P|| <= tolerance ||grad l(x)||`` in the norm of ``H^{-1}`` (eq. 8)."""
    problem = problem.detached()
    with torch.no_grad():
        right = loss.gradient(x)
        curvature = problem.curvature(x)
        radius = relative_radius(problem.data, right, tolerance)
        return iterate(ConjugateGradient(LinearSystem(problem, curvature, right, radius, start)), schedule)


@dataclass(frozen=True)
class ImplicitCG(HypergradientMethod):
    """Lower level by ``solver``, then preconditioned CG on ``A(x) P = grad l(x)``."""

    solver: LowerSolver = field(default_factory=SuitedSolver)
    lower_schedule: Schedule = Schedule(max_steps=2000)
    adjoint_schedule: Schedule = Schedule(max_steps=1000)

    def differentiate(
        self, problem: LowerProblem, loss: Loss, accuracy: Accuracy, start: WarmStart | None = None
    ) -> Sensitivity:
        radius = radius_per_element(problem, accuracy.lower)
        first = None if start is None else start.x
        lower = solve_lower(problem, self.solver, radius, first, self.lower_schedule)
        (x,) = lower.result
        previous = None if start is None else start.adjoint
        adjoint = solve_adjoint(problem, loss, x, accuracy.adjoint, previous, self.adjoint_schedule)
        return Sensitivity(x, adjoint.result[0], lower.status, adjoint.status)
