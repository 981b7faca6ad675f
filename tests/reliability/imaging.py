"""Functions for users of scikit-image: what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from piggyback.imaging.functions import deconvolve_learned, denoise_learned
from tests.reliability.base import Refusal


def picture(*shape: int) -> np.ndarray:
    """Noise around grey, float64."""
    noise = np.random.default_rng(0).random(shape or (16, 16))
    return 0.4 + 0.2 * noise


def _denoised(
    image: np.ndarray, sigma: object = 0.1, axis: int | None = None
) -> Callable[[Path], object]:
    return lambda _: denoise_learned(image, sigma, channel_axis=axis)  # type: ignore[arg-type]


def _sharpened(kernel: object) -> Callable[[Path], object]:
    return lambda _: deconvolve_learned(picture(), kernel, 0.1)  # type: ignore[arg-type]


def _with_nan() -> np.ndarray:
    image = picture()
    image[3, 4] = np.nan
    return image


REFUSALS: list[Refusal] = [
    Refusal(
        "denoise_learned of colours without channel_axis",
        _denoised(picture(16, 16, 3)),
        "channel_axis=-1",
    ),
    Refusal(
        "denoise_learned of a grey image with channel_axis",
        _denoised(picture(), axis=-1),
        "three axes",
    ),
    Refusal(
        "denoise_learned of an image with alpha",
        _denoised(picture(16, 16, 4), axis=-1),
        "alpha",
    ),
    Refusal(
        "denoise_learned of floats in 0...255",
        _denoised(255 * picture()),
        "levels of 255",
    ),
    Refusal(
        "denoise_learned of 0...255 as 64-bit integers",
        _denoised((255 * picture()).astype(np.int64)),
        "int64",
    ),
    Refusal(
        "denoise_learned of complex numbers",
        _denoised(picture().astype(np.complex128)),
        "complex128",
    ),
    Refusal("denoise_learned of NaN", _denoised(_with_nan()), "NaN"),
    Refusal(
        "denoise_learned of nothing", _denoised(np.zeros((0, 16))), "no pixels"
    ),
    Refusal(
        "denoise_learned with noise in levels of 255",
        _denoised(picture(), 25),
        "25 / 255",
    ),
    Refusal(
        "denoise_learned with a noise level of 0",
        _denoised(picture(), 0.0),
        "above 0",
    ),
    Refusal(
        "denoise_learned with a level in quotes",
        _denoised(picture(), "auto"),
        "auto",
    ),
    Refusal(
        "denoise_learned with two levels for three channels",
        _denoised(picture(16, 16, 3), (0.1, 0.1), -1),
        "2 levels for 3",
    ),
    Refusal(
        "denoise_learned with a model that is not there",
        lambda _: denoise_learned(picture(), 0.1, model="denoise-gray"),
        "denoise-gray",
    ),
    Refusal(
        "denoise_learned with a tolerance of 0",
        lambda _: denoise_learned(picture(), 0.1, tolerance=0.0),
        "tolerance",
    ),
    Refusal(
        "deconvolve_learned with a kernel of even sides",
        _sharpened(np.full((2, 2), 0.25)),
        "2x2",
    ),
    Refusal(
        "deconvolve_learned with a kernel of words",
        _sharpened(["gaussian"]),
        "kernel",
    ),
    Refusal(
        "deconvolve_learned with a kernel that takes light away",
        _sharpened(np.array([[0.0, -1.0, 0.0]])),
        "non-negative",
    ),
]
