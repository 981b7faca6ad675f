"""Symmetric positive definite maps that steer solvers; no certificate depends on them."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from piggyback.types import Primal, Scalar


class Preconditioner(ABC):
    """A symmetric positive definite map on primal space, one per sample."""

    @abstractmethod
    def apply(self, v: Primal) -> Primal:
        """The preconditioned vector."""

    @abstractmethod
    def select(self, index: Tensor) -> Preconditioner:
        """The preconditioner of the chosen samples."""


class ScalarPreconditioner(Preconditioner):
    """Multiplication by one positive number: the absence of a preconditioner,
    scaled."""

    def __init__(self, scale: Scalar) -> None:
        self.scale = scale

    def apply(self, v: Primal) -> Primal:
        return v * self.scale

    def select(self, index: Tensor) -> Preconditioner:
        return self


class DenseInverse(Preconditioner):
    """A dense inverse ``(batch, n, n)``; for small problems only."""

    def __init__(self, inverse: Tensor) -> None:
        self.inverse = inverse

    def apply(self, v: Primal) -> Primal:
        return (self.inverse @ v.unsqueeze(-1)).squeeze(-1)

    def select(self, index: Tensor) -> Preconditioner:
        return DenseInverse(self.inverse[index])
