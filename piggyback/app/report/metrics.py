"""Image quality. Grey values lie in [0, 1] (data range 1); no border is
cropped."""

from __future__ import annotations

import math

from skimage.metrics import structural_similarity
from torch import Tensor

# least side, in pixels, of an image that has a structural similarity
SSIM_WINDOW = 11


def psnr(estimate: Tensor, truth: Tensor, clip: bool = True) -> float:
    """``-10 log10`` of the mean squared error, in dB, over all pixels and
    channels; infinite for equal images.

    ``estimate`` is first clipped to [0, 1]. ``clip=False`` is for degraded
    inputs, whose noise is reported as it is.

    Raises ``ValueError`` if the shapes differ.
    """
    _same_shape(estimate, truth)
    shown = estimate.clamp(0, 1) if clip else estimate
    error = float((shown.double() - truth.double()).square().mean())
    return -10 * math.log10(error) if error > 0 else math.inf


def ssim(estimate: Tensor, truth: Tensor) -> float:
    """Structural similarity of Wang et al. (2004) of one image ``(height,
    width)`` or ``(channels, height, width)``.

    Gaussian window of 1.5 pixels, population covariance, ``estimate`` clipped
    to [0, 1], channels averaged.

    Raises ``ValueError`` if the shapes differ or a side is shorter than the
    window (11 pixels).
    """
    _same_shape(estimate, truth)
    value = structural_similarity(
        truth.detach().cpu().double().numpy(),
        estimate.detach().clamp(0, 1).cpu().double().numpy(),
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1.0,
        channel_axis=0 if truth.dim() == 3 else None,
    )
    return float(value)  # pyright: ignore[reportArgumentType]


def _same_shape(estimate: Tensor, truth: Tensor) -> None:
    if estimate.shape != truth.shape:
        raise ValueError(
            f"estimate {tuple(estimate.shape)} and truth {tuple(truth.shape)} differ in shape"
        )
