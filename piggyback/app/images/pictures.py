"""Image files of every kind to numbers: at full depth, against their own full
scale, upright."""

from __future__ import annotations

import stat
import warnings
from pathlib import Path

from PIL import UnidentifiedImageError

from piggyback.app.errors import UserError
from piggyback.app.images.decoders import (
    Picture,
    Unsupported,
    by_pillow,
    deep_png,
)
from piggyback.app.images.tiff import read_tiff

_PNG, _TIFF = b"\x89PNG\r\n\x1a\n", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}


def read_picture(path: Path) -> Picture:
    """The first page or frame of an image file.

    Raises ``UserError``, naming the file, for one that is no regular file,
    cannot be read, or is of a kind that is not supported.
    """
    content = regular_content(path)
    try:
        with warnings.catch_warnings():
            # damaged metadata is no reason to complain; damaged pixels raise
            warnings.simplefilter("ignore")
            picture = _decoded(content)
    except Unsupported as error:
        raise UserError(f"{path}: {error}") from error
    except UnidentifiedImageError as error:
        reason = (
            "not an image, or of a kind that is not supported"
            if content
            else "the file is empty"
        )
        raise UserError(
            f"{path}: cannot be read as an image ({reason})"
        ) from error
    # decoders of damaged files raise anything, and in any case it is the file's fault
    except Exception as error:
        raise UserError(
            f"{path}: cannot be read as an image ({str(error) or type(error).__name__})"
        ) from error
    return picture


def regular_content(path: Path) -> bytes:
    """The bytes of a file that has an end. Raises ``UserError``, naming it, for
    a FIFO, a device, a folder, or no permission."""
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
        if kind != stat.S_IFREG:
            raise UserError(
                f"{path}: {_KINDS.get(kind, 'something else')}, not a file that can be read"
            )
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror or error})"
        ) from error


def _decoded(content: bytes) -> Picture:
    if content.startswith(_TIFF):
        return read_tiff(content)
    # IHDR: 16 bits per sample
    if content.startswith(_PNG) and content[24:25] == b"\x10":
        colour_type = content[25]
        if colour_type == 2:
            return deep_png(content, "RGB")
        if colour_type == 4:
            return deep_png(content, "LA")
        if colour_type == 6:
            return deep_png(content, "RGBA")
    return by_pillow(content)
