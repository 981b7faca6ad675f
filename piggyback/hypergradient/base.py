"""What every hypergradient method returns, and how the gradient is read off it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from piggyback.hypergradient.capabilities import Capabilities
from piggyback.losses import Loss
from piggyback.lower_problem import LowerProblem
from piggyback.problem import SaddleProblem
from piggyback.types import Primal
from piggyback.values import first_bad_sample


@dataclass(frozen=True)
class Accuracy:
    """How exactly the two systems are solved.

    ``lower``: certified root-mean-square error of ``x`` per element, in grey values.
    ``adjoint``: residual of the adjoint over its right-hand side, both in the norm of ``H^{-1}``.
    """

    lower: float
    adjoint: float

    def __post_init__(self) -> None:
        if not (self.lower > 0 and self.adjoint > 0 and math.isfinite(self.lower + self.adjoint)):
            raise ValueError(f"accuracies must be positive and finite, got {self}")

    def scaled(self, factor: float) -> Accuracy:
        """Both tolerances times ``factor``."""
        return Accuracy(self.lower * factor, self.adjoint * factor)


@dataclass(frozen=True)
class WarmStart:
    """An earlier solution and adjoint of the same samples."""

    x: Primal
    adjoint: Primal

    @staticmethod
    def at(x: Primal) -> WarmStart:
        """A solution whose adjoint is not known: zero."""
        return WarmStart(x, torch.zeros_like(x))

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
    """Solves the lower level and its adjoint; the gradient and its error are read off the pair (eq. 9)."""

    capabilities: ClassVar[Capabilities]

    @abstractmethod
    def differentiate(
        self, problem: LowerProblem, loss: Loss, accuracy: Accuracy, start: WarmStart | None = None
    ) -> Sensitivity:
        """Bring ``(x, P)`` to ``accuracy``, starting from ``start`` where given."""


@dataclass(frozen=True)
class Direct:
    """A gradient (flat, summed over the samples) that no adjoint belongs to.

    ``x``: the reconstructions it was computed at; ``status`` ``(batch,)``: whether they are within the wanted accuracy of the
    minimiser; ``start``: where to go on after a change of the parameters.
    """

    gradient: Tensor
    x: Primal
    status: Tensor
    start: WarmStart


class DirectMethod(ABC):
    """Computes a gradient without an adjoint: through a solver, or from values of the two levels alone."""

    capabilities: ClassVar[Capabilities]

    @abstractmethod
    def differentiate(
        self,
        problem: SaddleProblem,
        parameters: Sequence[Tensor],
        loss: Loss,
        accuracy: Accuracy,
        start: WarmStart | None = None,
    ) -> Direct:
        """The gradient in ``parameters``, in which ``problem`` must be differentiable, of the sum of the losses."""


def checked_slope(loss: Loss, x: Primal) -> Primal:
    """``grad l(x)``.  Raises ``ValueError`` naming the first sample where it is NaN or infinite (synchronises)."""
    slope = loss.gradient(x)
    bad = first_bad_sample(slope)
    if bad is not None:
        raise ValueError(f"the gradient of the loss: sample {bad} of the batch has NaN or infinite values")
    return slope


def flat_gradient(value: Tensor, parameters: Sequence[Tensor], keep_graph: bool = False) -> Tensor:
    """The derivative of ``value`` ``()`` in all ``parameters``, flat; zero where it does not depend on them.

    ``keep_graph``: whether the graph, which includes that of the problem, will be differentiated again.
    """
    parts = torch.autograd.grad(value, list(parameters), allow_unused=True, retain_graph=keep_graph)
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, parts, strict=True)]
    )
