"""What every hypergradient method returns, and how the gradient is read off it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from piggyback.losses import Loss
from piggyback.lower_problem import LowerProblem
from piggyback.types import Primal


@dataclass(frozen=True)
class Accuracy:
    """How exactly the two systems are solved.

    ``lower``: certified root-mean-square error of ``x`` per element, in grey values.
    ``adjoint``: residual of the adjoint over its right-hand side, both in the norm of ``H^{-1}``.
    """

    lower: float
    adjoint: float

    def __post_init__(self) -> None:
        if not (self.lower > 0 and self.adjoint > 0):
            raise ValueError(f"accuracies must be positive, got {self}")

    def scaled(self, factor: float) -> Accuracy:
        """Both tolerances times ``factor``."""
        return Accuracy(self.lower * factor, self.adjoint * factor)


@dataclass(frozen=True)
class WarmStart:
    """An earlier solution and adjoint of the same samples."""

    x: Primal
    adjoint: Primal

    def to(self, dtype: torch.dtype) -> WarmStart:
        """The same pair in another precision."""
        return WarmStart(self.x.to(dtype), self.adjoint.to(dtype))


@dataclass(frozen=True)
class Sensitivity:
    """Approximate solution ``x`` and adjoint ``P`` of ``A(x) P = grad l(x)`` (docs/theory.md, eq. 8), per sample.

    ``lower_status`` and ``adjoint_status`` hold ``Status`` codes, ``(batch,)``: an unconverged solve says so.
    Whatever the status, the certificates of ``piggyback.certificates`` hold for the pair as it is.
    """

    x: Primal
    adjoint: Primal
    lower_status: Tensor
    adjoint_status: Tensor

    def double(self) -> Sensitivity:
        """The same pair in float64."""
        return Sensitivity(self.x.double(), self.adjoint.double(), self.lower_status, self.adjoint_status)


class HypergradientMethod(ABC):
    """Solves the lower level and its adjoint."""

    @abstractmethod
    def differentiate(
        self, problem: LowerProblem, loss: Loss, accuracy: Accuracy, start: WarmStart | None = None
    ) -> Sensitivity:
        """Bring ``(x, P)`` to ``accuracy``, starting from ``start`` where given."""
