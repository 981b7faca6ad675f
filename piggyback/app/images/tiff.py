"""TIFF files: integers of every size against their own full scale, floating
point, WhiteIsZero, planes, alpha.

What has up to 8 bits goes through Pillow. It cuts 16-bit colours to 8 bits and
takes other integers for 16-bit ones, so those go through tifffile; where that
lacks a decompressor, Pillow decompresses.
"""

from __future__ import annotations

import io
import logging
import sys
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from piggyback.app.images.decoders import (
    TRANSPARENT,
    Picture,
    Unsupported,
    by_pillow,
    pages,
    unpacked,
    upright,
)

# as many as Pillow takes before it suspects a decompression bomb; tifffile
# does not look.
MAXIMUM_PIXELS = 180_000_000

# of bytes before and after compression; LZMA takes an image of one grey value
# to about half of that.
MAXIMUM_RATIO = 20_000

_ORIENTATION = 274
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _SEPARATED, _YCBCR = 0, 1, 2, 5, 6
_OLD_JPEG = 6
# what is stored otherwise is converted, and its profile no longer fits
_PROFILED = (_BLACK_IS_ZERO, _RGB)
_SAMPLES = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, _SEPARATED: 4}
# what it says of damaged files is said in one line here
logging.getLogger("tifffile").addHandler(logging.NullHandler())


@dataclass(frozen=True)
class _Layout:
    """What the samples of a TIFF page mean.

    ``kind``: "u", "i" or "f"; ``extra``: of the samples after colour (1, 2:
    alpha, 1 multiplied in); ``size``: height and width.
    """

    photometric: int
    bits: int
    kind: str
    extra: tuple[int, ...]
    orientation: int
    size: tuple[int, int]
    notes: tuple[str, ...]
    profile: bytes = b""

    @property
    def scale(self) -> int:
        if self.kind == "f":
            return 1
        return (
            2 ** (self.bits - 1) - 1 if self.kind == "i" else 2**self.bits - 1
        )


def read_tiff(content: bytes) -> Picture:
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        page: Any = file.pages.first
        width, height = int(page.imagewidth), int(page.imagelength)
        if width * height > MAXIMUM_PIXELS:
            raise Unsupported(
                f"{width}x{height} pixels are more than {MAXIMUM_PIXELS}"
            )
        layout = _layout(page, len(file.pages))
        if (
            page.photometric == _YCBCR
            and page.compression == 1
            and _subsampled(page)
        ):
            raise Unsupported(
                "subsampled YCbCr is not supported; convert it to RGB"
            )
        axes = str(page.axes)
        if axes not in ("YX", "YXS", "SYX"):
            raise Unsupported(
                f"pixels in {len(axes)} dimensions ({axes}) are not an image"
            )
        if page.compression != _OLD_JPEG:  # whose pixels may lie elsewhere
            _check_complete(page, len(content))
        if (
            layout.bits <= 8
            and layout.kind == "u"
            and not (layout.photometric == _WHITE_IS_ZERO and layout.extra)
        ):
            return by_pillow(content)
        try:
            samples = _rows_columns_samples(page.asarray(), axes)
        except (ValueError, ImportError) as error:
            if not (
                isinstance(error, ImportError) or "imagecodecs" in str(error)
            ):
                raise
            samples = _compressed(
                content,
                layout,
                str(getattr(page.compression, "name", page.compression)),
            )
            # Pillow has turned it
            layout = replace(layout, orientation=1, size=samples.shape[:2])
    return _interpreted(samples, layout)


def _layout(page: Any, count: int) -> _Layout:
    photometric = int(page.photometric)
    kind = {1: "u", 2: "i", 3: "f", 4: "u"}.get(
        int(page.sampleformat or 1), "?"
    )
    if kind == "?":
        raise Unsupported("complex pixels are not supported")
    samples = int(page.samplesperpixel)
    extra = tuple(int(one) for one in page.extrasamples or ())
    expected = _SAMPLES.get(photometric, samples)
    if samples < expected:
        raise Unsupported(f"{samples} samples per pixel, {expected} expected")
    extra = (
        (0,) * (samples - expected)
        if len(extra) != samples - expected
        else extra
    )
    tag = page.tags.get(_ORIENTATION)
    orientation = (
        int(tag.value) if tag is not None and isinstance(tag.value, int) else 1
    )
    bits = page.bitspersample
    size = (int(page.imagelength), int(page.imagewidth))
    profile = page.iccprofile if photometric in _PROFILED else None
    return _Layout(
        photometric,
        int(bits),
        kind,
        extra,
        orientation,
        size,
        pages(count),
        profile if isinstance(profile, bytes) else b"",
    )


def _check_complete(page: Any, length: int) -> None:
    """Raise ``ValueError`` if pixels are missing: both decoders take them for
    black."""
    pieces = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    promised = (
        int(page.imagewidth)
        * int(page.imagelength)
        * int(page.samplesperpixel)
        * int(page.bitspersample)
        // 8
    )
    held = sum(count for _, count in pieces) * (
        1 if page.compression == 1 else MAXIMUM_RATIO
    )
    if promised > held or any(
        count <= 0 or offset + count > length for offset, count in pieces
    ):
        raise ValueError("the file is truncated or damaged")


def _subsampled(page: Any) -> bool:
    tag = page.tags.get("YCbCrSubSampling")
    return tag is None or tuple(tag.value) != (1, 1)


def _rows_columns_samples(pixels: np.ndarray, axes: str) -> np.ndarray:
    """``(height, width, samples)``."""
    if axes == "YX":
        return pixels[..., np.newaxis]
    return np.moveaxis(pixels, 0, -1) if axes == "SYX" else pixels


def _compressed(
    content: bytes, layout: _Layout, compression: str
) -> np.ndarray:
    """Samples that only Pillow can decompress: one of up to 32 bits, or
    unsigned ones of 16 bits."""
    with Image.open(io.BytesIO(content)) as image:
        mode = image.mode
        if mode.startswith(("I", "F")):
            one = np.asarray(image)
            unsigned = layout.kind == "u" and layout.bits == 32
            return (one.view(np.uint32) if unsigned else one)[..., np.newaxis]
    if (
        layout.bits != 16
        or layout.kind != "u"
        or mode not in ("RGB", "RGBA", "CMYK")
    ):
        raise Unsupported(
            f"{layout.bits} bits per sample compressed by {compression} are not supported"
        )
    if mode == "RGBA" and layout.extra[0] == 1:
        raise Unsupported(
            f"16-bit colours multiplied by alpha, compressed by {compression}, are not supported"
        )
    first, second = (
        unpacked(content, f"{mode};16{order}").astype(np.uint16)
        for order in ("B", "L")
    )
    return (
        first << 8 | second if sys.byteorder == "big" else second << 8 | first
    )


def _interpreted(samples: np.ndarray, layout: _Layout) -> Picture:
    """Samples ``(height, width, samples)`` to black 0, white ``scale``."""
    if samples.ndim != 3 or samples.shape[:2] != layout.size:
        raise ValueError("the file is truncated or damaged")
    if layout.photometric not in _SAMPLES:
        raise Unsupported(
            f"colours of photometric kind {layout.photometric} are not "
            "supported; convert it to RGB or grey"
        )
    if layout.kind == "i" and samples.size and int(samples.min()) < 0:
        raise Unsupported(
            f"signed pixels from {int(samples.min())}: negative grey values have no meaning here"
        )
    scale, notes = layout.scale, layout.notes
    colours = samples[..., : _SAMPLES[layout.photometric]]
    alpha = None
    if layout.extra and layout.extra[0] in (1, 2):
        alpha = samples[..., colours.shape[-1]]
        if bool((alpha != scale).any()):
            notes += (TRANSPARENT,)
        if layout.extra[0] == 1:
            opaque = np.where(alpha > 0, alpha, scale).astype(np.float64)[
                ..., np.newaxis
            ]
            colours = np.minimum(colours / opaque, 1.0) * scale
    elif layout.extra:
        notes += ("additional channels ignored",)
    if layout.photometric == _WHITE_IS_ZERO:
        if layout.kind != "u":
            raise Unsupported(
                "white is zero, with signed or floating-point pixels: where "
                "black is, the file does not say"
            )
        colours = scale - colours
    elif layout.photometric == _SEPARATED:
        inks = colours.astype(np.float64) / scale
        colours = (1 - inks[..., :3]) * (1 - inks[..., 3:]) * scale
        notes += ("CMYK converted to RGB without a colour profile",)
    levels = colours[..., 0] if colours.shape[-1] == 1 else colours
    return Picture(
        upright(levels, layout.orientation),
        scale,
        notes,
        alpha=None if alpha is None else upright(alpha, layout.orientation),
        profile=layout.profile,
    )
