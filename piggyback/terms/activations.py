"""Activations of input-convex networks: convex, non-decreasing, with slopes in
[0, 1] and ``phi(0) = 0``."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from torch import Tensor

_ROUNDED_UP = 1 + 1e-15
"""What keeps a computed constant a bound."""
_LINEAR = 40
"""Arguments, over the smoothing, from which softplus is the identity."""


class Activation(ABC):
    """``phi`` with its derivatives and their bounds, entry by entry.

    A subclass states three constants, infinite at kinks.
    """

    max_curvature: float
    """At least ``phi''`` everywhere."""
    max_third: float
    """At least ``|phi'''|`` everywhere."""
    relative: float
    """A number with ``|phi'''| <= relative phi''`` and ``phi'' <= relative
    phi'`` (docs/theory.md, section N.2, the relative constant)."""

    @abstractmethod
    def value(self, z: Tensor) -> Tensor:
        """``phi(z)``.

        Args:
            z: any shape.
        """

    @abstractmethod
    def slope(self, z: Tensor) -> Tensor:
        """``phi'(z)``.

        Args:
            z: any shape.
        """

    @abstractmethod
    def slope_and_curvature(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """``phi'(z)`` and ``phi''(z)`` (0 at kinks and off them for piecewise
        linear activations).

        Args:
            z: any shape.
        """

    @abstractmethod
    def slopes_around(self, z: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
        """The least and the largest ``phi'`` on an interval.

        Args:
            z: its centre, any shape.
            reach: half its length; broadcasts against ``z``.
        """

    @abstractmethod
    def curvatures_around(
        self, z: Tensor, reach: Tensor
    ) -> tuple[Tensor, Tensor]:
        """At most the least and at least the largest ``phi''`` on an interval.

        Args:
            z: its centre, any shape.
            reach: half its length; broadcasts against ``z``.
        """

    @abstractmethod
    def turning(self, lowest: Tensor, highest: Tensor) -> Tensor:
        """At least ``|D phi''| / phi''`` where the slope lies between two
        numbers.

        Args:
            lowest: least slope, any shape.
            highest: largest slope, of the same shape.
        """


@dataclass(frozen=True)
class Softplus(Activation):
    """``smoothing log((1 + exp(z / smoothing)) / 2)``; centred, since ``log 2``
    per layer and channel would add up.

    Args:
        smoothing: positive; 0 would be ReLU.

    Raises:
        ValueError: for another smoothing.
    """

    smoothing: float

    def __post_init__(self) -> None:
        if not self.smoothing > 0:
            raise ValueError(
                f"softplus needs a positive smoothing, got {self.smoothing}"
            )
        # with s the logistic function: phi'' = s (1 - s)/smoothing, and phi'''
        # is largest where s = 1/2 +- sqrt(3)/6
        curvature = 1 / (4 * self.smoothing)
        third = 3**0.5 / (18 * self.smoothing**2)
        relative = 1 / self.smoothing
        self._state("max_curvature", curvature)
        self._state("max_third", third * _ROUNDED_UP)
        self._state("relative", relative * _ROUNDED_UP)

    def _state(self, name: str, constant: float) -> None:
        # of a frozen dataclass
        object.__setattr__(self, name, constant)

    def value(self, z: Tensor) -> Tensor:
        soft = nnf.softplus(z / self.smoothing, threshold=_LINEAR)
        return self.smoothing * (soft - math.log(2))

    def slope(self, z: Tensor) -> Tensor:
        return torch.sigmoid(z / self.smoothing)

    def slope_and_curvature(self, z: Tensor) -> tuple[Tensor, Tensor]:
        slope = self.slope(z)
        return slope, slope * (1 - slope) / self.smoothing

    def slopes_around(self, z: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
        # the slope rises
        return self.slope(z - reach), self.slope(z + reach)

    def curvatures_around(
        self, z: Tensor, reach: Tensor
    ) -> tuple[Tensor, Tensor]:
        # even in z, and falling in |z|
        far = z.abs() + reach
        near = (z.abs() - reach).clamp(min=0)
        return self._curvature_at(far), self._curvature_at(near)

    def _curvature_at(self, distance: Tensor) -> Tensor:
        # written so that it does not cancel where the slope is nearly 1
        small = self.slope(-distance)
        return small * (1 - small) / self.smoothing

    def turning(self, lowest: Tensor, highest: Tensor) -> Tensor:
        # D phi'' = phi'' (1 - 2 phi') / smoothing, and |1 - 2 s| is convex in
        # the slope s: largest at an end
        low = (1 - 2 * lowest).abs()
        high = (1 - 2 * highest).abs()
        return torch.maximum(low, high) * self.relative


@dataclass(frozen=True)
class LeakyReLU(Activation):
    """``max(z, leak z)``.

    Args:
        leak: slope for negative arguments, in [0, 1); 0: ReLU.

    Raises:
        ValueError: for another leak.
    """

    leak: float = 0.0
    max_curvature = math.inf
    max_third = math.inf
    relative = math.inf

    def __post_init__(self) -> None:
        if not 0 <= self.leak < 1:
            raise ValueError(f"the leak must lie in [0, 1), got {self.leak}")

    def value(self, z: Tensor) -> Tensor:
        return torch.maximum(z, self.leak * z)

    def slope(self, z: Tensor) -> Tensor:
        return torch.where(z > 0, 1.0, self.leak)

    def slope_and_curvature(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.slope(z), torch.zeros_like(z)

    def slopes_around(self, z: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
        return self.slope(z - reach), self.slope(z + reach)

    def curvatures_around(
        self, z: Tensor, reach: Tensor
    ) -> tuple[Tensor, Tensor]:
        # a kink may lie in the interval, however short it is
        return torch.zeros_like(z), torch.full_like(z, self.max_curvature)

    def turning(self, lowest: Tensor, highest: Tensor) -> Tensor:
        return torch.full_like(lowest, self.relative)
