"""Blur kernels: Gaussian, uniform, seeded camera motion, or read from a file.
Odd sides, non-negative, sum 1, float64."""

from __future__ import annotations

import io
import math
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from piggyback.app.errors import UserError
from piggyback.app.images.pictures import read_picture, regular_content

SIDE = 9
MOTION_SIDE = 15
NAMES = ("gaussian", "uniform", "motion")
TEXT = frozenset({".txt", ".csv", ".tsv"})


def gaussian_kernel(std: float = 1.5, side: int = SIDE) -> Tensor:
    """``side`` x ``side`` samples of a Gaussian with standard deviation ``std``
    in pixels.

    Raises ``UserError`` for a ``std`` that is not positive and finite.
    """
    if not (math.isfinite(std) and std > 0):
        raise UserError(
            f"the standard deviation of a Gaussian blur must be positive, got {std}"
        )
    offset = torch.arange(side, dtype=torch.float64) - side // 2
    profile = torch.exp(-(offset / std).square() / 2)
    return _normalised(torch.outer(profile, profile))


def uniform_kernel(side: int = SIDE) -> Tensor:
    """The mean over ``side`` x ``side`` pixels."""
    return _normalised(torch.ones(side, side, dtype=torch.float64))


def motion_kernel(
    seed: int, side: int = MOTION_SIDE, points: int = 400
) -> Tensor:
    """A seeded path of a shaking camera: its direction drifts, its speed
    varies, its centre of mass is the middle pixel.

    The path fills about two thirds of the ``side``; each of its ``points`` is
    spread bilinearly over four pixels.
    """
    generator = torch.Generator().manual_seed(seed)
    drift = (
        torch.randn(points, generator=generator, dtype=torch.float64).cumsum(0)
        / points**0.5
    )
    angle = (
        2 * math.pi * torch.rand(1, generator=generator, dtype=torch.float64)
        + 2 * drift
    )
    speed = 1 + 0.5 * torch.sin(
        2
        * math.pi
        * (torch.linspace(0, 2, points, dtype=torch.float64) + drift[-1])
    )
    path = torch.stack(
        [speed * angle.sin(), speed * angle.cos()], dim=1
    ).cumsum(0)
    path = path - path.mean(0)
    path = side // 2 + path * (side / 3) / path.abs().max()
    kernel = torch.zeros(side, side, dtype=torch.float64)
    corner = path.floor().long()
    share = path - corner
    for down in (0, 1):
        for right in (0, 1):
            weight = (share[:, 0] if down else 1 - share[:, 0]) * (
                share[:, 1] if right else 1 - share[:, 1]
            )
            kernel.index_put_(
                (corner[:, 0] + down, corner[:, 1] + right),
                weight,
                accumulate=True,
            )
    return _normalised(kernel)


def read_kernel(path: Path) -> Tensor:
    """A kernel from an image (grey values; a black border stays), a ``.npy``
    array, or a table of numbers as text.

    Raises ``UserError``, naming the file, for one that is missing or
    unreadable, and for values that are no kernel: not two-dimensional, an even
    side, negative, not finite, or all zero.
    """
    return summed_kernel(path)[0]


def summed_kernel(path: Path) -> tuple[Tensor, float]:
    """``read_kernel``, and what the values of the file add up to.

    Args:
        path: The file.

    Returns:
        The kernel, of sum 1, and the sum that it was divided by.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file")
    values = torch.from_numpy(_values(path))
    check_kernel(values, str(path))
    return _normalised(values), float(values.sum())


def check_kernel(values: Tensor, where: str) -> None:
    """Raise ``UserError``, naming ``where`` they come from, for values that are
    no blur kernel (see ``read_kernel``)."""
    shape = "x".join(str(extent) for extent in values.shape)
    if values.dim() != 2 or values.numel() == 0:
        raise UserError(
            f"{where}: a blur kernel has rows and columns, this has shape {shape or '()'}"
        )
    if values.shape[0] % 2 == 0 or values.shape[1] % 2 == 0:
        raise UserError(
            f"{where}: a blur kernel needs odd sides, so that it has a "
            f"middle pixel; this is {shape}"
        )
    if not bool(torch.isfinite(values).all()):
        raise UserError(f"{where}: holds NaN or infinite values")
    if float(values.min()) < 0 or float(values.sum()) <= 0:
        raise UserError(
            f"{where}: a blur kernel has non-negative entries, not all of them zero"
        )
    if not math.isfinite(float(values.sum())):
        raise UserError(f"{where}: the sum of the entries is too large")


def blur_kernel(blur: str, std: float = 1.5, seed: int = 0) -> Tensor:
    """The kernel that ``--blur`` names: one of ``NAMES``, or a file. ``std`` is
    for Gaussians, ``seed`` for motion."""
    if blur == "gaussian":
        return gaussian_kernel(std)
    if blur == "uniform":
        return uniform_kernel()
    if blur == "motion":
        return motion_kernel(seed)
    path = Path(blur)
    if not path.exists():
        raise UserError(
            f"--blur {path}: no such file, and not one of {', '.join(NAMES)}"
        )
    return read_kernel(path)


def _values(path: Path) -> np.ndarray:
    """In float64.  Raises ``UserError``, naming the file."""
    suffix = path.suffix.lower()
    if suffix != ".npy" and suffix not in TEXT:
        return np.ascontiguousarray(read_picture(path).grey())
    content = regular_content(path)
    if not content.strip():
        raise UserError(
            f"{path}: cannot be read as a blur kernel (it is empty)"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # an imaginary part
            if suffix == ".npy":
                return np.ascontiguousarray(
                    np.load(io.BytesIO(content), allow_pickle=False),
                    dtype=np.float64,
                )
            return np.loadtxt(
                io.BytesIO(content),
                delimiter="," if suffix == ".csv" else None,
                ndmin=2,
            )
    except Exception as error:  # readers of damaged files raise anything
        raise UserError(
            f"{path}: cannot be read as a blur kernel ({error})"
        ) from error


def _normalised(values: Tensor) -> Tensor:
    return values / values.sum()
