"""Solvers of the adjoint system ``A P = grad l`` (docs/theory.md, eq. 8)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from piggyback.batched import inner, per_sample, safe_divide
from piggyback.operators.preconditioners import Preconditioner
from piggyback.problems.base import LowerProblem
from piggyback.recursions import conjugate_step
from piggyback.solvers.gradient import step_length
from piggyback.solvers.loop import Iteration, State
from piggyback.terms.data.base import DataTerm
from piggyback.types import PerSample, Primal, Scalar


@dataclass(frozen=True)
class LinearSystem:
    """``A P = right``, ``A`` the Hessian that belongs to ``curvature``; done
    when ``||right - A P||_{H^{-1}} <= radius``.

    No ``start`` means zero, whose residual costs no operator application.
    """

    problem: LowerProblem
    curvature: Tensor
    right: Primal
    radius: PerSample
    start: Primal | None = None

    def begin(self) -> tuple[Primal, Primal]:
        """The first iterate and its residual."""
        if self.start is None:
            return torch.zeros_like(self.right), self.right
        return self.start, self.right - self.problem.hessian(
            self.curvature, self.start
        )

    def error(self, residual: Primal) -> PerSample:
        """The residual over the wanted one: a sample is done at or below 1."""
        return self.problem.data.dual_norm(residual) / self.radius

    def in_units(self) -> tuple[LinearSystem, PerSample]:
        """The system for right-hand sides of about 1, and the powers of two
        that its solutions are to be multiplied by.

        Nothing is rounded; but squares of very small or large right-hand sides
        would leave the range of single precision.
        """
        unit = unit_of(self.right)
        factor = per_sample(unit.reciprocal(), self.right)
        start = None if self.start is None else self.start * factor
        return LinearSystem(
            self.problem,
            self.curvature,
            self.right * factor,
            self.radius / unit,
            start,
        ), unit

    def select(self, index: Tensor) -> LinearSystem:
        start = None if self.start is None else self.start[index]
        return LinearSystem(
            self.problem.select(index),
            self.curvature[index],
            self.right[index],
            self.radius[index],
            start,
        )


def relative_radius(
    data: DataTerm, right: Primal, tolerance: float | PerSample
) -> PerSample:
    """``tolerance ||right||_{H^{-1}}``, and something positive where the
    right-hand side is zero."""
    unit = unit_of(right)
    size = data.dual_norm(right * per_sample(unit.reciprocal(), right)) * unit
    tolerance = (
        tolerance.to(size) if isinstance(tolerance, Tensor) else tolerance
    )
    return (tolerance * size).clamp(min=torch.finfo(right.dtype).tiny)


def relative_residual(
    data: DataTerm, residual: Primal, right: Primal, tolerance: float
) -> PerSample:
    """``||residual||_{H^{-1}}`` over the wanted ``tolerance
    ||right||_{H^{-1}}``."""
    factor = per_sample(unit_of(right).reciprocal(), right)
    return data.dual_norm(residual * factor) / relative_radius(
        data, right * factor, tolerance
    )


def unit_of(right: Primal) -> PerSample:
    """The power of two next to the largest entry of every sample; 1 for the
    zero vector."""
    peak = right.abs().flatten(1).amax(1)
    exponent = torch.frexp(peak).exponent.clamp(-_MOST, _MOST)
    return torch.ldexp(
        torch.ones_like(peak),
        torch.where(torch.isfinite(peak) & (peak > 0), exponent, 0),
    )


_MOST = 120
"""Powers of two up to here, and their reciprocals, are numbers in single
precision."""


@dataclass(frozen=True)
class ConjugateGradientState(State):
    """Iterate ``P``, residual ``r``, direction, ``energy = <r, M r>``."""

    x: Primal
    residual: Primal
    direction: Primal
    energy: PerSample
    preconditioner: Preconditioner


class ConjugateGradient(Iteration[ConjugateGradientState]):
    """One step costs one ``K`` and one ``K^T``; a zero residual is a fixed
    point, not a division by zero."""

    def __init__(self, system: LinearSystem) -> None:
        self.system = system

    def start(self) -> ConjugateGradientState:
        system = self.system
        x, residual = system.begin()
        preconditioner = system.problem.preconditioner(
            system.curvature, residual
        )
        direction = preconditioner.apply(residual)
        return ConjugateGradientState(
            x, residual, direction, inner(residual, direction), preconditioner
        )

    def step(self, state: ConjugateGradientState) -> ConjugateGradientState:
        image = self.system.problem.hessian(
            self.system.curvature, state.direction
        )
        point = state.x, state.residual, state.direction, state.energy
        return ConjugateGradientState(
            *conjugate_step(point, image, state.preconditioner.apply),
            state.preconditioner,
        )

    def error(self, state: ConjugateGradientState) -> PerSample:
        return self.system.error(state.residual)

    def result(self, state: ConjugateGradientState) -> tuple[Primal, ...]:
        return (state.x,)

    def select(self, index: Tensor) -> ConjugateGradient:
        return ConjugateGradient(self.system.select(index))


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
