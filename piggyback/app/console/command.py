"""How every command ends: with its result, or with one line.

Wrong input: exit code 2. Stopped by Ctrl-C, by SIGTERM or because its terminal
is gone: 128 plus the number of the signal, at once on a second signal. Nobody
reads the output any more (``| head``): 141, as if by SIGPIPE.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from piggyback.app.console.interruption import interruptible
from piggyback.app.errors import Interrupted, UserError, one_line_errors

UNREAD = 141
_KEPT = "files written so far are complete, the others were not begun"


class Unread(Exception):
    """The reader of the output is gone."""


@contextmanager
def command() -> Iterator[None]:
    """A decorator for ``main`` functions. ``ValueError``, the refusal of the
    toolkit, counts as wrong input."""
    for stream in (sys.stdout, sys.stderr):
        # names and symbols that the encoding of the terminal lacks
        with suppress(AttributeError, OSError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]
    with (
        _unread_in_one_line(),
        one_line_errors(),
        _what_is_kept(),
        interruptible(),
        refusals(),
    ):
        yield
        if sys.stdout is not None:
            # a full disk or a closed pipe is said here, not by the
            # interpreter on its way out
            sys.stdout.flush()


@contextmanager
def refusals() -> Iterator[None]:
    """What is no bug as ``UserError``: refusals of the toolkit and numbers out
    of range."""
    try:
        yield
    # an OSError, but about no file that the user named
    except BrokenPipeError as error:
        raise Unread from error
    except OSError as error:
        if error.filename is None:
            _discard_output()
        raise
    except ArithmeticError as error:
        raise UserError(
            f"these settings lead to numbers out of range ({error})"
        ) from error
    except ValueError as error:
        raise UserError(str(error) or type(error).__name__) from error


@contextmanager
def _unread_in_one_line() -> Iterator[None]:
    try:
        yield
    except (Unread, BrokenPipeError):
        _discard_output()
        _leave("stopped: the reader of the output is gone", UNREAD)


@contextmanager
def _what_is_kept() -> Iterator[None]:
    """Commands write every file in one piece: whoever stops one is told so."""
    try:
        yield
    except KeyboardInterrupt as stop:
        by_signal = isinstance(stop, Interrupted)
        number = stop.number if by_signal else int(signal.SIGINT)
        raise Interrupted(number, _KEPT) from None


def _discard_output() -> None:
    """Nothing more reaches stdout, so that nothing fails when the interpreter
    flushes it."""
    with suppress(AttributeError, OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _leave(line: str, code: int) -> NoReturn:
    with suppress(OSError):
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
    raise SystemExit(code)
