"""What happened to a photograph before the noise, and the data term that says
so."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as nnf
from torch import Tensor

from piggyback.forward.sampling import Inpainting, SuperResolution
from piggyback.terms.data.base import DataTerm
from piggyback.terms.data.least_squares import LeastSquares
from piggyback.types import Primal

# relative weight of the pull to the smooth continuation, which makes missing
# pixels unique and their distances certifiable. A third of it costs 0.04 dB
# at most and twice the steps.
MASK_RIDGE = 3e-3
# the same for enlarged images, against ``||B||^2``
SCALE_RIDGE = 1.2e-2


class Undoing(Protocol):
    """What is to be undone: ``Missing``, ``Reduced``, or the degradations of
    training, ``Noise`` and ``Blur``."""

    @property
    def direct(self) -> bool:
        """Whether what was observed are pixels, with noise and nothing else."""
        ...

    @property
    def mixed(self) -> bool:
        """Whether what was observed are means of pixels."""
        ...

    def data_term(self, observed: Tensor) -> DataTerm:
        """What the observations ``(1, channels, height, width)`` say."""
        ...

    def visible(self, image: Tensor) -> Tensor:
        """The part of an image ``(..., height, width)`` that is wanted."""
        ...


class Missing:
    """Pixels are missing where ``mask`` ``(height, width)`` is 0; 1
    elsewhere. ``name``: where the mask comes from, for messages."""

    def __init__(self, mask: Tensor, name: str = "") -> None:
        self.mask = mask
        self.name = name
        self.direct = False
        self.mixed = False

    def data_term(self, observed: Tensor) -> DataTerm:
        """Least squares at the pixels that were seen; the ridge pulls to the
        smooth continuation."""
        mask = self.mask.to(observed)
        forward = SeenPixels(mask)
        seen = observed * mask
        centre = forward.pilot(seen)
        return LeastSquares(seen, forward, MASK_RIDGE, centre=centre)

    def visible(self, image: Tensor) -> Tensor:
        """All of it."""
        return image


class Reduced:
    """Each pixel is the mean of ``factor`` x ``factor`` wanted ones."""

    def __init__(self, factor: int) -> None:
        self.factor = factor
        self.direct = False
        self.mixed = True

    def data_term(self, observed: Tensor) -> DataTerm:
        """Least squares of the means; the ridge pulls to the bicubic
        enlargement."""
        centre = nnf.interpolate(
            observed, scale_factor=self.factor, mode="bicubic"
        )
        # ||B||^2 = 1 / factor^2
        ridge = SCALE_RIDGE / self.factor**2
        forward = SuperResolution(self.factor)
        return LeastSquares(observed, forward, ridge, centre=centre)

    def visible(self, image: Tensor) -> Tensor:
        """All of it."""
        return image


class SeenPixels(Inpainting):
    """The pixels of a mask; models that look at the observation see the
    missing ones filled smoothly instead of black."""

    def pilot(self, y: Tensor, /) -> Primal:
        """What was seen, and averages of what is near elsewhere."""
        mask = self._like(y).expand_as(y)
        return filled(y, mask)


def filled(values: Tensor, mask: Tensor) -> Tensor:
    """``values`` where ``mask`` is 1; elsewhere what coarser resolutions hold,
    the finest that was seen.

    Args:
        values: ``(batch, channels, height, width)``.
        mask: Zeros and ones, of the same shape.

    Returns:
        An image without holes, unless nothing at all was seen.
    """
    if bool((mask > 0).all()) or max(values.shape[-2:]) == 1:
        return values
    weight = nnf.avg_pool2d(mask, 2, ceil_mode=True)
    known = weight > 0
    mean = nnf.avg_pool2d(values * mask, 2, ceil_mode=True)
    coarse = filled(
        torch.where(known, mean / torch.where(known, weight, 1.0), 0.0),
        known.to(mask),
    )
    smooth = nnf.interpolate(
        coarse, size=values.shape[-2:], mode="bilinear", align_corners=False
    )
    return torch.where(mask > 0, values, smooth)
