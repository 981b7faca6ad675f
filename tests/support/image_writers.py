"""Files that no library here can write: PNG of 16 bits with every filter and
interlacing, TIFF of 16-bit colours in LZW."""

from __future__ import annotations

import struct
import zlib

import numpy as np

ADAM7 = (
    (0, 0, 8, 8),
    (0, 4, 8, 8),
    (4, 0, 8, 4),
    (0, 2, 4, 4),
    (2, 0, 4, 2),
    (0, 1, 2, 2),
    (1, 0, 2, 1),
)
"""First row and column, and steps of rows and columns, of the seven passes of
PNG."""
CLEAR, END = 256, 257


def png(
    samples: np.ndarray,
    colour_type: int,
    interlaced: bool = False,
    chunks: bytes = b"",
) -> bytes:
    """16-bit ``samples`` ``(height, width, count)``; the rows take the five
    filters of the format in turn."""
    height, width, _ = samples.shape
    header = struct.pack(
        ">IIBBBBB", width, height, 16, colour_type, 0, 0, interlaced
    )
    passes = (
        [samples[r::dr, c::dc] for r, c, dr, dc in ADAM7]
        if interlaced
        else [samples]
    )
    rows = b"".join(filtered(one) for one in passes if one.size)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunks
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def chunk(kind: bytes, content: bytes) -> bytes:
    """Length, kind, content, check sum."""
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def filtered(samples: np.ndarray) -> bytes:
    """Rows of bytes, row ``i`` with filter ``i mod 5``, after PNG 1.2, chapter
    6."""
    rows = (
        np.ascontiguousarray(samples.astype(">u2"))
        .view(np.uint8)
        .reshape(samples.shape[0], -1)
        .astype(int)
    )
    step, out = 2 * samples.shape[2], bytearray()
    above = np.zeros(rows.shape[1], dtype=int)
    for index, row in enumerate(rows):
        left = np.concatenate([np.zeros(step, dtype=int), row[:-step]])
        corner = np.concatenate([np.zeros(step, dtype=int), above[:-step]])
        guess = (
            0 * row,
            left,
            above,
            (left + above) // 2,
            paeth(left, above, corner),
        )[index % 5]
        out += (
            bytes([index % 5])
            + ((row - guess) % 256).astype(np.uint8).tobytes()
        )
        above = row
    return bytes(out)


def paeth(
    left: np.ndarray, above: np.ndarray, corner: np.ndarray
) -> np.ndarray:
    """Of the three, that nearest to ``left + above - corner``; ties in this
    order."""
    distances = [
        abs(above - corner),
        abs(left - corner),
        abs(left + above - 2 * corner),
    ]
    return np.choose(np.argmin(distances, axis=0), [left, above, corner])


def lzw_tiff(samples: np.ndarray, order: str = "<") -> bytes:
    """16-bit ``samples`` ``(height, width, 3 or 4)`` in one strip of LZW, of
    the byte ``order`` of ``struct``."""
    height, width, count = samples.shape
    strip = lzw(samples.astype(f"{order}u2").tobytes())
    tags = [
        (256, 4, [width]),
        (257, 4, [height]),
        (258, 3, [16] * count),
        (259, 3, [5]),
        (262, 3, [2]),
        (273, 4, [8]),
        (277, 3, [count]),
        (278, 4, [height]),
        (279, 4, [len(strip)]),
        *([(338, 3, [2])] if count == 4 else []),
    ]
    extra_at, extra, entries = 8 + len(strip) + 2 + 12 * len(tags) + 4, b"", b""
    for tag, kind, values in tags:
        packed = struct.pack(
            f"{order}{len(values)}{'H' if kind == 3 else 'I'}", *values
        )
        if len(packed) > 4:
            field = struct.pack(f"{order}I", extra_at + len(extra))
            extra += packed
        else:
            field = packed.ljust(4, b"\0")
        entries += struct.pack(f"{order}HHI", tag, kind, len(values)) + field
    directory = struct.pack(f"{order}H", len(tags)) + entries + b"\0\0\0\0"
    first = struct.pack(
        f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 8 + len(strip)
    )
    return first + strip + directory + extra


def lzw(content: bytes) -> bytes:
    """TIFF's LZW without a single repetition: the table is cleared before codes
    need a tenth bit."""
    codes: list[int] = []
    for start in range(0, len(content), 250):
        codes += [CLEAR, *content[start : start + 250]]
    bits = "".join(f"{code:09b}" for code in [*codes, END])
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")
