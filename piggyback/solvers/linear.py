"""Solvers of the adjoint system ``A P = grad l`` (docs/theory.md, eq. 8):
conjugate gradients, MINRES, Richardson."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from piggyback.batched import inner, per_sample, safe_divide
from piggyback.copies import Copyable
from piggyback.operators.preconditioners import Preconditioner
from piggyback.problems.base import LowerProblem
from piggyback.recursions import (
    ConjugatePoint,
    conjugate_start,
    conjugate_step,
)
from piggyback.solvers.gradient import step_length
from piggyback.solvers.loop import Iteration, State
from piggyback.terms.data.base import DataTerm
from piggyback.types import PerSample, Primal, Scalar

_LARGEST_EXPONENT = 120
"""Powers of two up to here, and their reciprocals, are numbers in single
precision."""


@dataclass(frozen=True)
class LinearSystem(Copyable):
    """``A P = right``, done when ``||right - A P||_{H^{-1}} <= radius``.

    Args:
        problem: the batch whose Hessian ``A`` is.
        curvature: what Hessian products need to know of the point, batch first
            (``LowerProblem.curvature``).
        right: the right-hand side, ``(batch, ...)``.
        radius: the wanted norm of the residual, ``(batch,)``.
        start: the first iterate, ``(batch, ...)``; None: zero, whose residual
            costs no operator application.
    """

    problem: LowerProblem
    curvature: Tensor
    right: Primal
    radius: PerSample
    start: Primal | None = None

    def apply(self, v: Primal) -> Primal:
        """``A v``.

        Args:
            v: ``(batch, ...)``.
        """
        return self.problem.hessian(self.curvature, v)

    def begin(self) -> tuple[Primal, Primal]:
        """The first iterate and its residual, both ``(batch, ...)``."""
        if self.start is None:
            return torch.zeros_like(self.right), self.right
        return self.start, self.right - self.apply(self.start)

    def error(self, residual: Primal) -> PerSample:
        """The residual over the wanted one: a sample is done at or below 1.

        Args:
            residual: ``right - A P``, ``(batch, ...)``.
        """
        return self.problem.data.dual_norm(residual) / self.radius

    def in_units(self) -> tuple[LinearSystem, PerSample]:
        """The system for right-hand sides of about 1.

        Nothing is rounded; but squares of very small or large right-hand sides
        would leave the range of single precision.

        Returns:
            The system, and the powers of two ``(batch,)`` that its solutions
            are to be multiplied by.
        """
        unit = unit_of(self.right)
        factor = per_sample(unit.reciprocal(), self.right)
        # the matrix is not scaled: its preconditioner stays the same
        scaled = LinearSystem(
            problem=self.problem,
            curvature=self.curvature,
            right=self.right * factor,
            radius=self.radius / unit,
            start=None if self.start is None else self.start * factor,
        )
        return scaled, unit


def relative_radius(
    data: DataTerm, right: Primal, tolerance: float | PerSample
) -> PerSample:
    """``tolerance ||right||_{H^{-1}}``, and something positive where the
    right-hand side is zero.

    Args:
        data: whose ``H`` measures.
        right: the right-hand side, ``(batch, ...)``.
        tolerance: a number, or ``(batch,)``.

    Returns:
        ``(batch,)``.
    """
    # measured in units of about 1: squares stay in range
    unit = unit_of(right)
    scaled = right * per_sample(unit.reciprocal(), right)
    size = data.dual_norm(scaled) * unit
    if isinstance(tolerance, Tensor):
        tolerance = tolerance.to(size)
    return (tolerance * size).clamp(min=torch.finfo(right.dtype).tiny)


def relative_residual(
    data: DataTerm, residual: Primal, right: Primal, tolerance: float
) -> PerSample:
    """``||residual||_{H^{-1}}`` over the wanted ``tolerance
    ||right||_{H^{-1}}``.

    Args:
        data: whose ``H`` measures.
        residual: ``(batch, ...)``.
        right: the right-hand side, of the shape of ``residual``.
        tolerance: the wanted ratio of the two.

    Returns:
        ``(batch,)``; done at or below 1.
    """
    factor = per_sample(unit_of(right).reciprocal(), right)
    found = data.dual_norm(residual * factor)
    return found / relative_radius(data, right * factor, tolerance)


def unit_of(right: Primal) -> PerSample:
    """The power of two next to the largest entry of every sample; 1 for the
    zero vector.

    Args:
        right: ``(batch, ...)``.

    Returns:
        ``(batch,)``.
    """
    peak = right.abs().flatten(1).amax(1)
    # powers of two change no digit of what they multiply
    exponent = torch.frexp(peak).exponent
    exponent = exponent.clamp(-_LARGEST_EXPONENT, _LARGEST_EXPONENT)
    usable = torch.isfinite(peak) & (peak > 0)
    return torch.ldexp(torch.ones_like(peak), torch.where(usable, exponent, 0))


@dataclass(frozen=True)
class ConjugateGradientState(State):
    """Iterate ``P``, residual ``r``, direction, all ``(batch, ...)``, and
    ``energy = <r, M r>``."""

    x: Primal
    residual: Primal
    direction: Primal
    energy: PerSample
    preconditioner: Preconditioner


class ConjugateGradient(Iteration[ConjugateGradientState]):
    """Preconditioned conjugate gradients (Hestenes, Stiefel 1952); converges as
    eq. 26 says.

    One step costs one ``K`` and one ``K^T``; a zero residual is a fixed point,
    not a division by zero.

    Args:
        system: what is solved, from where, how well.
    """

    def __init__(self, system: LinearSystem) -> None:
        self.system = system

    def start(self) -> ConjugateGradientState:
        system = self.system
        x, residual = system.begin()
        preconditioner = system.problem.preconditioner(
            system.curvature, residual
        )
        point = conjugate_start(x, residual, preconditioner.apply)
        return ConjugateGradientState(*point, preconditioner)

    def step(self, state: ConjugateGradientState) -> ConjugateGradientState:
        point = ConjugatePoint(
            state.x, state.residual, state.direction, state.energy
        )
        # the one application of a step
        image = self.system.apply(state.direction)
        found = conjugate_step(point, image, state.preconditioner.apply)
        return ConjugateGradientState(*found, state.preconditioner)

    def error(self, state: ConjugateGradientState) -> PerSample:
        return self.system.error(state.residual)

    def result(self, state: ConjugateGradientState) -> tuple[Primal, ...]:
        return (state.x,)


@dataclass(frozen=True)
class ConjugateResidualState(State):
    """Iterate ``P``, residual ``r``, ``z = M r``, ``A z``, direction ``p``, ``A
    p``, all ``(batch, ...)``, and ``energy = <z, A z>``."""

    x: Primal
    residual: Primal
    preconditioned: Primal
    image: Primal
    direction: Primal
    direction_image: Primal
    energy: PerSample
    preconditioner: Preconditioner


class ConjugateResidual(Iteration[ConjugateResidualState]):
    """MINRES in its conjugate-residual form: minimises ``<r, M r>`` over the
    Krylov space (Paige, Saunders 1975; Stiefel 1955).

    For a positive definite ``A`` this two-term recurrence cannot break down,
    and it carries the residual, which the stopping rule and the certificates
    look at. One step costs one ``K`` and one ``K^T``.

    Args:
        system: what is solved, from where, how well.
    """

    def __init__(self, system: LinearSystem) -> None:
        self.system = system

    def start(self) -> ConjugateResidualState:
        system = self.system
        x, residual = system.begin()
        preconditioner = system.problem.preconditioner(
            system.curvature, residual
        )
        z = preconditioner.apply(residual)
        image = system.apply(z)
        return ConjugateResidualState(
            x=x,
            residual=residual,
            preconditioned=z,
            image=image,
            # the first direction is the preconditioned residual itself
            direction=z,
            direction_image=image,
            energy=inner(z, image),
            preconditioner=preconditioner,
        )

    def step(self, state: ConjugateResidualState) -> ConjugateResidualState:
        p = state.direction
        image = state.direction_image
        turned = state.preconditioner.apply(image)
        alpha = safe_divide(state.energy, inner(image, turned))
        x = torch.addcmul(state.x, p, per_sample(alpha, p))
        residual = torch.addcmul(state.residual, image, per_sample(-alpha, p))
        # z and A p follow by recursion: one application of A is left, to z
        z = torch.addcmul(state.preconditioned, turned, per_sample(-alpha, p))
        z_image = self.system.apply(z)
        energy = inner(z, z_image)
        beta = per_sample(safe_divide(energy, state.energy), p)
        return ConjugateResidualState(
            x=x,
            residual=residual,
            preconditioned=z,
            image=z_image,
            direction=z + beta * p,
            direction_image=z_image + beta * image,
            energy=energy,
            preconditioner=state.preconditioner,
        )

    def error(self, state: ConjugateResidualState) -> PerSample:
        return self.system.error(state.residual)

    def result(self, state: ConjugateResidualState) -> tuple[Primal, ...]:
        return (state.x,)


@dataclass(frozen=True)
class RichardsonState(State):
    """Iterate ``P`` and residual ``r = right - A P``, both ``(batch, ...)``."""

    x: Primal
    residual: Primal


class Richardson(Iteration[RichardsonState]):
    """``P+ = P + a r``: the partial sums of the Neumann series, ``P = a sum_{j
    < n} (I - a A)^j right`` after ``n`` steps from zero.

    ``r = (I - a A)^n right``, so with ``a = 1/L`` the relative error is at most
    ``(1 - a mu)^n``. One step costs one ``K`` and one ``K^T``.

    Args:
        system: what is solved, from where, how well.
        length: ``a``, a tensor ``()``; None: ``1/L``.
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
        # of the change, not of the iterate: the residual needs no right-hand
        # side, and keeps its digits when it is small
        residual = state.residual - self.system.apply(change)
        return RichardsonState(state.x + change, residual)

    def error(self, state: RichardsonState) -> PerSample:
        return self.system.error(state.residual)

    def result(self, state: RichardsonState) -> tuple[Primal, ...]:
        return (state.x,)
