"""Boundary handling of a filter bank: extend the image, filter the extension; fold is the exact adjoint of extend."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch.nn.functional as nnf
from torch import Tensor


class Boundary(ABC):
    """A linear extension of images ``(batch, channels, height, width)`` by ``margin`` pixels on each side."""

    name: str

    @abstractmethod
    def extend(self, image: Tensor, margin: int) -> Tensor:
        """The extended image."""

    @abstractmethod
    def fold(self, extended: Tensor, margin: int) -> Tensor:
        """The adjoint of ``extend``."""

    @abstractmethod
    def multiplicity(self, size: int, margin: int) -> int:
        """How often, at most, one pixel of a row of ``size`` pixels occurs in its extension."""

    @abstractmethod
    def overlap(self, size: int, margin: int) -> int:
        """How many taps of one filter row, at most, fall on one pixel (the filter is ``2 margin + 1`` long)."""


class Valid(Boundary):
    """No extension: the filter sees whole windows only, and the result is smaller by ``2 margin``."""

    name = "valid"

    def extend(self, image: Tensor, margin: int) -> Tensor:
        return image

    def fold(self, extended: Tensor, margin: int) -> Tensor:
        return extended

    def multiplicity(self, size: int, margin: int) -> int:
        return 1

    def overlap(self, size: int, margin: int) -> int:
        return 1


class Circular(Boundary):
    """Periodic extension."""

    name = "circular"

    def extend(self, image: Tensor, margin: int) -> Tensor:
        return nnf.pad(image, (margin, margin, margin, margin), mode="circular")

    def fold(self, extended: Tensor, margin: int) -> Tensor:
        for axis in (-2, -1):
            size = extended.shape[axis] - 2 * margin
            core = extended.narrow(axis, margin, size).clone()
            core.narrow(axis, size - margin, margin).add_(extended.narrow(axis, 0, margin))
            core.narrow(axis, 0, margin).add_(extended.narrow(axis, margin + size, margin))
            extended = core
        return extended

    def multiplicity(self, size: int, margin: int) -> int:
        return 2 if size >= 2 * margin else 3

    def overlap(self, size: int, margin: int) -> int:
        return 1


class Reflect(Boundary):
    """Mirror extension about the border pixel (the border itself is not repeated)."""

    name = "reflect"

    def extend(self, image: Tensor, margin: int) -> Tensor:
        return nnf.pad(image, (margin, margin, margin, margin), mode="reflect")

    def fold(self, extended: Tensor, margin: int) -> Tensor:
        for axis in (-2, -1):
            size = extended.shape[axis] - 2 * margin
            core = extended.narrow(axis, margin, size).clone()
            core.narrow(axis, 1, margin).add_(extended.narrow(axis, 0, margin).flip(axis))
            core.narrow(axis, size - 1 - margin, margin).add_(extended.narrow(axis, margin + size, margin).flip(axis))
            extended = core
        return extended

    def multiplicity(self, size: int, margin: int) -> int:
        return 2 if size >= 2 * margin + 2 else 3

    def overlap(self, size: int, margin: int) -> int:
        return 2


BOUNDARIES: dict[str, Boundary] = {boundary.name: boundary for boundary in (Valid(), Circular(), Reflect())}
"""By the name stored in a configuration file."""
