"""What would fail at the end of a run is tried before it begins: memory, disk,
sizes of patches and of test images."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from piggyback.app.console.memory import available_memory
from piggyback.app.degradations.base import Blur, Degradation, Noise
from piggyback.app.degradations.noise_range import NoiseRange
from piggyback.app.errors import UserError
from piggyback.app.images.sources import Photograph
from piggyback.app.options.train import Options
from piggyback.app.report.metrics import SSIM_WINDOW
from piggyback.app.restoration import restore
from piggyback.problems.pair import Accuracy
from piggyback.training.bilevel import BilevelOracle, BilevelSettings
from piggyback.training.samples import Samples
from regularizers.construction import Learned

FLOAT, DOUBLE = 4, 8
# images, observations, warm starts and adjoints of all patches, and the two
# that a checkpoint copies
_PATCH_ARRAYS = 6
# filter responses in double precision that a certified gradient, and a
# restoration, hold at the same time, at least
SOLVE_ARRAYS, TEST_ARRAYS = 15, 8
# parameters, gradient, Adam's two, average, and what is released and saved of
# them, at least
_MODEL_ARRAYS = 8
_FREE_ON_DISK = 1 << 20
# RMS error, in grey values, that every start has: solves end at once, after
# everything has been computed once
ANY = 1e3


def check_memory(
    options: Options,
    device: torch.device,
    channels: int,
    test: Sequence[Photograph],
) -> None:
    """Raise ``UserError`` with the estimate if what the run holds at least is
    more than there is; nothing is allocated."""
    needs, phases = _needs(options, channels), _needs_of_phases(options, test)
    total, there = (
        sum(needs.values()) + max(phases.values()),
        available_memory(device),
    )
    needs |= phases
    if total > there:
        most = max(needs, key=needs.__getitem__)
        raise UserError(
            f"this run needs at least {_gigabytes(total)} of memory, "
            f"{_gigabytes(needs[most])} of it for {most}; "
            f"{_gigabytes(there)} are available"
        )


def _needs(options: Options, channels: int) -> dict[str, int]:
    """Bytes at least, by the options that they grow with."""
    area = channels * options.patch**2
    return {
        "the patches (--patches, --patch)": _PATCH_ARRAYS
        * FLOAT
        * options.patches
        * area,
        "a mini-batch (--minibatch, --patch)": 2
        * FLOAT
        * options.minibatch
        * area,
        "the model (--filters or --widths, --size, --inner)": _MODEL_ARRAYS
        * FLOAT
        * _parameters(options, channels),
        "the basis of the filters (--size)": DOUBLE * options.size**4,
    }


def _needs_of_phases(
    options: Options, test: Sequence[Photograph]
) -> dict[str, int]:
    """The same of training and of testing, one after the other."""
    responses = (
        sum(options.widths) if options.family() == "icnn" else options.filters
    )
    drawn = max(options.patches, options.minibatch)
    at_once = min(options.threads * options.batch, drawn)
    largest = max((image.pixels[0].numel() for image in test), default=0)
    solved = DOUBLE * at_once * responses * options.patch**2
    tested = DOUBLE * min(options.threads, len(test)) * responses * largest
    return {
        "filter responses of patches (--filters or --widths, --batch, --threads, --patch)": SOLVE_ARRAYS
        * solved,
        "filter responses of test images (--filters or --widths, --threads)": TEST_ARRAYS
        * tested,
    }


def _parameters(options: Options, channels: int) -> int:
    taps = channels * options.size**2
    if options.family() != "icnn":
        return options.filters * taps
    between = zip(options.widths, options.widths[1:], strict=False)
    inner = sum(before * after for before, after in between) * options.inner**2
    return sum(options.widths) * taps + inner


def check_disk(folder: Path, options: Options, channels: int) -> None:
    """Raise ``UserError`` if a checkpoint, written beside the old one, would
    not fit on the disk of ``folder``."""
    there = next(
        path
        for path in (folder.absolute(), *folder.absolute().parents)
        if path.exists()
    )
    state = 2 * FLOAT * options.patches * channels * options.patch**2
    state += 2 * _MODEL_ARRAYS * FLOAT * _parameters(options, channels)
    free = shutil.disk_usage(there).free
    if free < 2 * state + _FREE_ON_DISK:
        raise UserError(
            f"{folder}: a run of this size writes "
            f"{_gigabytes(2 * state + _FREE_ON_DISK)}, the disk has {_gigabytes(free)}"
        )


def check_patches(
    regularizer: Learned,
    degradation: Degradation,
    samples: Samples,
    options: Options,
) -> None:
    """Evaluate one patch, loosely. Raises ``UserError`` if patches do not fit
    the filters or the blur."""
    settings = BilevelSettings(
        accuracy=Accuracy(ANY, 1.0), data_term=degradation.data_term
    )
    try:
        oracle = BilevelOracle(
            regularizer, samples.select(slice(0, 1)), settings
        )
        oracle.evaluate(oracle.parameters(), 1.0)
    except (ValueError, UserError) as error:
        raise UserError(f"--patch {options.patch}: {error}") from error


def check_test_images(
    regularizer: Learned,
    degradation: Degradation,
    test: Sequence[Photograph],
    options: Options,
) -> None:
    """Restore a piece of every size of image, loosely.

    Raises ``UserError``, naming the image, if one cannot be restored or has no
    structural similarity.
    """
    seen: set[torch.Size] = set()
    for image in test:
        piece = _piece(image.pixels, degradation, options)
        if piece.shape in seen:
            continue
        seen.add(piece.shape)
        try:
            _restorable(regularizer, degradation, piece)
        except (ValueError, UserError) as error:
            raise UserError(f"test image {image.name}: {error}") from error


def as_tested(degradation: Degradation) -> Degradation:
    """What test images are degraded by: one level of noise, and nothing is
    assumed beyond their border."""
    if isinstance(degradation, NoiseRange):
        return Noise(degradation.tested)
    return (
        degradation.with_edges("valid")
        if isinstance(degradation, Blur)
        else degradation
    )


def _restorable(
    regularizer: Learned, degradation: Degradation, piece: Tensor
) -> None:
    """Raises ``ValueError`` or ``UserError`` that says what is too small."""
    device = next(regularizer.parameters()).device
    observed = degradation.observe(piece, torch.Generator().manual_seed(0))
    visible = degradation.visible(piece)
    rows, columns = visible.shape[-2:]
    if min(rows, columns) < SSIM_WINDOW:
        raise UserError(
            f"{piece.shape[-2]}x{piece.shape[-1]} pixels, of which "
            f"{max(rows, 0)}x{max(columns, 0)} are seen; "
            f"the structural similarity needs {SSIM_WINDOW}x{SSIM_WINDOW}"
        )
    restore(
        regularizer,
        degradation.data_term(observed.unsqueeze(0).to(device)),
        ANY,
    )


def _piece(
    pixels: Tensor, degradation: Degradation, options: Options
) -> Tensor:
    """A corner of an image that fits filters and blur if the image does: only
    short sides can be too short."""
    blur = max(degradation.kernel.shape) if isinstance(degradation, Blur) else 0
    enough = 2 * (
        blur + SSIM_WINDOW + options.size + options.inner * len(options.widths)
    )
    return pixels[..., :enough, :enough]


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.3g} GB"
