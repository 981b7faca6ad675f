"""Preconditioned MINRES for the adjoint system, in its conjugate-residual form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from piggyback.batched import inner, per_sample, safe_divide
from piggyback.operators.base import Preconditioner
from piggyback.solvers.conjugate_gradient import LinearSystem
from piggyback.solvers.loop import Iteration, State
from piggyback.types import PerSample, Primal


@dataclass(frozen=True)
class ConjugateResidualState(State):
    """Iterate ``P``, residual ``r``, ``z = M r``, ``A z``, direction ``p``, ``A
    p``, ``energy = <z, A z>``."""

    x: Primal
    residual: Primal
    preconditioned: Primal
    image: Primal
    direction: Primal
    direction_image: Primal
    energy: PerSample
    preconditioner: Preconditioner


class ConjugateResidual(Iteration[ConjugateResidualState]):
    """Minimises ``<r, M r>`` over the Krylov space: the iterates of MINRES
    (Paige, Saunders 1975; Stiefel 1955).

    For a positive definite ``A`` this two-term recurrence cannot break down,
    and it carries the residual, which the stopping rule and the certificates
    look at. One step costs one ``K`` and one ``K^T``.
    """

    def __init__(self, system: LinearSystem) -> None:
        self.system = system

    def _apply(self, v: Primal) -> Primal:
        return self.system.problem.hessian(self.system.curvature, v)

    def start(self) -> ConjugateResidualState:
        system = self.system
        x, residual = system.begin()
        preconditioner = system.problem.preconditioner(
            system.curvature, residual
        )
        z = preconditioner.apply(residual)
        image = self._apply(z)
        return ConjugateResidualState(
            x, residual, z, image, z, image, inner(z, image), preconditioner
        )

    def step(self, state: ConjugateResidualState) -> ConjugateResidualState:
        p, image = state.direction, state.direction_image
        turned = state.preconditioner.apply(image)
        alpha = safe_divide(state.energy, inner(image, turned))
        x = torch.addcmul(state.x, p, per_sample(alpha, p))
        residual = torch.addcmul(state.residual, image, per_sample(-alpha, p))
        z = torch.addcmul(state.preconditioned, turned, per_sample(-alpha, p))
        z_image = self._apply(z)
        energy = inner(z, z_image)
        beta = per_sample(safe_divide(energy, state.energy), p)
        return ConjugateResidualState(
            x,
            residual,
            z,
            z_image,
            z + beta * p,
            z_image + beta * image,
            energy,
            state.preconditioner,
        )

    def error(self, state: ConjugateResidualState) -> PerSample:
        return self.system.error(state.residual)

    def result(self, state: ConjugateResidualState) -> tuple[Primal, ...]:
        return (state.x,)

    def select(self, index: Tensor) -> ConjugateResidual:
        return ConjugateResidual(self.system.select(index))
