"""Image files of every kind to numbers: at full depth, against their own full scale, upright.

Pillow reads what has 8 bits.  It cuts 16-bit colours to 8 bits and takes the other integers of TIFF for 16-bit ones, so those go
through tifffile; where that lacks a decompressor, Pillow's decoder runs once for the high and once for the low bytes.
"""

from __future__ import annotations

import io
import logging
import stat
import struct
import sys
import warnings
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image, UnidentifiedImageError

from experiments.errors import UserError

MAXIMUM_PIXELS = 180_000_000
"""As many as Pillow takes before it suspects a decompression bomb; tifffile does not look."""

_ORIENTATION = 0x0112
_PNG, _TIFF = b"\x89PNG\r\n\x1a\n", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _SEPARATED, _YCBCR = 0, 1, 2, 3, 5, 6
_SAMPLES = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, _SEPARATED: 4}
_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}
logging.getLogger("tifffile").addHandler(
    logging.NullHandler()
)  # what it says of damaged files is said in one line here


@dataclass(frozen=True, eq=False)
class Picture:
    """``levels`` ``(height, width)`` or ``(height, width, 3)``; ``scale`` is white.  ``notes``: what was left out or assumed."""

    levels: np.ndarray
    scale: int
    notes: tuple[str, ...] = ()

    @property
    def coloured(self) -> bool:
        """Whether the three channels differ anywhere."""
        return self.levels.ndim == 3 and bool((self.levels != self.levels[..., :1]).any())

    def values(self) -> np.ndarray:
        """In float64, full scale 1."""
        with np.errstate(invalid="ignore"):  # NaN that signals; what is not finite is refused later
            return self.levels.astype(np.float64) / self.scale

    def grey(self) -> np.ndarray:
        """ITU-R 601 luma in float64; that of 8-bit colours rounded to 8 bits, as Pillow's mode "L" does."""
        if self.levels.ndim == 2:
            return self.values()
        if self.levels.dtype == np.uint8:
            weighted = self.levels.astype(np.uint32) @ np.array([19595, 38470, 7471], dtype=np.uint32)
            return ((weighted + 0x8000) >> 16).astype(np.float64) / self.scale
        return self.values() @ np.array([0.299, 0.587, 0.114])


class Unsupported(Exception):
    """An image of a kind whose right grey values are not known here."""


def read_picture(path: Path) -> Picture:
    """The first page or frame of an image file.

    Raises ``UserError``, naming the file, for one that is no regular file, cannot be read, or is of a kind that is not supported.
    """
    content = regular_content(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged metadata is no reason to complain; damaged pixels raise
            picture = _decoded(content)
    except Unsupported as error:
        raise UserError(f"{path}: {error}") from error
    except UnidentifiedImageError as error:
        reason = "not an image, or of a kind that is not supported" if content else "the file is empty"
        raise UserError(f"{path}: cannot be read as an image ({reason})") from error
    except Exception as error:  # decoders of damaged files raise anything, and in any case it is the file's fault
        raise UserError(f"{path}: cannot be read as an image ({str(error) or type(error).__name__})") from error
    return picture


def regular_content(path: Path) -> bytes:
    """The bytes of a file that has an end.  Raises ``UserError``, naming it, for a FIFO, a device, a folder, or no permission."""
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
        if kind != stat.S_IFREG:
            raise UserError(f"{path}: {_KINDS.get(kind, 'something else')}, not a file that can be read")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


def _decoded(content: bytes) -> Picture:
    if content.startswith(_TIFF):
        return _tiff(content)
    if content.startswith(_PNG) and content[24:25] == b"\x10":  # IHDR: 16 bits per sample
        colour_type = content[25]
        if colour_type == 2:
            return _deep_png(content, "RGB")
        if colour_type == 4:
            return _deep_png(content, "LA")
        if colour_type == 6:
            return _deep_png(content, "RGBA")
    return _by_pillow(content)


# --- Pillow ----------------------------------------------------------------------------------------------------------


def _by_pillow(content: bytes) -> Picture:
    """Everything of 8 bits or fewer, and 16-bit grey PNG."""
    with Image.open(io.BytesIO(content)) as image:
        orientation = _orientation(image)
        notes = _pages(getattr(image, "n_frames", 1))
        image.load()
        if image.mode == "1":
            return Picture(upright(np.asarray(image), orientation), 1, notes)
        if image.mode.startswith("I") and image.format in ("PNG", "PPM"):
            return Picture(upright(np.asarray(image), orientation), 65535, notes)
        if _see_through(image):
            notes += ("transparency ignored",)
        if image.mode == "CMYK":
            notes += ("CMYK converted to RGB without a colour profile",)
        return Picture(upright(np.asarray(_plain(image)), orientation), 255, notes)


def _plain(image: Image.Image) -> Image.Image:
    """Mode "L" or "RGB" of an image of 8 bits."""
    if image.mode in ("La", "RGBa"):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if image.mode in ("L", "LA"):
        return image.convert("L")
    if image.mode in ("RGB", "RGBA", "RGBX", "P", "PA", "CMYK", "YCbCr"):
        return image.convert("RGB")
    raise Unsupported(f"pixels of mode {image.mode} are not supported; convert it to RGB or grey")


def _see_through(image: Image.Image) -> bool:
    """Whether any pixel is not opaque."""
    if image.mode in ("LA", "RGBA", "PA", "La", "RGBa"):
        return image.getchannel(image.getbands()[-1]).getextrema() != (255, 255)
    return "transparency" in image.info


def _orientation(image: Image.Image) -> int:
    """EXIF's, 1 to 8; Pillow turns TIFF files itself, and damaged metadata counts as none."""
    if image.format == "TIFF":
        return 1
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:
        return 1
    return found if isinstance(found, int) else 1


def upright(stored: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels as they are meant to be seen; ``orientation`` says where the stored row 0 and column 0 are (TIFF 6.0, tag 274)."""
    if orientation in (5, 6, 7, 8):
        stored = stored.swapaxes(0, 1)  # what is stored as rows are columns
    if orientation in (3, 4, 7, 8):
        stored = stored[::-1]
    if orientation in (2, 3, 6, 7):
        stored = stored[:, ::-1]
    return np.ascontiguousarray(stored)


def _pages(count: int) -> tuple[str, ...]:
    return () if count == 1 else (f"read the first of {count} pages",)


# --- 16 bits through a decoder of 8 ----------------------------------------------------------------------------------


def _deep_png(content: bytes, mode: str) -> Picture:
    """PNG of 16 bits per sample with more than one sample; stored big-endian."""
    with Image.open(io.BytesIO(content)) as image:
        orientation = _orientation(image)
        notes = _pages(getattr(image, "n_frames", 1))
        keyed = "transparency" in image.info
    if mode == "LA":
        pairs = _unpacked(_as_four_bytes(content), "RGBA").astype(np.uint16)
        samples = pairs[..., 0::2] << 8 | pairs[..., 1::2]
    else:
        samples = _unpacked(content, f"{mode};16B").astype(np.uint16) << 8 | _unpacked(content, f"{mode};16L")
    if keyed or (mode != "RGB" and bool((samples[..., -1] != 65535).any())):
        notes += ("transparency ignored",)
    levels = samples[..., 0] if mode == "LA" else samples[..., :3]
    return Picture(upright(levels, orientation), 65535, notes)


def _unpacked(content: bytes, raw: str) -> np.ndarray:
    """One byte of every sample: ``raw`` ends in 16B for the first, in 16L for the second in memory."""
    with Image.open(io.BytesIO(content)) as image:
        image.tile = [
            tile._replace(args=raw if isinstance(tile.args, str) else (raw, *(tile.args or ())[1:]))
            for tile in image.tile
        ]
        return np.asarray(image)


def _as_four_bytes(content: bytes) -> bytes:
    """A PNG of 16-bit grey and alpha, its header saying 8-bit RGBA: the same bytes per pixel, hence the same filters."""
    header = content[12:24] + b"\x08\x06" + content[26:29]
    return content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]


# --- TIFF ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Layout:
    """What the samples of a TIFF page mean.

    ``kind``: "u", "i" or "f"; ``extra``: of the samples after colour (1, 2: alpha, 1 multiplied in); ``size``: height and width.
    """

    photometric: int
    bits: int
    kind: str
    extra: tuple[int, ...]
    orientation: int
    size: tuple[int, int]
    notes: tuple[str, ...]

    @property
    def scale(self) -> int:
        if self.kind == "f":
            return 1
        return 2 ** (self.bits - 1) - 1 if self.kind == "i" else 2**self.bits - 1


def _tiff(content: bytes) -> Picture:
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        page: Any = file.pages.first
        width, height = int(page.imagewidth), int(page.imagelength)
        if width * height > MAXIMUM_PIXELS:
            raise Unsupported(f"{width}x{height} pixels are more than {MAXIMUM_PIXELS}")
        layout = _layout(page, len(file.pages))
        if page.photometric == _YCBCR and page.compression == 1 and _subsampled(page):
            raise Unsupported("subsampled YCbCr is not supported; convert it to RGB")
        axes = str(page.axes)
        if axes not in ("YX", "YXS", "SYX"):
            raise Unsupported(f"pixels in {len(axes)} dimensions ({axes}) are not an image")
        if layout.bits <= 8 and layout.kind == "u" and not (layout.photometric == _WHITE_IS_ZERO and layout.extra):
            return _by_pillow(content)
        _check_complete(page, len(content))
        try:
            samples = _rows_columns_samples(page.asarray(), axes)
        except (ValueError, ImportError) as error:
            if not (isinstance(error, ImportError) or "imagecodecs" in str(error)):
                raise
            samples = _compressed(content, layout, str(getattr(page.compression, "name", page.compression)))
            layout = replace(layout, orientation=1, size=samples.shape[:2])  # Pillow has turned it
    return _interpreted(samples, layout)


def _layout(page: Any, pages: int) -> _Layout:
    photometric = int(page.photometric)
    kind = {1: "u", 2: "i", 3: "f", 4: "u"}.get(int(page.sampleformat or 1), "?")
    if kind == "?":
        raise Unsupported("complex pixels are not supported")
    samples = int(page.samplesperpixel)
    extra = tuple(int(one) for one in page.extrasamples or ())
    expected = _SAMPLES.get(photometric, samples)
    if samples < expected:
        raise Unsupported(f"{samples} samples per pixel, {expected} expected")
    extra = (0,) * (samples - expected) if len(extra) != samples - expected else extra
    tag = page.tags.get(_ORIENTATION)
    orientation = int(tag.value) if tag is not None and isinstance(tag.value, int) else 1
    bits = page.bitspersample
    size = (int(page.imagelength), int(page.imagewidth))
    return _Layout(photometric, int(bits), kind, extra, orientation, size, _pages(pages))


def _check_complete(page: Any, length: int) -> None:
    """Raise ``ValueError`` if pixels are missing: tifffile takes them for black."""
    pieces = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    if not pieces or any(count <= 0 or offset + count > length for offset, count in pieces):
        raise ValueError("the file is truncated or damaged")


def _subsampled(page: Any) -> bool:
    tag = page.tags.get("YCbCrSubSampling")
    return tag is None or tuple(tag.value) != (1, 1)


def _rows_columns_samples(pixels: np.ndarray, axes: str) -> np.ndarray:
    """``(height, width, samples)``."""
    if axes == "YX":
        return pixels[..., np.newaxis]
    return np.moveaxis(pixels, 0, -1) if axes == "SYX" else pixels


def _compressed(content: bytes, layout: _Layout, compression: str) -> np.ndarray:
    """Samples that only Pillow can decompress: one of up to 32 bits, or unsigned ones of 16 bits."""
    with Image.open(io.BytesIO(content)) as image:
        mode = image.mode
        if mode.startswith(("I", "F")):
            one = np.asarray(image)
            unsigned = layout.kind == "u" and layout.bits == 32
            return (one.view(np.uint32) if unsigned else one)[..., np.newaxis]
    if layout.bits != 16 or layout.kind != "u" or mode not in ("RGB", "RGBA", "CMYK"):
        raise Unsupported(f"{layout.bits} bits per sample compressed by {compression} are not supported")
    if mode == "RGBA" and layout.extra[0] == 1:
        raise Unsupported(f"16-bit colours multiplied by alpha, compressed by {compression}, are not supported")
    first, second = (_unpacked(content, f"{mode};16{order}").astype(np.uint16) for order in ("B", "L"))
    return first << 8 | second if sys.byteorder == "big" else second << 8 | first


def _interpreted(samples: np.ndarray, layout: _Layout) -> Picture:
    """Samples ``(height, width, samples)`` to black 0, white ``scale``."""
    if samples.ndim != 3 or samples.shape[:2] != layout.size:
        raise ValueError("the file is truncated or damaged")
    if layout.photometric not in _SAMPLES:
        raise Unsupported(
            f"colours of photometric kind {layout.photometric} are not supported; convert it to RGB or grey"
        )
    if layout.kind == "i" and samples.size and int(samples.min()) < 0:
        raise Unsupported(f"signed pixels from {int(samples.min())}: negative grey values have no meaning here")
    scale, notes = layout.scale, layout.notes
    colours = samples[..., : _SAMPLES[layout.photometric]]
    if layout.extra and layout.extra[0] in (1, 2):
        alpha = samples[..., colours.shape[-1]]
        if bool((alpha != scale).any()):
            notes += ("transparency ignored",)
        if layout.extra[0] == 1:
            opaque = np.where(alpha > 0, alpha, scale).astype(np.float64)[..., np.newaxis]
            colours = np.minimum(colours / opaque, 1.0) * scale
    elif layout.extra:
        notes += ("additional channels ignored",)
    if layout.photometric == _WHITE_IS_ZERO:
        if layout.kind != "u":
            raise Unsupported(
                "white is zero, with signed or floating-point pixels: where black is, the file does not say"
            )
        colours = scale - colours
    elif layout.photometric == _SEPARATED:
        inks = colours.astype(np.float64) / scale
        colours = (1 - inks[..., :3]) * (1 - inks[..., 3:]) * scale
        notes += ("CMYK converted to RGB without a colour profile",)
    levels = colours[..., 0] if colours.shape[-1] == 1 else colours
    return Picture(upright(levels, layout.orientation), scale, notes)
