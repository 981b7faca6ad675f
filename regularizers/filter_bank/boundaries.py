"""Boundary handling of a filter bank: extend the image, filter the extension;
fold is the exact adjoint of extend."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as nnf
from torch import Tensor


class Boundary(ABC):
    """A linear extension of images ``(batch, channels, height, width)`` by
    ``margin`` pixels on each side."""

    name: str
    norm: float
    """``||K||`` is at most this times the norm of convolution on the whole
    plane."""
    overlaps: bool = False
    """Whether two taps of a filter can fall on one pixel (at most two per
    axis)."""

    @abstractmethod
    def extend(self, image: Tensor, margin: int) -> Tensor:
        """The extended image."""

    @abstractmethod
    def fold(self, extended: Tensor, margin: int) -> Tensor:
        """The adjoint of ``extend``."""

    def smallest(self, size: int) -> int:
        """Fewest pixels per side of an image for filters of ``size``."""
        return size

    def folds(self, size: int) -> Tensor:
        """How one axis of a filter of ``size`` taps lies on the image,
        ``(kinds, size, size)``: rows are pixels, columns taps.

        One kind, the identity, unless the filter is mirrored near the border;
        then the first ``size // 2`` positions, all others, and the last ``size
        // 2``, in this order (eq. 19b).
        """
        return torch.eye(size, dtype=torch.float64).unsqueeze(0)


class Valid(Boundary):
    """No extension: the filter sees whole windows only, and the result is
    smaller by ``2 margin``."""

    name = "valid"
    norm = 1.0

    def extend(self, image: Tensor, margin: int) -> Tensor:
        return image

    def fold(self, extended: Tensor, margin: int) -> Tensor:
        return extended


class Circular(Boundary):
    """Periodic extension."""

    name = "circular"
    norm = 1.0  # the circular symbol samples the same polynomial

    def extend(self, image: Tensor, margin: int) -> Tensor:
        return nnf.pad(image, (margin, margin, margin, margin), mode="circular")

    def fold(self, extended: Tensor, margin: int) -> Tensor:
        for axis in (-2, -1):
            core, before, after = _cut(extended, axis, margin)
            core.narrow(axis, core.shape[axis] - margin, margin).add_(before)
            core.narrow(axis, 0, margin).add_(after)
            extended = core
        return extended


class Reflect(Boundary):
    """Mirror extension about the border pixel (the border itself is not
    repeated)."""

    name = "reflect"
    overlaps = True
    norm = 2.0  # at most two copies of a pixel per axis: ||extend||^2 <= 4

    def smallest(self, size: int) -> int:
        return size + 1  # then no pixel lies in both mirrored margins

    def folds(self, size: int) -> Tensor:
        margin = size // 2
        tap, pixel = torch.arange(size), torch.arange(size).unsqueeze(-1)
        first = [
            (pixel == (position + tap - margin).abs()).double()
            for position in range(margin)
        ]
        last = [fold.flip(0, 1) for fold in reversed(first)]
        return torch.stack(
            [*first, torch.eye(size, dtype=torch.float64), *last]
        )

    def extend(self, image: Tensor, margin: int) -> Tensor:
        return nnf.pad(image, (margin, margin, margin, margin), mode="reflect")

    def fold(self, extended: Tensor, margin: int) -> Tensor:
        for axis in (-2, -1):
            core, before, after = _cut(extended, axis, margin)
            core.narrow(axis, 1, margin).add_(before.flip(axis))
            core.narrow(axis, core.shape[axis] - 1 - margin, margin).add_(
                after.flip(axis)
            )
            extended = core
        return extended


BOUNDARIES: dict[str, Boundary] = {
    boundary.name: boundary for boundary in (Valid(), Circular(), Reflect())
}
"""By the name stored in a configuration file."""


def _cut(
    extended: Tensor, axis: int, margin: int
) -> tuple[Tensor, Tensor, Tensor]:
    """A copy of what lies inside the margins of one axis, and the two margins."""
    size = extended.shape[axis] - 2 * margin
    core = extended.narrow(axis, margin, size).clone()
    return (
        core,
        extended.narrow(axis, 0, margin),
        extended.narrow(axis, margin + size, margin),
    )
