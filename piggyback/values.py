"""Values that no computation can mend: refused by name, before the work."""

from __future__ import annotations

import math
import warnings
from numbers import Real

import torch
from torch import Tensor

_FULL_SCALE = 1e5
"""Largest grey value of whole numbers of 16 bits, and a little noise: beyond it
nothing can be said of the scale."""
_BRIGHT = 16.0
_BRIGHT_MEAN = 2.0
"""No image in [0, 1] has a pixel or, whatever its outliers, a mean beyond
these; nearly every one in 0...255 has."""


def first_bad_sample(values: Tensor) -> int | None:
    """The first sample with a NaN or infinite value, None if there is none
    (synchronises).

    Args:
        values: ``(batch, ...)``.
    """
    finite = torch.isfinite(values).flatten(1).all(dim=1)
    # tensors without memory have no values to look at
    if values.is_meta or bool(finite.all()):
        return None
    return int((~finite).nonzero()[0])


def require_finite(name: str, values: Tensor) -> None:
    """Refuse NaN and infinity (synchronises).

    Args:
        name: what the message calls the values.
        values: any shape.

    Raises:
        ValueError: if there is one.
    """
    if not (values.is_meta or bool(torch.isfinite(values).all())):
        raise ValueError(f"{name} has NaN or infinite values")


def require_tensor(name: str, values: Tensor) -> None:
    """Refuse lists, arrays and numbers where a tensor is meant.

    Args:
        name: what the message calls the values.
        values: what was given.

    Raises:
        ValueError: unless it is a tensor.
    """
    if not isinstance(values, Tensor):
        raise ValueError(
            f"{name} must be a torch.Tensor, got {type(values).__name__}: "
            "torch.as_tensor makes it one"
        )


def require_kind(name: str, value: object, kind: type) -> None:
    """Refuse objects of another class, and the class itself in the place of an
    object.

    Args:
        name: what the message calls the value.
        value: what was given.
        kind: what is meant.

    Raises:
        ValueError: unless ``value`` is an object of ``kind``.
    """
    if isinstance(value, kind):
        return
    found = f"{type(value).__name__} {value!r:.40}"
    if isinstance(value, type):
        found = f"the class {value.__name__}"
    raise ValueError(
        f"{name} must be of the class {kind.__name__}, got {found}"
    )


def require_images(name: str, values: Tensor) -> None:
    """Refuse what is not pixels in float32 or float64: what everything computes
    in.

    Args:
        name: what the message calls the values.
        values: ``(batch, ...)``.

    Raises:
        ValueError: for other dtypes, sparse or nested tensors, and no pixels.
    """
    require_tensor(name, values)
    if values.is_nested or values.layout != torch.strided:
        layout = "nested" if values.is_nested else values.layout
        raise ValueError(f"{name} must be a dense tensor, got a {layout} one")
    if values.dim() == 0 or 0 in values.shape[1:]:
        raise ValueError(
            f"{name} has no pixels: it needs a batch axis and images, got "
            f"shape {tuple(values.shape)}"
        )
    if values.dtype in (torch.float32, torch.float64):
        return
    if values.dtype.is_complex:
        raise ValueError(
            f"{name} is {values.dtype}: complex data need LeastSquares with "
            "the operator that made them"
        )
    if values.dtype.is_floating_point:
        raise ValueError(
            f"{name} is {values.dtype}, which is too coarse for any "
            "tolerance: convert it with .float()"
        )
    raise ValueError(
        f"{name} is {values.dtype}: grey values are floats in [0, 1], as x.float() / 255 makes them"
    )


def require_samples(images: Tensor) -> None:
    """Refuse an empty batch, where something is asked of its samples.

    Args:
        images: ``(batch, ...)``.

    Raises:
        ValueError: if there is none.
    """
    if images.shape[0] == 0:
        raise ValueError(
            "the batch is empty: there is nothing to solve or to differentiate"
        )


def require_number(name: str, value: float) -> None:
    """Refuse what is no real number, finite or not.

    Args:
        name: what the message calls the value.
        value: what was given.

    Raises:
        ValueError: for text, complex numbers and other objects.
    """
    if not isinstance(value, Real):
        raise ValueError(f"{name} must be a number, got {value!r}")


def require_positive(name: str, value: float) -> None:
    """Refuse what is no positive finite number.

    Args:
        name: what the message calls the value.
        value: what was given.

    Raises:
        ValueError: for zero, negative numbers, infinity, NaN and text.
    """
    if isinstance(value, str) or not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} must be positive and finite, got {value!r}")


def require_count(name: str, value: int, least: int = 1) -> None:
    """Refuse what is no count.

    Args:
        name: what the message calls the value.
        value: what was given.
        least: the smallest number allowed.

    Raises:
        ValueError: unless it is a whole number, ``least`` or more.
    """
    # True is a whole number to the language, and a mistake here
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < least:
        raise ValueError(
            f"{name} must be a whole number, at least {least}, got {value}"
        )


def warn_of_scale(images: Tensor) -> None:
    """A ``UserWarning`` if images are clearly in 0...255 (or 65535);
    synchronises.

    Args:
        images: ``(batch, channels, height, width)``; others are passed over.
    """
    if images.dim() != 4 or images.numel() == 0 or images.is_meta:
        return
    size = images.detach().flatten(1)
    largest = size.amax(dim=1)
    # as far below zero as above: whatever it is, it is no picture in 0...255
    noise = size.amin(dim=1) < -largest / 8
    bright_pixel = (largest > _BRIGHT) & ~noise
    bright_mean = size.mean(dim=1).abs() > _BRIGHT_MEAN
    bright = (bright_pixel | bright_mean) & (largest <= _FULL_SCALE)
    if bool(bright.any()):
        found = float(torch.where(bright, largest, 0.0).max())
        warnings.warn(
            f"grey values up to {found:.4g}: weights, tolerances and "
            "smoothings are for [0, 1], divide by 255 (or 65535)",
            UserWarning,
            stacklevel=3,
        )
