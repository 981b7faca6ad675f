"""Upper-level losses of one reconstruction."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod

from torch import Tensor

from piggyback.batched import inner, require_same_device
from piggyback.types import PerSample, Primal
from piggyback.values import require_finite, require_images, warn_of_scale


class Loss(ABC):
    """A smooth function of the reconstruction, one value per sample."""

    @property
    @abstractmethod
    def smoothness(self) -> float:
        """``L_l``: Lipschitz constant of the gradient."""

    @property
    def curvature_unit(self) -> float:
        """``L_l``, or 1 for a linear loss: what steps and penalties are
        measured in."""
        return self.smoothness if self.smoothness > 0 else 1.0

    def check(self) -> None:
        """Raise ``ValueError`` for numbers that are not finite (reads values:
        synchronises)."""
        return None

    @abstractmethod
    def value(self, x: Primal) -> PerSample:
        """``l(x)``."""

    @abstractmethod
    def gradient(self, x: Primal) -> Primal:
        """``grad l(x)``."""

    @abstractmethod
    def select(self, index: Tensor) -> Loss:
        """The loss of the chosen samples."""

    @abstractmethod
    def double(self) -> Loss:
        """The same loss in float64."""


class SquaredError(Loss):
    """``l(x) = 1/2 ||x - truth||^2`` with ``truth`` of the shape of ``x``,
    converted to its precision.

    Raises ``ValueError`` for another shape, for a truth that is not of float32
    or float64, and in ``check`` if it is not finite.
    """

    @property
    def smoothness(self) -> float:
        return 1.0

    def __init__(self, truth: Primal) -> None:
        require_images("the truth", truth)
        self.truth = truth

    def check(self) -> None:
        require_finite("the truth", self.truth)
        warn_of_scale(self.truth)

    def value(self, x: Primal) -> PerSample:
        difference = self.gradient(x)
        return 0.5 * inner(difference, difference)

    def gradient(self, x: Primal) -> Primal:
        # broadcasting would compare images with the wrong truth
        if x.shape != self.truth.shape:
            raise ValueError(
                f"reconstructions have shape {tuple(x.shape)}, their truth "
                f"{tuple(self.truth.shape)}"
            )
        require_same_device("truth", self.truth, "the reconstructions are", x)
        return x - self.truth.to(x.dtype)

    def select(self, index: Tensor) -> SquaredError:
        return self._with(self.truth[index])

    def double(self) -> SquaredError:
        return self._with(self.truth.double())

    def _with(self, truth: Primal) -> SquaredError:
        changed = copy.copy(self)
        changed.truth = truth
        return changed


class LinearFunctional(Loss):
    """``l(x) = <slope, x>``: turns a given cotangent into a loss, which is how
    ``backward`` of a layer sees it."""

    @property
    def smoothness(self) -> float:
        return 0.0

    def __init__(self, slope: Primal) -> None:
        self.slope = slope

    def value(self, x: Primal) -> PerSample:
        return inner(self.slope.to(x.dtype), x)

    def gradient(self, x: Primal) -> Primal:
        return self.slope.to(x.dtype)

    def select(self, index: Tensor) -> LinearFunctional:
        return LinearFunctional(self.slope[index])

    def double(self) -> LinearFunctional:
        return LinearFunctional(self.slope.double())
