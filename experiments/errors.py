"""Errors that are the user's to fix, and how the command line shows them: one line, exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


class UserError(Exception):
    """Input or settings that cannot be used; the message is one line that names the culprit."""


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn ``UserError`` and ``OSError`` (disk full, no permission) into ``error: ...`` on stderr and exit code 2.

    A context manager that is equally a decorator for ``main`` functions.
    """
    try:
        yield
    except UserError as error:
        _fail(str(error))
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        _fail(f"{error.filename}: {reason}" if error.filename else reason)


def require_positive(**options: int) -> None:
    """Raise ``UserError`` naming the first command-line option below 1."""
    for name, value in options.items():
        if value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {value}")


def _fail(message: str) -> NoReturn:
    sys.stderr.write(f"error: {' '.join(message.split())}\n")
    raise SystemExit(2)
