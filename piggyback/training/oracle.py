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
    gradient_error``, whether or not every solve ``converged``.

    Args:
        parameters: ``theta``, flat.
        value: mean loss.
        value_error: infinite for estimates.
        gradient: of the mean loss, flat.
        gradient_error: Euclidean; infinite for estimates.
        work: operator applications spent on this evaluation.
        converged: whether every solve reached its tolerance.
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
        # nothing is known of the direction of a zero gradient
        return self.gradient_error / size if size > 0 else float("inf")


class Oracle(ABC):
    """Certified evaluations of an upper level."""

    @abstractmethod
    def parameters(self) -> Tensor:
        """The current parameter vector."""

    @abstractmethod
    def evaluate(self, parameters: Tensor, accuracy: float) -> Evaluation:
        """Value and gradient with certified errors.

        Args:
            parameters: ``theta``, flat.
            accuracy: scales the oracle's own tolerances (smaller is more
                exact).
        """

    def estimate(self, parameters: Tensor, accuracy: float) -> Evaluation:
        """The same without certificates, where that is cheaper: the errors are
        then infinite, for nothing is promised.

        Args:
            parameters: ``theta``, flat.
            accuracy: as in ``evaluate``.
        """
        # an oracle that knows no cheaper way promises more than it was asked
        return self.evaluate(parameters, accuracy)
