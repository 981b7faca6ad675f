"""Numbers to image files: at full depth, with alpha and colour profile.

PNG of 16 bits is written here, since Pillow keeps 8 bits of colours.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import tifffile
from PIL import Image

from piggyback.app.images.decoders import Picture

Kind = Literal["png", "tiff", "jpeg", "webp", "bmp"]
KINDS: tuple[Kind, ...] = get_args(Kind)
SUFFIXES: dict[str, Kind] = {
    ".png": "png",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".webp": "webp",
    ".bmp": "bmp",
}
JPEG_QUALITY = 95
_DEEPEST_PNG = 65535
# colour types of PNG by the number of samples per pixel
_PNG_COLOUR = {1: 0, 2: 4, 3: 2, 4: 6}


@dataclass(frozen=True)
class Depth:
    """How samples are stored: ``dtype``, and the ``scale`` that white has."""

    dtype: np.dtype
    scale: int

    @property
    def is_float(self) -> bool:
        """Whether samples are floating-point numbers, which are not clipped."""
        return self.dtype.kind == "f"

    def stored(self, values: np.ndarray) -> np.ndarray:
        """Values of full scale 1 as samples; integers are rounded and
        clipped."""
        if self.is_float:
            return values.astype(self.dtype)
        levels = np.rint(np.clip(values, 0.0, 1.0) * self.scale)
        return levels.astype(self.dtype)


def depth_of(picture: Picture) -> Depth:
    """The depth that a picture was read at, in whole bytes per sample."""
    dtype = picture.levels.dtype
    if dtype.kind == "f" and picture.scale == 1:
        return Depth(dtype, 1)
    if picture.scale <= 255:
        return Depth(np.dtype(np.uint8), 255)
    # colours that reading multiplied (alpha, inks) are floating point, and
    # 12 bits are stored in two bytes
    if picture.scale <= _DEEPEST_PNG:
        return Depth(np.dtype(np.uint16), 65535)
    return Depth(np.dtype(np.uint32), 2**32 - 1)


def depth_in(kind: Kind, depth: Depth) -> Depth:
    """The nearest depth that files of ``kind`` have."""
    if kind == "tiff":
        return depth
    if kind == "png" and (depth.is_float or depth.scale > 255):
        return Depth(np.dtype(np.uint16), 65535)
    return Depth(np.dtype(np.uint8), 255)


def encoded(
    values: np.ndarray,
    alpha: np.ndarray | None,
    kind: Kind,
    depth: Depth,
    profile: bytes = b"",
) -> bytes:
    """The content of an image file.

    Args:
        values: ``(height, width)`` or ``(height, width, 3)``, full scale 1.
        alpha: Opacity ``(height, width)``, full scale 1, or None. JPEG and BMP
            cannot hold it, and leave it out.
        kind: The format.
        depth: How samples are stored; ``depth_in`` says what ``kind`` can do.
        profile: ICC colour profile; empty for none.

    Returns:
        The bytes of the file.
    """
    depth = depth_in(kind, depth)
    samples = depth.stored(values)
    if alpha is not None and kind in ("png", "tiff", "webp"):
        colours = samples if samples.ndim == 3 else samples[..., np.newaxis]
        opacity = depth.stored(alpha)[..., np.newaxis]
        samples = np.concatenate([colours, opacity], axis=-1)
    if kind == "tiff":
        return _tiff(samples, profile)
    if kind == "png" and samples.dtype == np.uint16:
        return _deep_png(samples, profile)
    return _by_pillow(samples, kind, profile)


def _by_pillow(samples: np.ndarray, kind: Kind, profile: bytes) -> bytes:
    if kind == "webp" and samples.shape[-1] == 2 and samples.ndim == 3:
        grey, opacity = samples[..., :1], samples[..., 1:]
        samples = np.concatenate([grey, grey, grey, opacity], axis=-1)
    image = Image.fromarray(samples)
    buffer = io.BytesIO()
    known = {"icc_profile": profile} if profile else {}
    if kind == "jpeg":
        image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0, **known)
    elif kind == "webp":
        image.save(buffer, "WEBP", lossless=True, exact=True, **known)
    elif kind == "bmp":
        image.save(buffer, "BMP")
    else:
        image.save(buffer, "PNG", **known)
    return buffer.getvalue()


def _tiff(samples: np.ndarray, profile: bytes) -> bytes:
    channels = 1 if samples.ndim == 2 else samples.shape[-1]
    buffer = io.BytesIO()
    tifffile.imwrite(
        buffer,
        samples,
        photometric="minisblack" if channels <= 2 else "rgb",
        planarconfig="contig" if channels > 1 else None,
        extrasamples=["unassalpha"] if channels in (2, 4) else None,
        compression="zlib",
        iccprofile=profile or None,
        metadata=None,
        software=False,
    )
    return buffer.getvalue()


def _deep_png(samples: np.ndarray, profile: bytes) -> bytes:
    """PNG of 16 bits per sample, each row stored as its difference from the one
    above."""
    height, width = samples.shape[:2]
    pixels = np.ascontiguousarray(samples.astype(">u2")).view(np.uint8)
    rows = pixels.reshape(height, -1)
    above = np.concatenate([np.zeros_like(rows[:1]), rows[:-1]])
    up = np.full((height, 1), 2, dtype=np.uint8)
    filtered = np.concatenate([up, rows - above], axis=1)
    channels = 1 if samples.ndim == 2 else samples.shape[-1]
    header = struct.pack(
        ">IIBBBBB", width, height, 16, _PNG_COLOUR[channels], 0, 0, 0
    )
    parts = [b"\x89PNG\r\n\x1a\n", _chunk(b"IHDR", header)]
    if profile:
        parts.append(
            _chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(profile))
        )
    parts.append(_chunk(b"IDAT", zlib.compress(filtered.tobytes(), 6)))
    parts.append(_chunk(b"IEND", b""))
    return b"".join(parts)


def _chunk(kind: bytes, content: bytes) -> bytes:
    """Length, kind, content, checksum (PNG, section 5.3)."""
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )
