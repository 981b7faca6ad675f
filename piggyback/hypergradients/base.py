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

    # of the class: tables are made of it without an instance
    capabilities: ClassVar[Capabilities]

    @abstractmethod
    def differentiate(
        self,
        problem: LowerProblem,
        loss: Loss,
        accuracy: Accuracy,
        start: WarmStart | None = None,
    ) -> Sensitivity:
        """Find the pair ``(x, P)``.

        Args:
            problem: the lower levels of a batch.
            loss: upper-level loss of the primal variable.
            accuracy: tolerances of the two solves.
            start: an earlier pair of the same samples.

        Returns:
            The pair, and how either solve ended.

        Raises:
            ValueError: for input that is not finite or not admissible.
        """


@dataclass(frozen=True)
class Direct:
    """A gradient that no adjoint belongs to.

    Args:
        gradient: flat, summed over the samples.
        x: the reconstructions it was computed at, ``(batch, ...)``.
        status: ``Status`` codes ``(batch,)``: whether they are within the
            wanted accuracy of the minimiser.
        start: where to go on after a change of the parameters.
    """

    gradient: Tensor
    x: Primal
    status: Tensor
    start: WarmStart


class DirectMethod(ABC):
    """Computes a gradient without an adjoint: through a solver, or from values
    of the two levels alone."""

    # as above; its guarantee is never CERTIFIED
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
        """The gradient of the sum of the losses.

        Args:
            problem: differentiable in ``parameters``.
            parameters: what the gradient is in.
            loss: upper-level loss of the primal variable.
            accuracy: of the lower level.
            start: where an earlier call ended.

        Raises:
            ValueError: for input that is not finite or not admissible.
        """
