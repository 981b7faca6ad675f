"""Photographs from files: numbers, and what is needed to write them back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from piggyback.app.console.terminal import printable
from piggyback.app.errors import UserError
from piggyback.app.images.decoders import TRANSPARENT, Picture
from piggyback.app.images.encoders import SUFFIXES, Depth, Kind, depth_of
from piggyback.app.images.pictures import read_picture
from piggyback.app.images.sources import MINIMUM_SIDE, advice, image_files

# grey values that noise takes beyond black and white in floating-point files
LOWEST, HIGHEST = -1.0, 2.0


@dataclass(frozen=True, eq=False)
class Observed:
    """A photograph as it is.

    ``pixels``: float32 ``(channels, height, width)``, 1 or 3 channels, white
    1; one channel where the file has three equal ones (``grey_as_colour``).
    ``alpha`` ``(height, width)``, full scale 1, or None. ``notes``: what
    reading left out or assumed.
    """

    path: Path
    pixels: Tensor
    alpha: np.ndarray | None
    grey_as_colour: bool
    depth: Depth
    profile: bytes
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name of the file, as it can be printed."""
        return printable(self.path.name)

    @property
    def kind(self) -> Kind:
        """The format of the file, by its name."""
        return SUFFIXES[self.path.suffix.lower()]

    @property
    def values(self) -> np.ndarray:
        """``(height, width)`` or ``(height, width, 3)`` in float64."""
        return as_values(self.pixels)


def as_values(pixels: Tensor) -> np.ndarray:
    """``(channels, height, width)`` as files have it, in float64.

    Args:
        pixels: With 1 or 3 channels, on any device.

    Returns:
        ``(height, width)`` or ``(height, width, 3)``.
    """
    values = pixels.detach().cpu().double().permute(1, 2, 0).numpy()
    return values[..., 0] if values.shape[-1] == 1 else values


def read_observed(path: Path) -> Observed:
    """Read a photograph at full depth, upright, with alpha and colour profile.

    Args:
        path: The file.

    Returns:
        The photograph.

    Raises:
        UserError: For a file that cannot be read or is of another kind, for
            fewer than 16 pixels on a side, and for grey values that are not
            finite or far outside of [0, 1].
    """
    picture = read_picture(path)
    levels = picture.levels
    height, width = levels.shape[:2]
    if min(height, width) < MINIMUM_SIDE:
        raise UserError(
            f"{path}: {width}x{height} pixels, need at least "
            f"{MINIMUM_SIDE} on a side"
        )
    grey_as_colour = levels.ndim == 3 and not picture.coloured
    values = picture.values()
    if grey_as_colour:
        values = values[..., 0]
    _check_values(values, path)
    planes = (
        values[np.newaxis] if values.ndim == 2 else np.moveaxis(values, 2, 0)
    )
    pixels = torch.from_numpy(np.ascontiguousarray(planes, dtype=np.float32))
    notes = tuple(text for text in picture.notes if text != TRANSPARENT)
    if TRANSPARENT in picture.notes and picture.alpha is None:
        notes += (TRANSPARENT,)
    return Observed(
        path=path,
        pixels=pixels,
        alpha=_opacity(picture),
        grey_as_colour=grey_as_colour,
        depth=depth_of(picture),
        profile=picture.profile,
        notes=notes,
    )


def _check_values(values: np.ndarray, path: Path) -> None:
    if not np.isfinite(values).all():
        raise UserError(f"{path}: holds NaN or infinite pixels")
    if values.min() < LOWEST or values.max() > HIGHEST:
        raise UserError(
            f"{path}: pixels from {values.min():g} to {values.max():g}, "
            f"expected about 0 to 1{advice(values)}"
        )


def _opacity(picture: Picture) -> np.ndarray | None:
    if picture.alpha is None:
        return None
    return picture.alpha.astype(np.float64) / picture.scale


def files_of(inputs: list[Path]) -> list[Path]:
    """The photographs that were named, those of folders by name.

    Args:
        inputs: Files and folders.

    Returns:
        Files, in the order of the inputs, none twice.

    Raises:
        UserError: For an input that does not exist, a folder without images,
            and a file that is not called like an image that can be read.
    """
    found: list[Path] = []
    for given in inputs:
        if given.is_dir():
            found += image_files(given)
        elif not given.exists():
            raise UserError(f"{given}: no such file or folder")
        elif given.suffix.lower() not in SUFFIXES:
            raise UserError(
                f"{given}: is not called like an image; known endings are "
                f"{', '.join(SUFFIXES)}"
            )
        else:
            found.append(given)
    once = {path.resolve(): path for path in reversed(found)}
    return [path for path in found if once[path.resolve()] is path]
