"""What the running program is called, for help and messages that can be typed
as they stand."""

from __future__ import annotations

import sys
from pathlib import Path


def program(command: str) -> str:
    """How ``command`` is called from where it was called now.

    Args:
        command: ``train``, ``evaluate`` or ``restore``.

    Returns:
        ``python -m experiments.COMMAND`` in a checkout, if that was typed, and
        ``piggyback COMMAND`` otherwise.
    """
    started = Path(sys.argv[0])
    if started.parent.name == "experiments":
        return f"python -m experiments.{command}"
    return f"piggyback {command}"
