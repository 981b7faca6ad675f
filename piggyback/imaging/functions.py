"""``denoise_learned`` and ``deconvolve_learned``: the restorer of the command
``restore``, with the manners of ``skimage.restoration``."""

from __future__ import annotations

import warnings
from os import PathLike
from typing import Literal, overload

import numpy as np
import torch

from piggyback.app.degradations.base import Blur, Noise
from piggyback.app.degradations.blur_kernels import check_kernel
from piggyback.app.errors import UserError
from piggyback.app.photographs.levels import outside
from piggyback.app.photographs.restoring import Restoration, Restorer
from piggyback.app.photographs.undoing import Undoing
from piggyback.app.restoration import TOLERANCE
from piggyback.imaging.arrays import Image, Sigma, as_image, levels_of
from piggyback.imaging.models import model_for
from piggyback.solvers.stopping import NotConverged
from piggyback.values import require_positive


@overload
def denoise_learned(
    image: np.ndarray,
    sigma: Sigma | None = None,
    *,
    model: str | PathLike[str] | None = None,
    tolerance: float = TOLERANCE,
    channel_axis: int | None = None,
    return_error: Literal[False] = False,
) -> np.ndarray: ...
@overload
def denoise_learned(
    image: np.ndarray,
    sigma: Sigma | None = None,
    *,
    model: str | PathLike[str] | None = None,
    tolerance: float = TOLERANCE,
    channel_axis: int | None = None,
    return_error: Literal[True],
) -> tuple[np.ndarray, float]: ...
def denoise_learned(
    image: np.ndarray,
    sigma: Sigma | None = None,
    *,
    model: str | PathLike[str] | None = None,
    tolerance: float = TOLERANCE,
    channel_axis: int | None = None,
    return_error: bool = False,
) -> np.ndarray | tuple[np.ndarray, float]:
    """Remove white noise with a learned convex regularizer.

    Warns if the tolerance was not reached (``NotConverged``), and of levels
    that the model does not serve, for which the nearest is taken.

    Args:
        image: ``(height, width)``, or with an axis of 1 or 3 channels.
            Integers of 8 and 16 bits are converted to [0, 1] as by
            ``skimage.util.img_as_float``, floats are taken as they are.
        sigma: The standard deviation of the noise in the units of the float
            image (25 levels of 255 are ``25 / 255``), or one for each channel;
            None: estimated from the image.
        model: A shipped model by name, a run folder or a model file; None: the
            shipped one for grey or colour images. One for grey images restores
            brightness and two colour differences of a colour image.
        tolerance: Certified root-mean-square distance to the minimiser, in the
            units of the float image.
        channel_axis: The axis of the channels; None: the image is grey.
        return_error: Whether the certified distance is returned as well.

    Returns:
        The image, of the shape of the input: float64 for integers, else in its
        own precision (float32 for float16). It is not clipped. With
        ``return_error`` also the certified root-mean-square distance to the
        minimiser.

    Raises:
        ValueError: For images, levels, models and tolerances that cannot be
            used; floats must lie within [-1, 2].
        MemoryError: If a large image needs more than there is.
    """
    observed = as_image(image, channel_axis)
    levels = levels_of(observed, sigma)
    undoing = Noise(max(levels))
    found = _restored(observed, levels, undoing, model, tolerance)
    return _answer(observed, found, return_error)


@overload
def deconvolve_learned(
    image: np.ndarray,
    kernel: np.ndarray,
    sigma: Sigma | None = None,
    *,
    model: str | PathLike[str] | None = None,
    tolerance: float = TOLERANCE,
    channel_axis: int | None = None,
    return_error: Literal[False] = False,
) -> np.ndarray: ...
@overload
def deconvolve_learned(
    image: np.ndarray,
    kernel: np.ndarray,
    sigma: Sigma | None = None,
    *,
    model: str | PathLike[str] | None = None,
    tolerance: float = TOLERANCE,
    channel_axis: int | None = None,
    return_error: Literal[True],
) -> tuple[np.ndarray, float]: ...
# the signature of the functions beside it in scikit-image, one argument more
def deconvolve_learned(
    image: np.ndarray,
    kernel: np.ndarray,
    sigma: Sigma | None = None,
    *,
    model: str | PathLike[str] | None = None,
    tolerance: float = TOLERANCE,
    channel_axis: int | None = None,
    return_error: bool = False,
) -> np.ndarray | tuple[np.ndarray, float]:
    """Undo a known blur with a learned convex regularizer.

    Nothing is assumed of the world beyond the border. Warns as
    ``denoise_learned``.

    Args:
        image: As ``denoise_learned``.
        kernel: The point spread function ``(rows, columns)``, odd sides and
            non-negative entries, its middle at the middle pixel; the image is
            its convolution with the sharp one. It is divided by its sum, so
            that grey values are kept.
        sigma: As ``denoise_learned``, the noise of the blurred image.
        model: As ``denoise_learned``.
        tolerance: As ``denoise_learned``.
        channel_axis: As ``denoise_learned``.
        return_error: As ``denoise_learned``.

    Returns:
        As ``denoise_learned``.

    Raises:
        ValueError: As ``denoise_learned``, and for no such kernel.
        MemoryError: As ``denoise_learned``.
    """
    observed = as_image(image, channel_axis)
    levels = levels_of(observed, sigma)
    undoing = Blur(_kernel(kernel), max(levels), edges="valid")
    require_positive("tolerance", tolerance)
    height, width = observed.values.shape[:2]
    rows, columns = undoing.border
    # the minimiser goes beyond the border; what is wanted of it may hold all
    # of the error
    unseen = (height + 2 * rows) * (width + 2 * columns) / (height * width)
    within = tolerance / unseen**0.5
    found = _restored(observed, levels, undoing, model, within)
    return _answer(observed, found, return_error)


def _kernel(kernel: np.ndarray) -> torch.Tensor:
    """In float64, of sum 1. Raises ``ValueError``."""
    array = np.asarray(kernel)
    if array.dtype.kind not in "iuf":
        raise ValueError(f"kernel is {array.dtype}: its entries are numbers")
    values = torch.from_numpy(array.astype(np.float64))
    try:
        check_kernel(values, "kernel")
    except UserError as error:
        raise ValueError(str(error)) from error
    return values / values.sum()


def _restored(
    image: Image,
    levels: tuple[float, ...],
    undoing: Undoing,
    wanted: str | PathLike[str] | None,
    tolerance: float,
) -> Restoration:
    """Raises ``ValueError`` and ``MemoryError``."""
    require_positive("tolerance", tolerance)
    model = model_for(wanted, image.channels, image.dtype)
    restorer = Restorer(model, undoing, float(tolerance))
    try:
        found = restorer.restore(image.pixels, levels)
    except UserError as error:
        raise MemoryError(str(error)) from error
    # the frame of the caller, two further out than this one
    if not found.converged:
        warnings.warn(
            f"the restored image is within {found.distance:.2g} of the "
            f"minimiser, not within the tolerance of {tolerance:g}",
            NotConverged,
            stacklevel=3,
        )
    far = outside(model, float(np.sqrt(np.mean(np.square(levels)))))
    if far:
        warnings.warn(far, UserWarning, stacklevel=3)
    return found


def _answer(
    image: Image, found: Restoration, return_error: bool
) -> np.ndarray | tuple[np.ndarray, float]:
    restored = image.like(found.pixels)
    return (restored, found.distance) if return_error else restored
