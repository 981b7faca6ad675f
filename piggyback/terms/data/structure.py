"""What follows from the structure of a Hessian alone: bounds of its spectrum, a
diagonal, a residual with a ridge."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from piggyback.batched import inner
from piggyback.terms.data.base import DataTerm
from piggyback.types import PerSample, Primal, Scalar


class BoundedTerm(DataTerm):
    """A data term that has measured its spectrum once.

    ``_bounds``: at most the smallest, at least the largest eigenvalue of ``H``.
    """

    _bounds: tuple[float, float]

    @property
    def strong_convexity(self) -> float:
        return self._bounds[0]

    @property
    def smoothness(self) -> float:
        return self._bounds[1]


class DiagonalTerm(BoundedTerm):
    """``H = diag(diagonal)``: everything is pointwise, and exact."""

    @property
    @abstractmethod
    def diagonal(self) -> float | Tensor:
        """The entries of ``H``; broadcasts against the images."""

    def hessian(self, v: Primal) -> Primal:
        return v * self.diagonal

    def solve(self, v: Primal) -> Primal:
        return v / self.diagonal

    def resolvent(self, v: Primal, step: float | Scalar) -> Primal:
        return v / (1 + step * self.diagonal)


class LinearPartTerm(BoundedTerm):
    """A data term that knows its linear part ``b``, ``(batch, ...)``."""

    linear: Primal

    @property
    def start(self) -> Primal:
        return self.solve(self.linear)

    def prox(self, v: Primal, step: float | Scalar) -> Primal:
        return self.resolvent(v + step * self.linear, step)


class RidgedResidual(DataTerm):
    """``g(x) = 1/2 ||B x - observed||^2 + ridge/2 ||x - centre||^2``.

    ``observed``: ``(batch, ...)``, of the shape of ``B x``; ``ridge``: a number
    or a tensor ``()``; ``centre``: of the shape of the images.
    """

    observed: Tensor
    ridge: float | Tensor
    centre: Primal

    @abstractmethod
    def observe(self, x: Primal) -> Tensor:
        """``B x``.

        Args:
            x: images ``(batch, ...)``.
        """

    @abstractmethod
    def pull_back(self, residual: Tensor) -> Primal:
        """``B^T residual``.

        Args:
            residual: of the shape of the observation.
        """

    def value(self, x: Primal) -> PerSample:
        # from the residual, not from <x, H x>: no cancellation near a fit
        residual = self.observe(x) - self.observed
        away = x - self.centre
        fit = 0.5 * inner(residual, residual)
        return fit + 0.5 * self.ridge * inner(away, away)

    def gradient(self, x: Primal) -> Primal:
        fit = self.pull_back(self.observe(x) - self.observed)
        return fit + self.ridge * (x - self.centre)

    def slope_along(self, x: Primal, direction: Primal) -> PerSample:
        # B alone: it has to be differentiable in what it is computed from, its
        # adjoint need not be
        residual = self.observe(x) - self.observed
        fit = inner(self.observe(direction), residual)
        return fit + self.ridge * inner(direction, x - self.centre)
