"""Writing files so that a failure, a full disk or a kill above all, leaves what
was there before."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

TEMPORARY = ".tmp"


def write_in_one_piece(path: Path, content: bytes) -> None:
    """Replace ``path``: a temporary file in the same folder is written, synced
    and renamed.

    Raises ``OSError`` that names ``path``; the old file is then intact and the
    temporary one gone.
    """
    temporary: str | None = None
    try:
        descriptor, temporary = tempfile.mkstemp(
            prefix=f".{path.name}.", suffix=TEMPORARY, dir=path.parent
        )
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


def write_if_new(path: Path, content: bytes) -> None:
    """``write_in_one_piece`` unless ``path`` holds ``content`` already: what is
    right keeps its date."""
    with suppress(OSError):
        if path.read_bytes() == content:
            return
    write_in_one_piece(path, content)


def leftovers(folder: Path, names: Iterable[str]) -> list[Path]:
    """Temporary files that killed writers of files called ``names`` left in
    ``folder``, which need not exist.

    Only what ``write_in_one_piece`` makes, of this release or older ones (which
    gave no suffix).
    """
    known = "|".join(re.escape(name) for name in names)
    ours = re.compile(
        rf"\.(?:{known})\.[a-z0-9_]{{8}}(?:{re.escape(TEMPORARY)})?"
    )
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if ours.fullmatch(path.name) and path.is_file()
    )


def _named(error: BaseException, path: Path) -> BaseException:
    """An ``OSError`` with the file the user knows; anything else (an interrupt)
    as it is."""
    return (
        OSError(error.errno, error.strerror, str(path))
        if isinstance(error, OSError)
        else error
    )
