"""Noise levels: what a photograph has, and how one model serves another level
than the one it was trained for.

Levels are standard deviations of white noise in grey values of [0, 1].
"""

from __future__ import annotations

import copy
import math
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from skimage.restoration import estimate_sigma

from regularizers.conditional import ConditionalRegularizer
from regularizers.construction import Learned
from regularizers.linear import LinearRegularizer

# of estimates: less than what rounding to 8 bits leaves
LEAST = 0.25 / 255
# side of a block in pixels; the most of them along a side; fewer than so many
# in all say less than the whole image.
_BLOCK, _ROWS, _FEW = 32, 32, 20
# the quantile of the blocks that is taken: texture lifts the others
_CALM = 0.1
# over that quantile, for pure noise: a block of 289 coefficients, those at
# its border mirrored, says 0.968 of the truth, and is off by 7 % of it
_CHANCE = 1.139
# the share of black and white pixels in a block that can be judged
_CLIPPED = 0.02
# of the weight of a regularizer that was trained to denoise, where pixels are
# seen through a blur or a mask. Measured: 0.03 to 0.3 were best on
# photographs blurred by a Gaussian or by motion, with noise of 1 to 8 grey
# levels.
INDIRECT = 1 / 6
# times the noise of a blurred photograph: the level at which a model for many
# levels is asked. At the noise itself (2.55 grey levels) photographs gain
# nothing and take three times as long; at ten times they lose 0.4 dB (Gaussian)
# to 0.9 dB (motion), both with a weight chosen for them
MILDER = 2.0
# of a denoiser's weight, for such a model, in the place of ``INDIRECT``
SHARE = 1 / 12
# times the trained level, or its inverse, beyond which a model is used
# further from its training than was tried
FAR = 3.0


@dataclass(frozen=True, eq=False)
class Model:
    """A regularizer and what is known of its training.

    ``name``: how messages call it; ``sigma``: the level that it was trained
    for; ``denoises``: whether it was trained to denoise and not to deblur.
    """

    name: str
    regularizer: Learned
    sigma: float
    denoises: bool = True

    @property
    def channels(self) -> int:
        """Of the images that it was trained on, 1 or 3."""
        return self.regularizer.config.channels


@dataclass(frozen=True, eq=False)
class Prepared:
    """A regularizer that fits observations of one level once they are
    multiplied by ``factor``; what it makes of them is divided by it."""

    regularizer: Learned
    factor: float


def prepared(
    model: Model,
    sigma: float,
    direct: bool,
    mixed: bool,
    reduced: bool = False,
) -> Prepared:
    """The model for noise of level ``sigma``: where a level meets a model, and
    the only such place.

    Where pixels are observed (``direct``), with ``s = sigma0 / sigma``, the
    regularizer is ``R(s x) / s^2``: minimising ``1/2 ||x - d||^2 + R(s x) /
    s^2`` is the model's own problem for ``s d``, whose noise has the level
    ``sigma0`` that it was trained for, in units of ``1 / s``. Nothing of the
    energy is approximated, and certified errors are divided by ``s``.

    Where something is missing, noise is not all that hides an image. The
    regularizer is ``R sigma / sigma0`` then, its weights being in proportion
    to noise, and ``INDIRECT`` of that if pixels are mixed and the model was
    trained to denoise. (Through a mask ``R(s x) / s^2`` would be as good, but
    takes three times as long.) A model for many levels, trained to denoise, is
    asked at ``t = MILDER sigma`` there, the nearest level that it serves: the
    regularizer is ``SHARE R_t sigma / t``. Its edges are as sharp as those of
    little noise, where ``R_25`` smooths. Small images to be enlarged are no
    better for it (30.4 dB become 29.9) and keep ``INDIRECT``.

    Args:
        model: The model.
        sigma: The level of the observation, positive.
        direct: Whether pixels were observed, with noise and nothing else.
        mixed: Whether observations mix pixels, as blurs do.
        reduced: Whether they are fewer than the pixels, to be enlarged.

    Returns:
        The regularizer to use, and the factor of the observation.
    """
    regularizer = model.regularizer
    trained = model.sigma
    share = INDIRECT
    if isinstance(regularizer, ConditionalRegularizer):
        if direct:
            trained = _nearest(regularizer, sigma)
        elif mixed and model.denoises and not reduced:
            trained = _nearest(regularizer, MILDER * sigma)
            share = SHARE
        regularizer = regularizer.at(trained)
    if direct:
        return Prepared(regularizer, trained / sigma)
    weight = sigma / trained
    if mixed and model.denoises:
        weight *= share
    return Prepared(strengthened(regularizer, weight), 1.0)


def _nearest(regularizer: ConditionalRegularizer, sigma: float) -> float:
    """The level itself, or the nearest that the model serves."""
    lowest, highest = regularizer.levels
    return min(max(sigma, lowest), highest)


def outside(model: Model, sigma: float) -> str:
    """What is to be said of a level that is far from the model's.

    Args:
        model: The model.
        sigma: The level of the observation.

    Returns:
        A sentence, empty if there is nothing to say.
    """
    if isinstance(model.regularizer, ConditionalRegularizer):
        lowest, highest = model.regularizer.levels
        if lowest <= sigma <= highest:
            return ""
        return (
            f"noise of {255 * sigma:.3g} grey levels: {model.name} serves "
            f"{255 * lowest:.3g} to {255 * highest:.3g}, the nearest was taken"
        )
    ratio = sigma / model.sigma
    if 1 / FAR <= ratio <= FAR:
        return ""
    return (
        f"noise of {255 * sigma:.3g} grey levels is far from the "
        f"{255 * model.sigma:.3g} that {model.name} was trained for"
    )


def strengthened(regularizer: Learned, strength: float) -> Learned:
    """A copy whose value is ``strength`` times that of the regularizer.

    Args:
        regularizer: Any that the commands train.
        strength: Positive; 1 leaves the regularizer as it is.

    Returns:
        The copy.
    """
    scaled = copy.deepcopy(regularizer)
    # both are logarithms of weights that R is linear in
    weights = (
        scaled.log_weight
        if isinstance(scaled, LinearRegularizer)
        else scaled.log_output
    )
    with torch.no_grad():
        weights.add_(math.log(strength))
    return scaled


def estimated_levels(values: np.ndarray) -> tuple[float, ...]:
    """The noise of each channel: ``skimage``'s ``estimate_sigma`` of the calmer
    blocks of an image.

    That is the median of the finest wavelet coefficients (Donoho and Johnstone
    1994), which texture lifts: on the whole of photographs by 9 % at 10 grey
    levels, in the calmer blocks by 5 %.

    Args:
        values: ``(height, width)`` or ``(height, width, 3)``, full scale 1.

    Returns:
        A level per channel, at least ``LEAST``.
    """
    channels = values[..., np.newaxis] if values.ndim == 2 else values
    return tuple(
        max(_estimated(channels[..., index]), LEAST)
        for index in range(channels.shape[-1])
    )


def _estimated(values: np.ndarray) -> float:
    """The level of one channel ``(height, width)``."""
    found = [
        _sigma(block)
        for block in _blocks(values)
        # black and white hide their noise
        if float(((block <= 0) | (block >= 1)).mean()) <= _CLIPPED
    ]
    if len(found) < _FEW:
        return _sigma(values)
    return float(np.quantile(found, _CALM)) * _CHANCE


def _sigma(values: np.ndarray) -> float:
    """0 for an image of one grey value, of which there is no median."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        level = float(np.asarray(estimate_sigma(values)))
    return level if math.isfinite(level) else 0.0


def _blocks(values: np.ndarray) -> list[np.ndarray]:
    """Square pieces, evenly spread, at most ``_ROWS`` in each direction."""
    corners = []
    for extent in values.shape:
        # half a block apart
        count = min(max(round(2 * extent / _BLOCK) - 1, 1), _ROWS)
        last = max(extent - _BLOCK, 0)
        corners.append(np.linspace(0, last, count).astype(int).tolist())
    return [
        values[top : top + _BLOCK, left : left + _BLOCK]
        for top in corners[0]
        for left in corners[1]
    ]
