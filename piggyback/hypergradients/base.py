"""What every hypergradient method returns, and how the gradient is read off it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from piggyback.hypergradients.capabilities import Capabilities
from piggyback.problems.base import LowerProblem
from piggyback.problems.pair import Accuracy, Sensitivity, WarmStart
from piggyback.problems.saddle import SaddleProblem
from piggyback.terms.losses import Loss
from piggyback.types import Primal


class HypergradientMethod(ABC):
    """Solves the lower level and its adjoint; the gradient and its error are
    read off the pair (eq. 9)."""

    capabilities: ClassVar[Capabilities]

    @abstractmethod
    def differentiate(
        self,
        problem: LowerProblem,
        loss: Loss,
        accuracy: Accuracy,
        start: WarmStart | None = None,
    ) -> Sensitivity:
        """Bring ``(x, P)`` to ``accuracy``, starting from ``start`` where
        given."""


@dataclass(frozen=True)
class Direct:
    """A gradient (flat, summed over the samples) that no adjoint belongs to.

    ``x``: the reconstructions it was computed at; ``status`` ``(batch,)``:
    whether they are within the wanted accuracy of the minimiser; ``start``:
    where to go on after a change of the parameters.
    """

    gradient: Tensor
    x: Primal
    status: Tensor
    start: WarmStart


class DirectMethod(ABC):
    """Computes a gradient without an adjoint: through a solver, or from values
    of the two levels alone."""

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
        """The gradient in ``parameters``, in which ``problem`` must be
        differentiable, of the sum of the losses."""
