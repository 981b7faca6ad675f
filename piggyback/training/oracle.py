"""What descent methods see of a bilevel problem: values and gradients with
errors that hold."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Evaluation:
    """The upper level at one parameter vector.

    ``|L(theta) - value| <= value_error`` and ``||grad L(theta) - gradient|| <=
    gradient_error``, whether or not every solve ``converged`` to its tolerance.
    ``work``: operator applications spent on this evaluation.
    """

    parameters: Tensor
    value: float
    value_error: float
    gradient: Tensor
    gradient_error: float
    work: float
    converged: bool

    @property
    def lower(self) -> float:
        """Certified lower end of the upper loss."""
        return self.value - self.value_error

    @property
    def upper(self) -> float:
        """Certified upper end of the upper loss."""
        return self.value + self.value_error

    @property
    def relative_gradient_error(self) -> float:
        """Certified relative error: the bound over the norm of the computed
        gradient."""
        size = float(self.gradient.norm())
        return self.gradient_error / size if size > 0 else float("inf")


class Oracle(ABC):
    """Certified evaluations of an upper level."""

    @abstractmethod
    def parameters(self) -> Tensor:
        """The current parameter vector."""

    @abstractmethod
    def evaluate(self, parameters: Tensor, accuracy: float) -> Evaluation:
        """Value and gradient at ``parameters``; ``accuracy`` scales the
        oracle's own tolerances (smaller is more exact)."""

    def estimate(self, parameters: Tensor, accuracy: float) -> Evaluation:
        """The same without certificates, where that is cheaper: the errors are
        then infinite, for nothing is promised."""
        return self.evaluate(parameters, accuracy)
