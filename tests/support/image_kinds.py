"""One small file of every kind of image that is read, and the values in it; and
the same files damaged."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator

import numpy as np
import tifffile
from PIL import Image

from tests.support.image_writers import chunk, lzw_tiff, png

DAMAGED = 20
"""Damaged files per kind."""

RNG = np.random.default_rng(0)
GREY8 = RNG.integers(0, 256, (20, 27), dtype=np.uint8)
RGB8 = RNG.integers(0, 256, (20, 27, 3), dtype=np.uint8)
GREY16 = RNG.integers(0, 65536, (20, 27)).astype(np.uint16)
RGB16 = RNG.integers(0, 65536, (20, 27, 3)).astype(np.uint16)
ALPHA8, ALPHA16 = GREY8[::-1].copy(), np.maximum(GREY16[::-1], 1000)
UNIT = (GREY16 / 65535).astype(np.float32)
COLOUR_MAP = RNG.integers(0, 256, (3, 256)).astype(np.uint16) * 257
INKS = np.dstack([RGB16, GREY16]) / 65535


def tiff(pixels: np.ndarray, photometric: str = "minisblack", **more) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, photometric=photometric, **more)
    return buffer.getvalue()


def pillow(image: Image.Image, kind: str, **more) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **more)
    return buffer.getvalue()


def premultiplied(samples: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Rounded, so that dividing by ``alpha`` again is right to half a level
    over it."""
    return np.dstack(
        [(samples * (alpha / 65535)).round().astype(np.uint16), alpha]
    )


KINDS = {
    "1 bit, black is zero": (tiff(GREY8 > 127), GREY8 > 127),
    "1 bit, white is zero": (tiff(GREY8 > 127, "miniswhite"), GREY8 <= 127),
    "1 bit, group 4": (
        pillow(Image.fromarray(GREY8 > 127), "TIFF", compression="group4"),
        GREY8 > 127,
    ),
    "8 bits, white is zero": (tiff(GREY8, "miniswhite"), 1 - GREY8 / 255),
    "8 bits and alpha, white is zero": (
        tiff(
            np.dstack([GREY8, ALPHA8]),
            "miniswhite",
            extrasamples=["unassalpha"],
        ),
        1 - GREY8 / 255,
    ),
    "16 bits, white is zero": (tiff(GREY16, "miniswhite"), 1 - GREY16 / 65535),
    "32 bits, white is zero": (
        tiff(GREY16.astype(np.uint32) * 65537, "miniswhite"),
        1 - GREY16 / 65535,
    ),
    "16 bits, big-endian": (tiff(GREY16, byteorder=">"), GREY16 / 65535),
    "16 bits, BigTIFF": (tiff(GREY16, bigtiff=True), GREY16 / 65535),
    "16 bits, LZW": (
        pillow(Image.fromarray(GREY16), "TIFF", compression="tiff_lzw"),
        GREY16 / 65535,
    ),
    "signed 8 bits": (tiff((GREY8 // 2).astype(np.int8)), (GREY8 // 2) / 127),
    "signed 16 bits": (
        tiff((GREY16 // 2).astype(np.int16)),
        (GREY16 // 2) / 32767,
    ),
    "signed 32 bits": (
        tiff((GREY16 // 2).astype(np.int32) * 65536),
        (GREY16 // 2) * 65536.0 / (2**31 - 1),
    ),
    "unsigned 32 bits": (
        tiff(GREY16.astype(np.uint32) * 65537),
        GREY16 / 65535,
    ),
    "unsigned 64 bits": (
        tiff(GREY16.astype(np.uint64) << 48),
        GREY16 * 2.0**48 / 2.0**64,
    ),
    "half precision": (tiff(UNIT.astype(np.float16)), UNIT.astype(np.float16)),
    "single precision": (tiff(UNIT), UNIT),
    "double precision": (tiff(UNIT.astype(np.float64)), UNIT),
    "single precision, LZW": (
        pillow(Image.fromarray(UNIT), "TIFF", compression="tiff_lzw"),
        UNIT,
    ),
    "16-bit grey and alpha TIFF": (
        tiff(np.dstack([GREY16, ALPHA16]), extrasamples=["unassalpha"]),
        GREY16 / 65535,
    ),
    "16-bit grey PNG": (png(GREY16[..., np.newaxis], 0), GREY16 / 65535),
    "16-bit grey PNG, interlaced": (
        png(GREY16[..., np.newaxis], 0, True),
        GREY16 / 65535,
    ),
    "16-bit grey and alpha PNG": (
        png(np.dstack([GREY16, ALPHA16]), 4),
        GREY16 / 65535,
    ),
    "16-bit grey and alpha PNG, interlaced": (
        png(np.dstack([GREY16, ALPHA16]), 4, True),
        GREY16 / 65535,
    ),
    "8-bit grey and alpha PNG": (
        pillow(Image.fromarray(np.dstack([GREY8, ALPHA8])), "PNG"),
        GREY8 / 255,
    ),
    "16-bit colour PNG": (png(RGB16, 2), RGB16 / 65535),
    "16-bit colour PNG, interlaced": (png(RGB16, 2, True), RGB16 / 65535),
    "16-bit colour PNG, one colour transparent": (
        png(RGB16, 2, False, chunk(b"tRNS", bytes(6))),
        RGB16 / 65535,
    ),
    "16-bit colour and alpha PNG": (
        png(np.dstack([RGB16, ALPHA16]), 6),
        RGB16 / 65535,
    ),
    "16-bit colour and alpha PNG, interlaced": (
        png(np.dstack([RGB16, ALPHA16]), 6, True),
        RGB16 / 65535,
    ),
    "16-bit colour TIFF": (tiff(RGB16, "rgb"), RGB16 / 65535),
    "16-bit colour TIFF, big-endian": (
        tiff(RGB16, "rgb", byteorder=">"),
        RGB16 / 65535,
    ),
    "16-bit colour TIFF, deflate": (
        tiff(RGB16, "rgb", compression="zlib", predictor=True),
        RGB16 / 65535,
    ),
    "16-bit colour TIFF, tiles": (
        tiff(RGB16, "rgb", tile=(16, 16)),
        RGB16 / 65535,
    ),
    "16-bit colour TIFF, planes": (
        tiff(RGB16.transpose(2, 0, 1).copy(), "rgb", planarconfig="separate"),
        RGB16 / 65535,
    ),
    "16-bit colour TIFF, LZW": (lzw_tiff(RGB16), RGB16 / 65535),
    "16-bit colour TIFF, LZW, big-endian": (
        lzw_tiff(RGB16, ">"),
        RGB16 / 65535,
    ),
    "16-bit colour and alpha TIFF, LZW": (
        lzw_tiff(np.dstack([RGB16, ALPHA16])),
        RGB16 / 65535,
    ),
    "8-bit colour TIFF, planes": (
        tiff(RGB8.transpose(2, 0, 1).copy(), "rgb", planarconfig="separate"),
        RGB8 / 255,
    ),
    "colours in single precision": (
        tiff((RGB16 / 65535).astype(np.float32), "rgb"),
        RGB16 / 65535,
    ),
    "palette TIFF": (
        tiff(GREY8, "palette", colormap=COLOUR_MAP),
        COLOUR_MAP.T[GREY8] / 65535,
    ),
    "CMYK of 16 bits": (
        tiff((INKS * 65535).round().astype(np.uint16), "separated"),
        (1 - INKS[..., :3]) * (1 - INKS[..., 3:]),
    ),
    "lossless WebP": (
        pillow(Image.fromarray(RGB8), "WEBP", lossless=True),
        RGB8 / 255,
    ),
    "bitmap": (pillow(Image.fromarray(RGB8), "BMP"), RGB8 / 255),
}


def damaged(kind: str) -> Iterator[bytes]:
    """``DAMAGED`` files: cut somewhere, or with three bytes changed, mostly in
    the header."""
    content, generator = KINDS[kind][0], random.Random(kind)
    for attempt in range(DAMAGED):
        changed = bytearray(content)
        if attempt % 2:
            del changed[generator.randrange(len(changed)) :]
        else:
            for _ in range(3):
                changed[generator.randrange(min(len(changed), 600))] = (
                    generator.randrange(256)
                )
        yield bytes(changed)
