"""Preconditioned conjugate gradients for the adjoint system ``A P = grad l`` (docs/theory.md, eq. 8)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from piggyback.batched import inner, per_sample, safe_divide
from piggyback.lower_problem import LowerProblem
from piggyback.operators import Preconditioner
from piggyback.solve import Iteration, State
from piggyback.terms.quadratic import DataTerm
from piggyback.types import PerSample, Primal


@dataclass(frozen=True)
class LinearSystem:
    """``A P = right``, ``A`` the Hessian that belongs to ``curvature``; done when ``||right - A P||_{H^{-1}} <= radius``.

    No ``start`` means zero, whose residual costs no operator application.
    """

    problem: LowerProblem
    curvature: Tensor
    right: Primal
    radius: PerSample
    start: Primal | None = None

    def select(self, index: Tensor) -> LinearSystem:
        start = None if self.start is None else self.start[index]
        return LinearSystem(
            self.problem.select(index), self.curvature[index], self.right[index], self.radius[index], start
        )


def relative_radius(data: DataTerm, right: Primal, tolerance: float | PerSample) -> PerSample:
    """``tolerance ||right||_{H^{-1}}``, and something positive where the right-hand side is zero."""
    size = data.dual_norm(right)
    return (torch.as_tensor(tolerance).to(size) * size).clamp(min=torch.finfo(right.dtype).tiny)


@dataclass(frozen=True)
class ConjugateGradientState(State):
    """Iterate ``P``, residual ``r``, direction, ``energy = <r, M r>``."""

    x: Primal
    residual: Primal
    direction: Primal
    energy: PerSample
    preconditioner: Preconditioner


class ConjugateGradient(Iteration[ConjugateGradientState]):
    """One step costs one ``K`` and one ``K^T``; a zero residual is a fixed point, not a division by zero."""

    def __init__(self, system: LinearSystem) -> None:
        self.system = system

    def start(self) -> ConjugateGradientState:
        system = self.system
        if system.start is None:
            x, residual = torch.zeros_like(system.right), system.right
        else:
            x, residual = system.start, system.right - system.problem.hessian(system.curvature, system.start)
        preconditioner = system.problem.preconditioner(system.curvature, residual)
        direction = preconditioner.apply(residual)
        return ConjugateGradientState(x, residual, direction, inner(residual, direction), preconditioner)

    def step(self, state: ConjugateGradientState) -> ConjugateGradientState:
        p = state.direction
        image = self.system.problem.hessian(self.system.curvature, p)
        alpha = safe_divide(state.energy, inner(p, image))
        x = torch.addcmul(state.x, p, per_sample(alpha, p))
        residual = torch.addcmul(state.residual, image, per_sample(-alpha, p))
        preconditioned = state.preconditioner.apply(residual)
        energy = inner(residual, preconditioned)
        beta = safe_divide(energy, state.energy)
        direction = torch.addcmul(preconditioned, p, per_sample(beta, p))
        return ConjugateGradientState(x, residual, direction, energy, state.preconditioner)

    def error(self, state: ConjugateGradientState) -> PerSample:
        return self.system.problem.data.dual_norm(state.residual) / self.system.radius

    def result(self, state: ConjugateGradientState) -> tuple[Primal, ...]:
        return (state.x,)

    def select(self, index: Tensor) -> ConjugateGradient:
        return ConjugateGradient(self.system.select(index))
