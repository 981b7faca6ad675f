"""Every kind of image file against numbers that are known: depth, photometric
kind, orientation, transparency."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from piggyback.app.errors import UserError
from piggyback.app.images.decoders import upright
from piggyback.app.images.pictures import read_picture
from piggyback.app.images.sources import load_photographs, read_image
from tests.support.image_kinds import (
    ALPHA16,
    GREY8,
    GREY16,
    INKS,
    KINDS,
    RGB8,
    RGB16,
    damaged,
    pillow,
    premultiplied,
    tiff,
)
from tests.support.image_writers import chunk, png


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_have_the_values_that_were_written(
    kind: str, tmp_path: Path
) -> None:
    """Whatever the file is called: what it holds decides."""
    content, wanted = KINDS[kind]
    path = tmp_path / "Photo.JPG"
    path.write_bytes(content)
    wanted = np.asarray(wanted, dtype=np.float64)
    found = read_picture(path).values()
    assert found.shape == wanted.shape and np.abs(found - wanted).max() < 1e-7
    coloured = read_image(path, colour=True).numpy()
    assert coloured.shape == (3, 20, 27)
    assert (
        np.abs(
            coloured
            - (wanted.transpose(2, 0, 1) if wanted.ndim == 3 else wanted)
        ).max()
        < 1e-6
    )
    grey = read_image(path, colour=False).numpy()[0]
    luma = wanted @ [0.299, 0.587, 0.114] if wanted.ndim == 3 else wanted
    assert np.abs(grey - luma).max() < (
        0.51 / 255 if "16" not in kind and wanted.ndim == 3 else 1e-6
    )


def test_colours_multiplied_by_alpha_are_divided_again(tmp_path: Path) -> None:
    for samples, photometric in ((GREY16, "minisblack"), (RGB16, "rgb")):
        alpha = ALPHA16 if samples.ndim == 2 else ALPHA16[..., np.newaxis]
        stored = premultiplied(samples, alpha)
        (tmp_path / "a.tif").write_bytes(
            tiff(stored, photometric, extrasamples=["assocalpha"])
        )
        found = read_picture(tmp_path / "a.tif").values()
        assert (np.abs(found - samples / 65535) <= 0.51 / alpha).all()


def turned_by_definition(stored: np.ndarray, orientation: int) -> np.ndarray:
    """TIFF 6.0, tag 274, pixel by pixel: on which side of the visible picture
    the stored row 0 and column 0 lie."""
    top, left = {
        1: "tl",
        2: "tr",
        3: "br",
        4: "bl",
        5: "lt",
        6: "rt",
        7: "rb",
        8: "lb",
    }[orientation]
    height, width = stored.shape[:2]
    sideways = top in "lr"
    seen = np.empty(
        (width, height, *stored.shape[2:]) if sideways else stored.shape,
        dtype=stored.dtype,
    )
    for row in range(height):
        for column in range(width):
            along = row if top in "tl" else height - 1 - row
            across = column if left in "tl" else width - 1 - column
            seen[(across, along) if sideways else (along, across)] = stored[
                row, column
            ]
    return seen


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_upright(orientation: int, tmp_path: Path) -> None:
    """In every format, at every depth, by every decoder."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    tag = [(274, 3, 1, orientation, True)]
    lzw = pillow(
        Image.fromarray(GREY16),
        "TIFF",
        compression="tiff_lzw",
        tiffinfo={274: orientation},
    )
    turned = chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    files = {
        "8-bit PNG": (pillow(Image.fromarray(RGB8), "PNG", exif=exif), RGB8),
        "WebP": (
            pillow(Image.fromarray(RGB8), "WEBP", lossless=True, exif=exif),
            RGB8,
        ),
        "16-bit grey PNG": (
            png(GREY16[..., np.newaxis], 0, False, turned),
            GREY16,
        ),
        "16-bit colour PNG": (png(RGB16, 2, False, turned), RGB16),
        "8-bit TIFF": (tiff(GREY8, extratags=tag), GREY8),
        "16-bit grey TIFF": (tiff(GREY16, extratags=tag), GREY16),
        "16-bit colour TIFF": (tiff(RGB16, "rgb", extratags=tag), RGB16),
        "16-bit LZW": (lzw, GREY16),
    }
    for name, (content, stored) in files.items():
        (tmp_path / "a.png").write_bytes(content)
        levels = read_picture(tmp_path / "a.png").levels
        wanted = turned_by_definition(stored, orientation)
        assert levels.shape == wanted.shape and (levels == wanted).all(), name
    smooth = np.kron(GREY8[:4, :5], np.ones((8, 8), dtype=np.uint8))
    (tmp_path / "a.jpg").write_bytes(
        pillow(Image.fromarray(smooth), "JPEG", quality=100, exif=exif)
    )
    assert (
        np.abs(
            read_picture(tmp_path / "a.jpg").levels
            - turned_by_definition(smooth, orientation).astype(int)
        ).max()
        < 4
    )


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_orientations_that_do_not_exist_turn_nothing(orientation: int) -> None:
    assert (upright(GREY8, orientation) == GREY8).all()


def said(
    folder: Path, colour: bool, capsys: pytest.CaptureFixture[str]
) -> list[str]:
    load_photographs(folder, "test", colour)
    return capsys.readouterr().err.splitlines()


def test_what_is_converted_or_left_out_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line for each thing, with the images; nothing where nothing is lost."""
    Image.fromarray(GREY8).save(tmp_path / "grey.png")
    opaque = np.dstack([GREY8, GREY8, GREY8, np.full_like(GREY8, 255)])
    Image.fromarray(opaque).save(tmp_path / "opaque.png")
    assert said(tmp_path, False, capsys) == []
    assert said(tmp_path, True, capsys) == [
        f"note: {tmp_path}: grey, repeated in three channels: grey.png"
    ]
    (tmp_path / "grey.png").unlink()
    (tmp_path / "opaque.png").unlink()
    (tmp_path / "pages.tif").write_bytes(tiff(np.stack([GREY8] * 3)))
    (tmp_path / "alpha.png").write_bytes(png(np.dstack([RGB16, ALPHA16]), 6))
    keyed = Image.fromarray(RGB8).quantize(16)
    keyed.save(tmp_path / "keyed.png", transparency=3)
    inks = (
        Image.fromarray((INKS * 255).astype(np.uint8), mode=None)
        .convert("RGB")
        .convert("CMYK")
    )
    inks.save(tmp_path / "inks.tif")
    for number in range(7):
        Image.fromarray(RGB8).save(tmp_path / f"{number}.bmp")
    (tmp_path / "raw.CR2").write_bytes(b"")
    found = said(tmp_path, False, capsys)
    assert sorted(
        line.removeprefix(f"note: {tmp_path}: ") for line in found
    ) == [
        "CMYK converted to RGB without a colour profile: inks.tif",
        "colours converted to grey: 0.bmp, 1.bmp, 2.bmp, 3.bmp, 4.bmp and 5 more",
        "left out, of a kind that is not read: raw.CR2",
        "read the first of 3 pages: pages.tif",
        "transparency ignored: alpha.png, keyed.png",
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_refused_or_read_and_never_crash(
    kind: str, tmp_path: Path
) -> None:
    """A picture of numbers in [0, 1], or one line with the name."""
    for content in damaged(kind):
        (tmp_path / "a.png").write_bytes(content)
        try:
            pixels = read_image(tmp_path / "a.png", colour=False)
        except UserError as error:
            assert "a.png" in str(error)
        else:
            assert bool(((pixels >= 0) & (pixels <= 1)).all())
