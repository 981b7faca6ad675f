"""PSNR and SSIM of every way to deblur, on images that nothing was tuned on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from experiments.studies.deblurring.methods import (
    LEARNED,
    TV,
    TunedMethod,
)
from piggyback.app.degradations.base import Blur
from piggyback.app.evaluate import tracked
from piggyback.app.images.sources import Photograph, image_generator
from piggyback.app.report.figures import Comparison
from piggyback.app.report.metrics import psnr, ssim

BLURRED = "blurred"
"""The observation itself, as a method."""


@dataclass(frozen=True)
class DeblurringLine:
    """One method: its tuned number (0: none), and PSNR in dB and SSIM, means
    over the test images."""

    method: str
    tuned: float
    psnr: float
    ssim: float


def measure(
    methods: Sequence[TunedMethod],
    images: Sequence[Photograph],
    blur: Blur,
    seed: int,
) -> tuple[list[DeblurringLine], list[Comparison]]:
    """Scores from the part of each image that was observed.

    Args:
        methods: what is compared.
        images: clean, in grey values.
        blur: what is done to them.
        seed: of the noise.

    Returns:
        A line per method, the observation first; a picture per image.
    """
    scores: dict[str, list[tuple[float, float]]] = {BLURRED: []}
    scores |= {method.name: [] for method in methods}
    pictures = []
    for index, image in enumerate(tracked(images, len(images), "testing")):
        observed = blur.observe(image.pixels, image_generator(seed, index))
        truth = blur.visible(image.pixels)
        estimates = restored(methods, observed, blur)
        for name, estimate in estimates.items():
            score = (psnr(estimate, truth), ssim(estimate, truth))
            scores[name].append(score)
        pictures.append(
            Comparison(
                image.name,
                estimates[BLURRED],
                estimates[TV],
                estimates[LEARNED],
                truth,
            )
        )
    tuned = {method.name: method.number for method in methods}
    lines = [
        _line(name, tuned.get(name, 0.0), pairs)
        for name, pairs in scores.items()
    ]
    return lines, pictures


def restored(
    methods: Sequence[TunedMethod], observed: Tensor, blur: Blur
) -> dict[str, Tensor]:
    """What every method makes of one observation ``(channels, height, width)``,
    and the observation, cut to what was observed."""
    estimates = {BLURRED: blur.shown(observed)}
    for method in methods:
        whole = method.deblur(observed.unsqueeze(0), blur)
        estimates[method.name] = blur.visible(whole)[0]
    return estimates


def _line(
    name: str, tuned: float, pairs: Sequence[tuple[float, float]]
) -> DeblurringLine:
    decibels = [one for one, _ in pairs]
    similarities = [one for _, one in pairs]
    count = len(pairs)
    return DeblurringLine(
        name, tuned, sum(decibels) / count, sum(similarities) / count
    )
