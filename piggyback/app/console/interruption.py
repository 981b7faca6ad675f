"""Ctrl-C and SIGTERM: the first ends a command in good order, the second at
once; neither can harm a file."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from piggyback.app.errors import Interrupted

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def interruptible() -> Iterator[None]:
    """Within this, the first signal raises ``Interrupted`` in the main thread,
    where workers are waited for.

    A second one ends the process where it is: every file is replaced in one
    piece, so that there is nothing to put in order. Does nothing outside the
    main thread, where Python allows no handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []

    def handle(number: int, _: FrameType | None) -> None:
        if received:
            sys.stderr.flush()
            os._exit(128 + number)
        received.append(number)
        raise Interrupted(number, "")

    before = [signal.signal(number, handle) for number in _SIGNALS]
    try:
        yield
    finally:
        for number, handler in zip(_SIGNALS, before, strict=True):
            signal.signal(number, handler)
