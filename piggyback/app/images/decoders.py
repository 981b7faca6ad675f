"""Pictures as numbers, and Pillow's decoders: what has 8 bits, and 16-bit PNG,
of which Pillow keeps 8.

Of 16-bit colours its decoder runs once for the first and once for the second
byte of every sample.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

_ORIENTATION = 0x0112


@dataclass(frozen=True, eq=False)
class Picture:
    """``levels`` ``(height, width)`` or ``(height, width, 3)``; ``scale`` is
    white. ``notes``: what was left out or assumed.

    ``alpha`` ``(height, width)``: opacity on the same scale, None if the file
    has none; ``profile``: its ICC colour profile, empty if it has none.
    """

    levels: np.ndarray
    scale: int
    notes: tuple[str, ...] = ()
    alpha: np.ndarray | None = None
    profile: bytes = b""

    @property
    def coloured(self) -> bool:
        """Whether the three channels differ anywhere."""
        return self.levels.ndim == 3 and bool(
            (self.levels != self.levels[..., :1]).any()
        )

    def values(self) -> np.ndarray:
        """In float64, full scale 1."""
        # NaN that signals; what is not finite is refused later
        with np.errstate(invalid="ignore"):
            return self.levels.astype(np.float64) / self.scale

    def grey(self) -> np.ndarray:
        """ITU-R 601 luma in float64; that of 8-bit colours rounded to 8 bits,
        as Pillow's mode "L" does."""
        if self.levels.ndim == 2:
            return self.values()
        if self.levels.dtype == np.uint8:
            weighted = self.levels.astype(np.uint32) @ np.array(
                [19595, 38470, 7471], dtype=np.uint32
            )
            return ((weighted + 0x8000) >> 16).astype(np.float64) / self.scale
        return self.values() @ np.array([0.299, 0.587, 0.114])


# what reading says of alpha, for those who use the colours alone
TRANSPARENT = "transparency ignored"


class Unsupported(Exception):
    """An image of a kind whose right grey values are not known here."""


# --- Pillow -------------------------------------------------------------------


def by_pillow(content: bytes) -> Picture:
    """Everything of 8 bits or fewer, and 16-bit grey PNG."""
    with Image.open(io.BytesIO(content)) as image:
        orientation = _orientation(image)
        notes = pages(getattr(image, "n_frames", 1))
        image.load()
        profile = _profile(image)
        if image.mode == "1":
            return Picture(upright(np.asarray(image), orientation), 1, notes)
        if image.mode.startswith("I") and image.format in ("PNG", "PPM"):
            return Picture(
                upright(np.asarray(image), orientation),
                65535,
                notes,
                profile=profile,
            )
        if _see_through(image):
            notes += (TRANSPARENT,)
        if image.mode == "CMYK":
            notes += ("CMYK converted to RGB without a colour profile",)
        alpha = _alpha(image)
        return Picture(
            upright(np.asarray(_plain(image)), orientation),
            255,
            notes,
            alpha=None if alpha is None else upright(alpha, orientation),
            profile=profile,
        )


def _plain(image: Image.Image) -> Image.Image:
    """Mode "L" or "RGB" of an image of 8 bits."""
    if image.mode in ("La", "RGBa"):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if image.mode in ("L", "LA"):
        return image.convert("L")
    if image.mode in ("RGB", "RGBA", "RGBX", "P", "PA", "CMYK", "YCbCr"):
        return image.convert("RGB")
    raise Unsupported(
        f"pixels of mode {image.mode} are not supported; convert it to RGB or grey"
    )


def _see_through(image: Image.Image) -> bool:
    """Whether any pixel is not opaque."""
    if image.mode in ("LA", "RGBA", "PA", "La", "RGBa"):
        return image.getchannel(image.getbands()[-1]).getextrema() != (255, 255)
    return "transparency" in image.info


def _alpha(image: Image.Image) -> np.ndarray | None:
    """The opacity of an image of 8 bits; None if it has none."""
    if image.mode in ("La", "RGBa"):
        return np.asarray(image)[..., -1]
    if image.mode in ("LA", "RGBA", "PA"):
        return np.asarray(image.getchannel("A"))
    if "transparency" in image.info and image.mode in ("P", "L", "RGB"):
        return np.asarray(image.convert("RGBA").getchannel("A"))
    return None


def _profile(image: Image.Image) -> bytes:
    """The colour profile, where the samples stay what it speaks of."""
    kept = image.mode in ("L", "LA", "RGB", "RGBA", "P") or (
        image.mode.startswith("I")
    )
    found = image.info.get("icc_profile") if kept else None
    return found if isinstance(found, bytes) else b""


def _orientation(image: Image.Image) -> int:
    """EXIF's, 1 to 8; Pillow turns TIFF files itself, and damaged metadata
    counts as none."""
    if image.format == "TIFF":
        return 1
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:
        return 1
    return found if isinstance(found, int) else 1


def upright(stored: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels as they are meant to be seen; ``orientation`` says where the
    stored row 0 and column 0 are (TIFF 6.0, tag 274)."""
    if orientation in (5, 6, 7, 8):
        stored = stored.swapaxes(0, 1)  # what is stored as rows are columns
    if orientation in (3, 4, 7, 8):
        stored = stored[::-1]
    if orientation in (2, 3, 6, 7):
        stored = stored[:, ::-1]
    return np.ascontiguousarray(stored)


def pages(count: int) -> tuple[str, ...]:
    return () if count == 1 else (f"read the first of {count} pages",)


# --- 16 bits through a decoder of 8 -------------------------------------------


def deep_png(content: bytes, mode: str) -> Picture:
    """PNG of 16 bits per sample with more than one sample; stored big-endian."""
    with Image.open(io.BytesIO(content)) as image:
        orientation = _orientation(image)
        notes = pages(getattr(image, "n_frames", 1))
        keyed = "transparency" in image.info
        profile = _profile(image)
    if mode == "LA":
        pairs = unpacked(_as_four_bytes(content), "RGBA").astype(np.uint16)
        samples = pairs[..., 0::2] << 8 | pairs[..., 1::2]
    else:
        samples = unpacked(content, f"{mode};16B").astype(
            np.uint16
        ) << 8 | unpacked(content, f"{mode};16L")
    if keyed or (mode != "RGB" and bool((samples[..., -1] != 65535).any())):
        notes += (TRANSPARENT,)
    levels = samples[..., 0] if mode == "LA" else samples[..., :3]
    return Picture(
        upright(levels, orientation),
        65535,
        notes,
        alpha=None if mode == "RGB" else upright(samples[..., -1], orientation),
        profile=profile,
    )


def unpacked(content: bytes, raw: str) -> np.ndarray:
    """One byte of every sample: ``raw`` ends in 16B for the first, in 16L for
    the second in memory."""
    with Image.open(io.BytesIO(content)) as image:
        image.tile = [
            tile._replace(
                args=raw
                if isinstance(tile.args, str)
                else (raw, *(tile.args or ())[1:])
            )
            for tile in image.tile
        ]
        return np.asarray(image)


def _as_four_bytes(content: bytes) -> bytes:
    """A PNG of 16-bit grey and alpha, its header saying 8-bit RGBA: the same
    bytes per pixel, hence the same filters."""
    header = content[12:24] + b"\x08\x06" + content[26:29]
    return (
        content[:12]
        + header
        + struct.pack(">I", zlib.crc32(header))
        + content[33:]
    )
