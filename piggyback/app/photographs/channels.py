"""Colours and the channels of a model: which images are solved for, and how a
photograph is put together from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Way = Literal["as it is", "opponent colours", "repeated"]

# what is said of each way to bring an image and a model together
WORDS: dict[Way, str] = {
    "as it is": "",
    "opponent colours": (
        "the model is one of grey images: brightness and two colour "
        "differences are restored one by one"
    ),
    "repeated": (
        "the model is one of colour images: grey is repeated in its channels"
    ),
}

# brightness, red against blue, green against both. Orthonormal: white noise
# stays white, of the same level, and errors keep their size.
_OPPONENT = (
    (1 / math.sqrt(3), 1 / math.sqrt(3), 1 / math.sqrt(3)),
    (1 / math.sqrt(2), 0.0, -1 / math.sqrt(2)),
    (1 / math.sqrt(6), -2 / math.sqrt(6), 1 / math.sqrt(6)),
)


@dataclass(frozen=True, eq=False)
class Part:
    """One image to solve for: ``(1, channels, height, width)``, and the level
    of its noise."""

    observed: Tensor
    sigma: float


def way_of(channels: int, model_channels: int) -> Way:
    """How an image of so many channels meets a model of so many.

    Args:
        channels: Of the image, 1 or 3.
        model_channels: Of the images that the model was trained on.

    Returns:
        The way.
    """
    if channels == model_channels:
        return "as it is"
    return "opponent colours" if channels == 3 else "repeated"


def parts_of(pixels: Tensor, levels: Sequence[float], way: Way) -> list[Part]:
    """What is to be solved for.

    Args:
        pixels: The observation ``(channels, height, width)``.
        levels: The noise of each channel.
        way: How it meets the model.

    Returns:
        One part, or one for each channel in opponent colours.
    """
    variances = torch.tensor(levels, dtype=torch.float64).square()
    if way == "opponent colours":
        matrix = torch.tensor(_OPPONENT, dtype=torch.float64)
        mixed = torch.einsum("ij,jhw->ihw", matrix.to(pixels), pixels)
        sigmas = (matrix.square() @ variances).sqrt().tolist()
        return [
            Part(mixed[index].reshape(1, 1, *mixed.shape[-2:]), sigma)
            for index, sigma in enumerate(sigmas)
        ]
    common = float(variances.mean().sqrt())
    if way == "repeated":
        # one noise in three channels: all of it lies along the brightness,
        # where it is sqrt(3) times as large as white noise of its level
        return [
            Part(pixels.repeat(3, 1, 1).unsqueeze(0), math.sqrt(3) * common)
        ]
    return [Part(pixels.unsqueeze(0), common)]


def joined(images: Sequence[Tensor], way: Way) -> Tensor:
    """The inverse of ``parts_of``.

    Args:
        images: What was made of each part, ``(channels, height, width)``.
        way: How they were taken apart.

    Returns:
        The photograph ``(channels, height, width)``.
    """
    if way == "opponent colours":
        stacked = torch.cat(list(images))
        matrix = torch.tensor(_OPPONENT, dtype=torch.float64)
        return torch.einsum("ji,jhw->ihw", matrix.to(stacked), stacked)
    if way == "repeated":
        return images[0].mean(dim=0, keepdim=True)
    return images[0]


def joined_error(errors: Sequence[float], way: Way) -> float:
    """A bound of the Euclidean error of ``joined``, from those of its parts.

    Args:
        errors: A bound for each part.
        way: How they were taken apart.

    Returns:
        The bound: the transform is orthonormal, and the mean of three channels
        is off by at most ``1 / sqrt(3)`` of their error.
    """
    whole = math.hypot(*errors)
    return whole / math.sqrt(3) if way == "repeated" else whole
