"""Boundary handling of a filter bank: extend the image, filter the extension;
fold is the exact adjoint of extend."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as nnf
from torch import Tensor


class Boundary(ABC):
    """A linear extension ``E`` of images ``(batch, channels, height, width)``
    by ``margin`` pixels on each side (docs/theory.md, section 5.6)."""

    name: str
    """What a configuration file calls it."""
    norm: float
    """``||K||`` is at most this times the norm of convolution on the whole
    plane (eq. 18)."""
    overlaps: bool = False
    """Whether two taps of a filter can fall on one pixel (at most two per
    axis)."""

    @abstractmethod
    def extend(self, image: Tensor, margin: int) -> Tensor:
        """The extended image ``E x``.

        Args:
            image: ``(batch, channels, height, width)``.
            margin: pixels to add per side.

        Returns:
            ``(batch, channels, height + 2 margin, width + 2 margin)``, unless
            the boundary says otherwise.
        """

    @abstractmethod
    def fold(self, extended: Tensor, margin: int) -> Tensor:
        """The adjoint of ``extend``, ``E^T``.

        Args:
            extended: of the shape that ``extend`` returns.
            margin: as in ``extend``.

        Returns:
            ``(batch, channels, height, width)``.
        """

    def smallest(self, size: int) -> int:
        """Fewest pixels per side of an image.

        Args:
            size: side of the filters, in pixels.
        """
        return size

    def folds(self, size: int) -> Tensor:
        """How one axis of a filter lies on the image (eq. 19b).

        One kind, the identity, unless the filter is mirrored near the border;
        then the first ``size // 2`` positions, all others, and the last ``size
        // 2``, in this order.

        Args:
            size: taps of the filter along the axis.

        Returns:
            ``(kinds, size, size)`` in float64: rows are pixels, columns taps.
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
    # the circular symbol samples the polynomial that bounds the whole plane
    norm = 1.0

    def extend(self, image: Tensor, margin: int) -> Tensor:
        return nnf.pad(image, (margin,) * 4, mode="circular")

    def fold(self, extended: Tensor, margin: int) -> Tensor:
        for axis in (-2, -1):
            core, before, after = _cut(extended, axis, margin)
            # what lies before the image repeats its end, and conversely
            last = core.shape[axis] - margin
            core.narrow(axis, last, margin).add_(before)
            core.narrow(axis, 0, margin).add_(after)
            extended = core
        return extended


class Reflect(Boundary):
    """Mirror extension about the border pixel (the border itself is not
    repeated)."""

    name = "reflect"
    overlaps = True
    # at most two copies of a pixel per axis: ||E||^2 <= 4
    norm = 2.0

    def smallest(self, size: int) -> int:
        # then no pixel lies in both mirrored margins, and two copies are all
        return size + 1

    def folds(self, size: int) -> Tensor:
        margin = size // 2
        tap = torch.arange(size)
        pixel = torch.arange(size).unsqueeze(-1)
        first = []
        for position in range(margin):
            # the taps before the border are mirrored about pixel 0
            landing = (position + tap - margin).abs()
            first.append((pixel == landing).double())
        inside = torch.eye(size, dtype=torch.float64)
        last = [fold.flip(0, 1) for fold in reversed(first)]
        return torch.stack([*first, inside, *last])

    def extend(self, image: Tensor, margin: int) -> Tensor:
        return nnf.pad(image, (margin,) * 4, mode="reflect")

    def fold(self, extended: Tensor, margin: int) -> Tensor:
        for axis in (-2, -1):
            core, before, after = _cut(extended, axis, margin)
            # the mirror leaves the border pixel out: one further in
            core.narrow(axis, 1, margin).add_(before.flip(axis))
            last = core.shape[axis] - 1 - margin
            core.narrow(axis, last, margin).add_(after.flip(axis))
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
    # a copy: the caller adds to it, and ``extended`` is somebody else's
    core = extended.narrow(axis, margin, size).clone()
    before = extended.narrow(axis, 0, margin)
    after = extended.narrow(axis, margin + size, margin)
    return core, before, after
