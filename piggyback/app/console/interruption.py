"""Ctrl-C, SIGTERM and a terminal that is gone: the first of these signals ends
a command in good order, the second at once; neither can harm a file."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from piggyback.app.errors import Interrupted

# Windows has no SIGHUP
SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP")
    if hasattr(signal, name)
)


class _Watch:
    """Receives signals; ``waiting``: the first one is not acted on yet."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.raised = False
        self.waiting = False

    def handle(self, number: int, _: FrameType | None) -> None:
        """The handler of every signal."""
        if self.received is not None:
            sys.stderr.flush()
            os._exit(128 + number)
        self.received = number
        self.look()

    def look(self) -> None:
        """Raise ``Interrupted``, once, if a signal has come and need not
        wait."""
        if self.received is None or self.raised or self.waiting:
            return
        self.raised = True
        raise Interrupted(self.received, "")


_watches: list[_Watch] = []


@contextmanager
def interruptible() -> Iterator[None]:
    """Within this, the first signal raises ``Interrupted`` in the main thread,
    where workers are waited for.

    A second one ends the process where it is: every file is replaced in one
    piece, so that there is nothing to put in order. Signals that somebody else
    handles or ignores (``nohup``) are left to them. Does nothing outside the
    main thread, where Python allows no handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    watch = _Watch()
    ours = [number for number in SIGNALS if _is_usual(number)]
    before = {number: signal.signal(number, watch.handle) for number in ours}
    _watches.append(watch)
    try:
        yield
    finally:
        _watches.remove(watch)
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Within this, the first signal waits until the block has ended, so that a
    short piece of work is done whole or not at all."""
    main = threading.current_thread() is threading.main_thread()
    if not (main and _watches):
        # exceptions of signals are raised in the main thread only
        yield
        return
    watch = _watches[-1]
    waiting = watch.waiting
    watch.waiting = True
    try:
        yield
    finally:
        watch.waiting = waiting
    watch.look()


def _is_usual(number: int) -> bool:
    """Whether the handler of a signal may be replaced: Python's own, or one
    that says so."""
    handler = signal.getsignal(number)
    if handler in (signal.SIG_DFL, signal.default_int_handler):
        return True
    return getattr(handler, "until_a_command_begins", False)
