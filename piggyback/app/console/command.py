"""How every command ends: with its result, or with one line.

Wrong input: exit code 2. Stopped by Ctrl-C, by SIGTERM or because its terminal
is gone: 128 plus the number of the signal, at once on a second signal. Nobody
reads the output any more (``| head``): 141, as if by SIGPIPE.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

import torch

from piggyback.app.errors import UserError, one_line_errors

SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP")
    if hasattr(signal, name)
)
UNREAD = 141


class Stopped(KeyboardInterrupt):
    """A signal asked for the end."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


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
        _stopped_in_one_line(),
        refusals(),
    ):
        yield
        if sys.stdout is not None:
            # a full disk or a closed pipe is said here, not by the
            # interpreter on its way out
            sys.stdout.flush()


@contextmanager
def refusals() -> Iterator[None]:
    """What is no bug as ``UserError``: refusals of the toolkit, numbers out of
    range, memory that is not there."""
    try:
        yield
    # an OSError, but about no file that the user named
    except BrokenPipeError as error:
        raise Unread from error
    except OSError as error:
        if error.filename is None:
            _discard_output()
        raise
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise UserError("not enough memory; choose smaller sizes") from error
    except RuntimeError as error:
        if "t allocate memory" in str(error) or "not enough memory" in str(
            error
        ):
            raise UserError(
                "not enough memory; choose smaller sizes"
            ) from error
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
def _stopped_in_one_line() -> Iterator[None]:
    """Signals raise ``Stopped`` in the main thread, unless the program that
    calls has handlers of its own."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        ours = [
            number for number in SIGNALS if _is_usual(signal.getsignal(number))
        ]
        before = {number: signal.signal(number, _stop) for number in ours}
    try:
        yield
    except KeyboardInterrupt as stop:
        number = stop.number if isinstance(stop, Stopped) else signal.SIGINT
        _leave(
            "interrupted: files written so far are complete, the others were not begun",
            128 + number,
        )
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_usual(handler: object) -> bool:
    """Whether a command may replace it: handlers of a program that calls us are
    left alone."""
    if handler in (signal.SIG_DFL, signal.default_int_handler):
        return True
    return getattr(handler, "until_a_command_begins", False)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(number, _stop_at_once)
    raise Stopped(number)


def _stop_at_once(number: int, frame: FrameType | None) -> NoReturn:
    """For the impatient: threads at work are not waited for."""
    os._exit(128 + number)


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
