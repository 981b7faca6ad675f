"""Activations of input-convex networks: convex, non-decreasing, with slopes in
[0, 1] and ``phi(0) = 0``."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as nnf
from torch import Tensor


class Activation(ABC):
    """``phi`` with its derivatives; ``max_curvature`` and ``max_third`` bound
    ``phi''`` and ``|phi'''|`` (infinite at kinks)."""

    max_curvature: float
    max_third: float
    relative: float
    """A number with ``|phi'''| <= relative phi''`` and ``phi'' <= relative
    phi'`` (infinite at kinks)."""

    @abstractmethod
    def value(self, z: Tensor) -> Tensor:
        """``phi(z)``."""

    @abstractmethod
    def slope(self, z: Tensor) -> Tensor:
        """``phi'(z)``."""

    @abstractmethod
    def slope_and_curvature(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """``phi'(z)`` and ``phi''(z)`` (0 at kinks and off them for piecewise
        linear activations)."""

    @abstractmethod
    def slopes_around(self, z: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
        """The least and the largest ``phi'`` between ``z - reach`` and ``z +
        reach``."""

    @abstractmethod
    def curvatures_around(
        self, z: Tensor, reach: Tensor
    ) -> tuple[Tensor, Tensor]:
        """At most the least and at least the largest ``phi''`` between ``z -
        reach`` and ``z + reach``."""

    @abstractmethod
    def turning(self, lowest: Tensor, highest: Tensor) -> Tensor:
        """At least ``|D phi''| / phi''`` where the slope lies between
        ``lowest`` and ``highest``."""


@dataclass(frozen=True)
class Softplus(Activation):
    """``smoothing log((1 + exp(z / smoothing)) / 2)``; centred, since ``log 2``
    per layer and channel would add up.

    Raises ``ValueError`` for a smoothing that is not positive.
    """

    smoothing: float

    def __post_init__(self) -> None:
        if not self.smoothing > 0:
            raise ValueError(
                f"softplus needs a positive smoothing, got {self.smoothing}"
            )
        object.__setattr__(self, "max_curvature", 1 / (4 * self.smoothing))
        object.__setattr__(self, "relative", 1 / self.smoothing * (1 + 1e-15))
        object.__setattr__(
            self, "max_third", 3**0.5 / (18 * self.smoothing**2) * (1 + 1e-15)
        )

    def value(self, z: Tensor) -> Tensor:
        return self.smoothing * (
            nnf.softplus(z / self.smoothing, threshold=40) - math.log(2)
        )

    def slope(self, z: Tensor) -> Tensor:
        return torch.sigmoid(z / self.smoothing)

    def slope_and_curvature(self, z: Tensor) -> tuple[Tensor, Tensor]:
        slope = self.slope(z)
        return slope, slope * (1 - slope) / self.smoothing

    def slopes_around(self, z: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
        return self.slope(z - reach), self.slope(z + reach)

    def curvatures_around(
        self, z: Tensor, reach: Tensor
    ) -> tuple[Tensor, Tensor]:
        # even in z, and falling in |z|; written so that it does not cancel
        # where the slope is nearly 1
        def curvature(distance: Tensor) -> Tensor:
            small = self.slope(-distance)
            return small * (1 - small) / self.smoothing

        return curvature(z.abs() + reach), curvature(
            (z.abs() - reach).clamp(min=0)
        )

    def turning(self, lowest: Tensor, highest: Tensor) -> Tensor:
        # D phi'' = phi'' (1 - 2 phi') / smoothing, and |1 - 2 s| is convex in
        # the slope s
        return (
            torch.maximum((1 - 2 * lowest).abs(), (1 - 2 * highest).abs())
            * self.relative
        )


@dataclass(frozen=True)
class LeakyReLU(Activation):
    """``max(z, leak z)`` with ``0 <= leak < 1`` (0: ReLU). Raises
    ``ValueError`` for another leak."""

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
        return torch.zeros_like(z), torch.full_like(z, self.max_curvature)

    def turning(self, lowest: Tensor, highest: Tensor) -> Tensor:
        return torch.full_like(lowest, self.relative)
