"""The best metric that there could be: the inverse Hessian at the minimiser."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from piggyback.operators.preconditioners import Preconditioner
from piggyback.problems.base import LowerProblem
from piggyback.problems.saddle import SaddleProblem, UnitForm
from piggyback.solvers.loop import Iteration
from piggyback.solvers.lower import LowerSolver, SolverTask
from piggyback.solvers.nonlinear_cg import NonlinearCGIteration


class InverseMatrices(Preconditioner):
    """One matrix ``(batch, n, n)`` per image of ``n`` numbers."""

    def __init__(self, matrices: Tensor) -> None:
        self.matrices = matrices

    def apply(self, v: Tensor) -> Tensor:
        return (self.matrices @ v.reshape(v.shape[0], -1, 1)).view_as(v)

    def select(self, index: Tensor) -> Preconditioner:
        return InverseMatrices(self.matrices[index])


@dataclass(frozen=True)
class FixedForm(UnitForm):
    """The same energy, preconditioned by ``metric`` wherever the solver is."""

    metric: Preconditioner = field(kw_only=True)

    def preconditioner(self, curvature: Tensor, like: Tensor) -> Preconditioner:
        return self.metric

    def select(self, index: Tensor) -> FixedForm:
        return replace(super().select(index), metric=self.metric.select(index))  # pyright: ignore[reportReturnType]


@dataclass(frozen=True)
class ExactMetric(LowerSolver):
    """The default solver in a metric that nobody has before the problem is
    solved: what learned ones are measured by."""

    metric: Preconditioner

    def bind(self, lower: SolverTask[LowerProblem]) -> Iteration:
        level = lower.saddle("ExactMetric")
        energy = level.problem.in_units()
        parts = {
            part.name: getattr(energy, part.name) for part in fields(UnitForm)
        }
        return NonlinearCGIteration(
            level, FixedForm(**parts, metric=self.metric)
        )


def exact_metric(problem: SaddleProblem, solution: Tensor) -> Preconditioner:
    """The inverse Hessian at the minimisers, dense; for small images."""
    shape = solution.shape[1:]
    n = solution[0].numel()
    unit = torch.eye(n, dtype=solution.dtype).view(n, *shape)
    inverses = []
    for index in torch.arange(solution.shape[0]).split(1):
        one = problem.select(index)
        curvature = one.curvature(solution[index])
        columns = []
        # many columns at once, but not so many that memory runs out
        for part in unit.split(128):
            count = len(part)
            repeated = curvature.expand(count, *curvature.shape[1:])
            columns.append(one.hessian(repeated, part).reshape(count, n))
        inverses.append(torch.linalg.inv(torch.cat(columns)))
    return InverseMatrices(torch.stack(inverses))
