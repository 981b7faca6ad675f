"""Errors that are the user's to fix, and how the command line shows them: one
line, exit code 2."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from piggyback.app.console.memory import out_of_memory


class UserError(Exception):
    """Input or settings that cannot be used; the message is one line that names
    the culprit."""


class Interrupted(KeyboardInterrupt):
    """The user (SIGINT), the system (SIGTERM) or the end of the terminal
    (SIGHUP) stopped the command; the message is one line: what was kept, how to
    go on."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn what is no fault of the program into one line on stderr.

    ``UserError``, ``OSError`` (disk full, no permission) and exhausted memory:
    ``error: ...``, exit code 2. Signals: ``interrupted: ...``, exit
    code 128 plus the number of the signal, as shells have it. A context manager
    that is equally a decorator for ``main`` functions.
    """
    try:
        yield
    except UserError as error:
        _fail(str(error))
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        _fail(f"{error.filename}: {reason}" if error.filename else reason)
    except KeyboardInterrupt as stop:
        number = (
            stop.number if isinstance(stop, Interrupted) else int(signal.SIGINT)
        )
        _end(f"interrupted: {str(stop) or 'nothing was kept'}", 128 + number)
    except (MemoryError, RuntimeError) as error:
        said = out_of_memory(error)
        if said is None:
            raise
        _fail(said)


def _one_line(message: object) -> str:
    return " ".join(str(message).split())


def _fail(message: str) -> NoReturn:
    _end(f"error: {message}", 2)


def _end(message: str, code: int) -> NoReturn:
    # names of files need not be valid Unicode
    line = _one_line(message).encode(errors="backslashreplace").decode()
    # a full disk may be what is to be said, and where it is said
    with suppress(OSError):
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
    raise SystemExit(code)
