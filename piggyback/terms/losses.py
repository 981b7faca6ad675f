"""Upper-level losses of one reconstruction."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TypeVar

from piggyback.batched import inner, require_same_device
from piggyback.copies import Copyable, doubled
from piggyback.types import PerSample, Primal
from piggyback.values import require_finite, require_images, warn_of_scale

L = TypeVar("L", bound="Loss")


class Loss(Copyable, ABC):
    """A smooth function of the reconstruction, one value per sample.

    ``select`` and ``double`` are inherited by a class that keeps the arguments
    of its constructor under their names (``piggyback.copies``).
    """

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
        """Look at the numbers once per solve (reads values: synchronises).

        Raises:
            ValueError: for numbers that are not finite.
        """
        return None

    @abstractmethod
    def value(self, x: Primal) -> PerSample:
        """``l(x)``, ``(batch,)``.

        Args:
            x: reconstructions ``(batch, ...)``.
        """

    @abstractmethod
    def gradient(self, x: Primal) -> Primal:
        """``grad l(x)``.

        Args:
            x: reconstructions ``(batch, ...)``.
        """

    def double(self: L) -> L:
        """The same loss in float64, connected to what it is made of."""
        return self.mapped(doubled)


class SquaredError(Loss):
    """``l(x) = 1/2 ||x - truth||^2``.

    Args:
        truth: of the shape of the reconstructions, grey values in [0, 1];
            converted to their precision.

    Raises:
        ValueError: for a truth that is not of float32 or float64; ``value`` and
            ``gradient``: for one of another shape or on another device;
            ``check``: if it is not finite.
    """

    def __init__(self, truth: Primal) -> None:
        require_images("the truth", truth)
        self.truth = truth

    @property
    def smoothness(self) -> float:
        return 1.0

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


class LinearFunctional(Loss):
    """``l(x) = <slope, x>``: turns a given cotangent into a loss, which is how
    ``backward`` of a layer sees it.

    Args:
        slope: of the shape of the reconstructions.
    """

    def __init__(self, slope: Primal) -> None:
        self.slope = slope

    @property
    def smoothness(self) -> float:
        # no error bound may gain from a curvature that is not there
        return 0.0

    def value(self, x: Primal) -> PerSample:
        return inner(self.gradient(x), x)

    def gradient(self, x: Primal) -> Primal:
        return self.slope.to(x.dtype)
