"""Writing files so that a failure, a full disk above all, leaves what was there before."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path


def write_in_one_piece(path: Path, content: bytes) -> None:
    """Replace ``path``: a temporary file in the same folder is written, synced and renamed.

    Raises ``OSError`` that names ``path``; the old file is then intact and the temporary one gone.
    """
    temporary: str | None = None
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes it private
        os.replace(temporary, path)
    except BaseException as error:
        if temporary is not None:
            with suppress(OSError):
                os.unlink(temporary)
        raise _named(error, path) from error


def append_in_one_piece(path: Path, content: bytes) -> None:
    """Append to ``path``, or cut it back to its old length and raise ``OSError`` that names it."""
    length = path.stat().st_size if path.exists() else 0
    try:
        with path.open("ab") as file:
            file.write(content)
    except OSError as error:
        with suppress(OSError):
            os.truncate(path, length)
        raise _named(error, path) from error


def _named(error: BaseException, path: Path) -> BaseException:
    """An ``OSError`` with the file the user knows; anything else (an interrupt) as it is."""
    return OSError(error.errno, error.strerror, str(path)) if isinstance(error, OSError) else error
