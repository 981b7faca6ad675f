"""Arrays by the rules of scikit-image, and the pixels that are restored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from skimage.util import img_as_float
from torch import Tensor

from piggyback.app.images.sources import advice
from piggyback.app.photographs.levels import estimated_levels
from piggyback.app.photographs.observed import HIGHEST, LOWEST, as_values

Sigma = float | Sequence[float] | np.ndarray
"""A noise level, or one for each channel."""

_WIDEST = 2
"""Bytes of the integers that are grey values: of longer ones, which nobody
fills, the full range would be white."""


@dataclass(frozen=True, eq=False)
class Image:
    """An image as floats.

    ``values`` ``(height, width)``, or ``(height, width, channels)`` with 1 or 3
    channels, float32 or float64, white 1; ``channel_axis``: where the caller
    has the channels, None for none.
    """

    values: np.ndarray
    channel_axis: int | None

    @property
    def channels(self) -> int:
        """1 or 3."""
        return 1 if self.values.ndim == 2 else self.values.shape[-1]

    @property
    def dtype(self) -> torch.dtype:
        """Of the computation, which is that of the values."""
        return torch.from_numpy(self.values[:1]).dtype

    @property
    def pixels(self) -> Tensor:
        """``(channels, height, width)``."""
        height, width = self.values.shape[:2]
        planes = np.moveaxis(self.values.reshape(height, width, -1), -1, 0)
        return torch.from_numpy(np.ascontiguousarray(planes))

    def like(self, pixels: Tensor) -> np.ndarray:
        """Restored pixels, laid out and of the dtype of this image.

        Args:
            pixels: ``(channels, height, width)``.

        Returns:
            The shape that the caller gave.
        """
        found = as_values(pixels).reshape(self.values.shape)
        found = found.astype(self.values.dtype)
        if self.channel_axis is None:
            return found
        return np.moveaxis(found, -1, self.channel_axis)


def as_image(image: np.ndarray, channel_axis: int | None) -> Image:
    """What a caller hands in.

    Integers of 8 and 16 bits and truth values become float64 in [0, 1] (signed
    ones in [-1, 1]) by ``img_as_float``; float32 and float64 stay what they
    are, float16 becomes float32.

    Args:
        image: ``(height, width)``, or with an axis of 1 or 3 channels.
        channel_axis: That axis, or None.

    Returns:
        The image.

    Raises:
        ValueError: For other shapes and kinds, for NaN and infinite values, and
            for floats that are far outside of [0, 1].
    """
    array = np.asarray(image)
    if channel_axis is None:
        if array.ndim != 2:
            raise ValueError(
                f"a grey image has two axes, got shape {array.shape}: name "
                "that of the colours, as channel_axis=-1"
            )
    else:
        array = _channels_last(array, channel_axis)
    if array.size == 0:
        raise ValueError(f"image has no pixels: shape {array.shape}")
    values = _as_float(array)
    if not np.isfinite(values).all():
        raise ValueError("image has NaN or infinite pixels")
    if values.min() < LOWEST or values.max() > HIGHEST:
        raise ValueError(
            f"image: floats from {values.min():g} to {values.max():g}, "
            f"expected about 0 to 1{advice(values)}"
        )
    return Image(values, channel_axis)


def _channels_last(array: np.ndarray, axis: int) -> np.ndarray:
    """Raises ``ValueError`` for what are no colours."""
    if array.ndim != 3 or not -3 <= axis <= 2:
        raise ValueError(
            f"an image with channel_axis={axis} has three axes, got shape "
            f"{array.shape}"
        )
    array = np.moveaxis(array, axis, -1)
    if array.shape[-1] not in (1, 3):
        raise ValueError(
            f"{array.shape[-1]} channels along channel_axis={axis}: images "
            "have 1 or 3; leave out alpha, and pass other channels one by one"
        )
    return array


def _as_float(array: np.ndarray) -> np.ndarray:
    """Raises ``ValueError`` for kinds that hold no grey values."""
    kind = array.dtype.kind
    size = array.dtype.itemsize
    if kind == "f":
        return array.astype(np.float32 if size <= 4 else np.float64)
    if kind in "iu" and size > _WIDEST:
        raise ValueError(
            f"image is {array.dtype}, of which white would be "
            f"{np.iinfo(array.dtype).max}: make it uint8 or uint16, or float "
            "in [0, 1]"
        )
    if kind not in "iub":
        raise ValueError(
            f"image is {array.dtype}: grey values are integers or floats"
        )
    return np.asarray(img_as_float(array))


def levels_of(image: Image, sigma: Sigma | None) -> tuple[float, ...]:
    """The noise of each channel.

    Args:
        image: The image.
        sigma: Standard deviations in the units of the float image; None:
            estimated.

    Returns:
        A level per channel.

    Raises:
        ValueError: For levels that are not in (0, 1], and for another number
            of them than there are channels.
    """
    if sigma is None:
        return estimated_levels(image.values)
    given = np.asarray(sigma)
    if given.dtype.kind not in "iuf":
        raise ValueError(f"sigma must be a number, got {sigma!r}")
    levels = given.flatten().tolist()
    if given.ndim == 0:
        levels = levels * image.channels
    if len(levels) != image.channels:
        raise ValueError(
            f"sigma: {len(levels)} levels for {image.channels} channels"
        )
    for level in levels:
        # NaN fails the comparison
        if not 0 < level <= 1:
            raise ValueError(
                f"sigma must be above 0 and at most 1, got {level:g}: noise is "
                "measured in the grey values of the float image, 25 levels of "
                "255 being 25 / 255"
            )
    return tuple(levels)
