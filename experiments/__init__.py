"""``python -m experiments.train`` and ``evaluate``, and the studies behind
docs/results.md."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType, TracebackType


def _ended(number: int, frame: FrameType | None) -> None:
    os.write(2, b"interrupted: nothing was begun\n")
    os._exit(128 + number)


def _interrupted(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.stderr.write("interrupted: nothing was begun\n")
    else:
        sys.__excepthook__(kind, error, trace)


if (
    sys.argv[:1] == ["-m"]
    # Python is still looking for the command: while modules load, signals end it
    # in one line too
):
    sys.excepthook = _interrupted
    _ended.until_a_command_begins = True  # type: ignore[attr-defined]
    for _name in ("SIGTERM", "SIGHUP"):
        if (
            hasattr(signal, _name)
            and signal.getsignal(getattr(signal, _name)) is signal.SIG_DFL
        ):
            signal.signal(getattr(signal, _name), _ended)
