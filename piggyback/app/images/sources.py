"""Photographs, patches and noise. Grey values lie in [0, 1], images are float32
``(channels, height, width)``.

Nothing is downloaded: the embedded photographs are files of the installed
scikit-image and scikit-learn packages.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from piggyback.app.console.terminal import note, printable
from piggyback.app.errors import UserError
from piggyback.app.images.pictures import read_picture

SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"}
)
# of images that are not read; a folder that holds some is not complete
# without them, which is said.
OTHER_SUFFIXES = frozenset(
    {
        ".gif",
        ".heic",
        ".heif",
        ".avif",
        ".jxl",
        ".jp2",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".tga",
        ".psd",
        ".exr",
        ".hdr",
        ".npy",
    }
    | {".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2"}
)
NAMES_SHOWN = 5
MINIMUM_SIDE = 16
TEST_SIDE = 256
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601

SCIKIT_IMAGE = ("skimage", "data")
# packages that ship photographs, and the folder within
SCIKIT_LEARN = ("sklearn", "datasets/images")


@dataclass(frozen=True, eq=False)
class Photograph:
    """``pixels``: float32 ``(channels, height, width)`` in [0, 1], with 1 or 3
    channels.

    ``name`` can be printed; ``path``: its file, ``notes``: what reading it left
    out or converted.
    """

    name: str
    pixels: Tensor
    path: Path | None = None
    notes: tuple[str, ...] = ()

    @property
    def file_name(self) -> str:
        """The name as the file system has it."""
        return self.name if self.path is None else self.path.name


@dataclass(frozen=True)
class Embedded:
    """A file of an installed package; ``halve`` averages 2x2 pixels, which
    removes sensor noise and JPEG blocks."""

    source: tuple[str, str]
    name: str
    colour: bool
    halve: bool

    def path(self) -> Path:
        """Where the file lies. Raises ``UserError`` if the package is missing."""
        package, folder = self.source
        # the package is found, not imported: scikit-learn alone takes longer
        # to import than a command takes to print its help
        found = find_spec(package)
        places = None if found is None else found.submodule_search_locations
        if not places:
            raise UserError(
                f"the embedded photographs need the package {package}, which "
                "is not installed: give folders of your own"
            )
        return Path(places[0]) / folder / self.name


# The split is by photograph and fixed. Test: the scenes a reader knows. Train:
# every other photograph in the packages except documents, microscopy,
# astronomy, the second view of the motorcycle, and the close-ups of grass and
# gravel: fine texture edge to edge, which pulls the tuned TV weight from 0.07
# to 0.06 and weakens the baseline by 0.3 dB.
TEST = (
    Embedded(SCIKIT_IMAGE, "camera.png", colour=False, halve=True),
    Embedded(SCIKIT_IMAGE, "coffee.png", colour=True, halve=False),
    Embedded(SCIKIT_IMAGE, "chelsea.png", colour=True, halve=False),
    Embedded(SCIKIT_LEARN, "flower.jpg", colour=True, halve=True),
)
TRAIN = (
    Embedded(SCIKIT_IMAGE, "astronaut.png", colour=True, halve=True),
    Embedded(SCIKIT_IMAGE, "brick.png", colour=False, halve=True),
    Embedded(SCIKIT_IMAGE, "coins.png", colour=False, halve=False),
    Embedded(SCIKIT_IMAGE, "motorcycle_left.png", colour=True, halve=True),
    Embedded(SCIKIT_IMAGE, "rocket.jpg", colour=True, halve=True),
    Embedded(SCIKIT_LEARN, "china.jpg", colour=True, halve=True),
)


def load_folder(folder: Path, colour: bool = False) -> list[Photograph]:
    """All PNG, JPEG, TIFF, BMP and WebP files directly in ``folder``, sorted by
    name; see ``read_image``.

    Raises ``UserError`` for a missing folder, one without images, and the first
    image that ``read_image`` refuses.
    """
    return [_photograph(path, colour) for path in image_files(folder)]


def image_files(folder: Path) -> list[Path]:
    """The images of a folder by name. Hidden files and folders are passed over,
    whatever they are called.

    Raises ``UserError`` for a missing folder and one without images.
    """
    try:
        if not folder.is_dir():
            raise UserError(
                f"{folder}: {'not a folder' if folder.exists() else 'no such folder'}"
            )
        named = sorted(
            p
            for p in folder.iterdir()
            if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")
        )
        files = [path for path in named if not path.is_dir()]
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be listed ({error.strerror})"
        ) from error
    if not files:
        raise UserError(
            f"{folder}: holds no PNG, JPEG, TIFF, BMP or WebP image"
        )
    return files


def embedded_photographs(
    split: Literal["train", "test"], colour: bool = False
) -> list[Photograph]:
    """The photographs that installed packages ship, split by photograph: no
    test photograph is ever trained on.

    Test photographs are the central crop of at most 256x256 pixels, so that
    evaluation stays cheap. With ``colour`` the photographs that exist in grey
    only are left out.

    Raises ``UserError`` if a package does not ship its file.
    """
    chosen = TRAIN if split == "train" else TEST
    photographs = []
    for item in chosen:
        if colour and not item.colour:
            continue
        pixels = read_image(item.path(), colour)
        if item.halve:
            pixels = torch.nn.functional.avg_pool2d(pixels, 2)
        photographs.append(
            Photograph(
                Path(item.name).stem,
                pixels if split == "train" else central_crop(pixels, TEST_SIDE),
            )
        )
    return photographs


def load_photographs(
    folder: Path | None, split: Literal["train", "test"], colour: bool = False
) -> list[Photograph]:
    """The images of ``folder``, or the embedded photographs of ``split`` if
    none is given.

    One line on stderr for each thing that was left out or converted, with the
    images it concerns.
    """
    if folder is None:
        return embedded_photographs(split, colour)
    photographs = load_folder(folder, colour)
    for text in dict.fromkeys(
        text for photograph in photographs for text in photograph.notes
    ):
        _say(
            folder,
            text,
            [
                photograph.name
                for photograph in photographs
                if text in photograph.notes
            ],
        )
    _say(folder, "left out, of a kind that is not read", left_out(folder))
    return photographs


def left_out(folder: Path) -> list[str]:
    """Names of images of other kinds."""
    return sorted(
        path.name
        for path in folder.iterdir()
        if path.suffix.lower() in OTHER_SUFFIXES
    )


def _say(folder: Path, text: str, names: Sequence[str]) -> None:
    """Of which images; nothing for none."""
    if names:
        rest = (
            f" and {len(names) - NAMES_SHOWN} more"
            if len(names) > NAMES_SHOWN
            else ""
        )
        note(f"{folder}: {text}: {', '.join(names[:NAMES_SHOWN])}{rest}")


def split_check(
    train: Sequence[Photograph], test: Sequence[Photograph]
) -> None:
    """Raise ``UserError`` if a test image, compared by content and not by name,
    is also a training image."""
    seen = {_digest(photograph.pixels): photograph.name for photograph in train}
    for photograph in test:
        twin = seen.get(_digest(photograph.pixels))
        if twin is not None:
            raise UserError(
                f"test image {photograph.name} is also a training image ({twin})"
            )


def read_image(path: Path, colour: bool) -> Tensor:
    """One image as float32 ``(1 or 3, height, width)`` in [0, 1], at full depth
    and upright as EXIF says.

    Colour becomes grey by ITU-R 601 luma; with ``colour`` every image gets
    three channels instead (grey repeated). Integers are divided by the largest
    of their type, floating-point images must lie in [0, 1] already.
    Transparency is ignored, of several pages the first is read.

    Raises ``UserError``, naming the file, for one that cannot be read or is not
    supported, is smaller than 16 pixels on a side, or holds NaN, infinite or
    out-of-range values.
    """
    return _photograph(path, colour).pixels


def _photograph(path: Path, colour: bool) -> Photograph:
    picture = read_picture(path)
    height, width = picture.levels.shape[:2]
    if min(height, width) < MINIMUM_SIDE:
        raise UserError(
            f"{path}: {width}x{height} pixels, need at least {MINIMUM_SIDE} on a side"
        )
    notes, values = (
        picture.notes,
        picture.values() if colour else picture.grey(),
    )
    if picture.coloured and not colour:
        notes += ("colours converted to grey",)
    if picture.levels.ndim == 2 and colour:
        notes += ("grey, repeated in three channels",)
    if not np.isfinite(values).all():
        raise UserError(f"{path}: holds NaN or infinite pixels")
    if values.min() < -1e-6 or values.max() > 1 + 1e-6:
        raise UserError(
            f"{path}: pixels from {values.min():g} to {values.max():g}, "
            f"expected 0 to 1{advice(values)}"
        )
    pixels = torch.from_numpy(np.clip(values, 0, 1).astype(np.float32))
    pixels = (
        pixels.unsqueeze(0)
        if pixels.dim() == 2
        else pixels.permute(2, 0, 1).contiguous()
    )
    if colour and pixels.shape[0] == 1:
        pixels = pixels.expand(3, -1, -1).contiguous()
    return Photograph(printable(path.name), pixels, path, notes)


def advice(values: np.ndarray) -> str:
    """What values beyond 1 probably are."""
    for largest in (255, 65535):
        if values.min() >= 0 and values.max() <= largest:
            return f"; these look like levels of {largest}: divide them by it"
    return ""


def to_grey(pixels: Tensor) -> Tensor:
    """ITU-R 601 luma ``(..., 1, height, width)`` of ``(..., 3, height,
    width)``; grey is returned as it is."""
    if pixels.shape[-3] == 1:
        return pixels
    return (pixels * pixels.new_tensor(LUMA).reshape(3, 1, 1)).sum(
        dim=-3, keepdim=True
    )


def central_crop(pixels: Tensor, side: int) -> Tensor:
    """The central ``side`` x ``side`` pixels of ``(..., height, width)``; a
    shorter side is kept whole."""
    height, width = pixels.shape[-2:]
    top, left = max(height - side, 0) // 2, max(width - side, 0) // 2
    return pixels[..., top : top + side, left : left + side].contiguous()


def draw_patches(
    photographs: Sequence[Photograph],
    count: int,
    size: int,
    generator: torch.Generator,
    channels: int,
) -> Tensor:
    """``(count, channels, size, size)`` random crops, each turned or mirrored
    by one of the 8 symmetries of the square.

    Every crop position of every photograph is equally likely; photographs
    smaller than a crop are passed over.

    Raises ``UserError`` if all photographs are too small or one has another
    number of channels.
    """
    for photograph in photographs:
        if photograph.pixels.shape[0] != channels:
            raise UserError(
                f"{photograph.name}: has {photograph.pixels.shape[0]} channels, expected {channels}"
            )
    positions = torch.tensor(
        [_crop_positions(photograph.pixels, size) for photograph in photographs]
    )
    if not photographs or int(positions.sum()) == 0:
        raise UserError(
            f"no training image is as large as a patch of {size}x{size} pixels"
        )
    ends = positions.cumsum(0)
    drawn = torch.randint(int(ends[-1]), (count,), generator=generator)
    owners = torch.searchsorted(ends, drawn, right=True)
    symmetries = torch.randint(8, (count,), generator=generator)
    within = drawn - (ends - positions)[owners]
    patches = []
    for draw in range(count):
        position, owner, symmetry = (
            int(within[draw]),
            int(owners[draw]),
            int(symmetries[draw]),
        )
        pixels = photographs[owner].pixels
        top, left = divmod(position, pixels.shape[2] - size + 1)
        patches.append(
            _symmetry(pixels[:, top : top + size, left : left + size], symmetry)
        )
    return torch.stack(patches)


def _crop_positions(pixels: Tensor, size: int) -> int:
    return max(pixels.shape[1] - size + 1, 0) * max(
        pixels.shape[2] - size + 1, 0
    )


def _symmetry(patch: Tensor, index: int) -> Tensor:
    turned = torch.rot90(patch, index % 4, dims=(1, 2))
    return turned.flip(2) if index >= 4 else turned


def add_noise(
    clean: Tensor, sigma: float, generator: torch.Generator
) -> Tensor:
    """``clean`` plus white Gaussian noise of standard deviation ``sigma`` (grey
    values in [0, 1]); not clipped.

    The noise is drawn where the generator lives and moved to ``clean``, so a
    seed means the same on every device.

    Raises ``UserError`` if ``sigma`` is negative or not finite.
    """
    if not (math.isfinite(sigma) and sigma >= 0):
        raise UserError(
            f"noise level {sigma} is not a finite nonnegative number"
        )
    noise = torch.randn(
        clean.shape,
        generator=generator,
        dtype=clean.dtype,
        device=generator.device,
    )
    return clean + sigma * noise.to(clean.device)


def image_generator(seed: int, index: int) -> torch.Generator:
    """A CPU generator for image ``index`` of a run, so that its noise does not
    depend on the other images."""
    digest = hashlib.sha256(f"{seed}/{index}".encode()).digest()
    return torch.Generator().manual_seed(
        int.from_bytes(digest[:8], "little") >> 1
    )


def _digest(pixels: Tensor) -> bytes:
    levels = (pixels.cpu() * 255).round().to(torch.uint8).contiguous()
    return hashlib.sha256(
        repr(tuple(levels.shape)).encode() + levels.numpy().tobytes()
    ).digest()
