"""Whether a file may be written, and writing it: nothing of the user is
replaced, devices, FIFOs and links stay what they are.

Needs the standard library only, like the checks on a borrowed card that write
their report by it.
"""

from __future__ import annotations

import json
import os
import re
import stat
import tempfile
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

from piggyback.app.errors import UserError
from piggyback.app.files.atomic import write_in_one_piece

LONGEST_NAME = 255
_STREAMS = re.compile(r"/dev|/dev/fd|/proc/[^/]+(/task/[^/]+)?/fd")

Ours = Callable[[bytes], bool]


def our_json(keys: Collection[str]) -> Ours:
    """Recognises objects whose keys are among those that a command writes."""

    def ours(content: bytes) -> bool:
        try:
            found = json.loads(content)
        except (ValueError, RecursionError):
            return False
        return (
            isinstance(found, dict) and bool(found) and set(found) <= set(keys)
        )

    return ours


def check_file(option: str, path: Path, ours: Ours) -> None:
    """Raise ``UserError`` if ``path`` cannot be written, or must not be because
    it is a file that is not ``ours``."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        mode = None
    except OSError as error:
        raise UserError(f"{option} {shown(path)}: {error.strerror}") from error
    if is_stream(path):
        if mode is None:
            raise UserError(f"{option} {shown(path)}: no such device")
        if not os.access(path, os.W_OK):
            raise UserError(f"{option} {shown(path)}: is write-protected")
        return
    if mode is not None and stat.S_ISDIR(mode):
        raise UserError(
            f"{option} {shown(path)}: is a folder, a file is needed"
        )
    if mode is not None and not stat.S_ISREG(mode):
        raise UserError(
            f"{option} {shown(path)}: is neither a file nor a device that can be written to"
        )
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise UserError(
            f"{option} {shown(path)}: the folder {target.parent} does not exist"
        )
    if mode is not None and not os.access(target, os.W_OK):
        raise UserError(f"{option} {shown(path)}: is write-protected")
    if mode is not None and not replaceable(target, ours):
        raise UserError(
            f"{option} {shown(path)}: exists and was not written by this "
            "command, choose another name"
        )
    try_to_create(option, path, target)


def shown(path: Path) -> str:
    """The path for a message: names of hundreds of letters are cut."""
    return str(
        Path(
            *(
                part if len(part) <= 80 else f"{part[:20]}..."
                for part in path.parts
            )
        )
    )


def is_stream(path: Path) -> bool:
    """Whether ``path`` is a character device, a FIFO, or a name of an open
    file: written to as it stands."""
    with suppress(OSError):
        mode = path.stat().st_mode
        if stat.S_ISCHR(mode) or stat.S_ISFIFO(mode):
            return True
    return _STREAMS.fullmatch(os.path.realpath(path.parent)) is not None


def write_to(path: Path, content: bytes) -> None:
    """Write ``content``: into a stream, or in one piece to the file that a link
    leads to. Raises ``OSError`` that names it."""
    if is_stream(path):
        try:
            with os.fdopen(
                os.open(path, os.O_WRONLY | os.O_APPEND), "wb"
            ) as stream:
                stream.write(content)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error
        return
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    write_in_one_piece(target, content)


def replaceable(path: Path, ours: Ours) -> bool:
    """An empty file has nothing to lose."""
    return path.stat().st_size == 0 or ours(path.read_bytes())


def try_to_create(option: str, path: Path, target: Path) -> None:
    """As ``write_in_one_piece`` will: permissions, file systems and lengths of
    names have no other reliable test."""
    try:
        descriptor, name = tempfile.mkstemp(
            prefix=f".{target.name}.", dir=target.parent
        )
    except OSError as error:
        raise UserError(
            f"{option} {shown(path)}: cannot be written ({error.strerror})"
        ) from error
    os.close(descriptor)
    os.unlink(name)
