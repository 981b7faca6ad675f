"""What the command of every study does beside measuring: options, progress,
the places that results go to.

A study says what it is with ``command_line``, looks at every place that it will
write to before it works (``Places``), says how far it is (``progress``), and
prints tables (``experiments.studies.shared.tables``). Its ``main`` is decorated
with ``command`` of ``piggyback.app.console.command``, which turns bad input and
signals into one line. ``gpu_check`` uses nothing of this: it has to run where
torch alone is installed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import Progress as Bar

from piggyback.app.console.progress import progress_bar
from piggyback.app.console.terminal import Terminal
from piggyback.app.files.outputs import Output, Outputs
from piggyback.app.options.parser import Parser, path

QUIET = 30.0
"""Seconds between two lines of progress where no bar can be drawn."""
LONGEST = 1e6
"""Seconds; a longer time left is a guess from next to nothing."""


def command_line(study: str, description: str) -> Parser:
    """A parser that knows how the study is started."""
    return Parser(f"python -m experiments.studies.{study}", description)


def add_json(parser: Parser, what: str = "the rows") -> None:
    """``--json FILE``."""
    parser.add_argument(
        "--json",
        type=path,
        metavar="FILE",
        help=f"write {what} to this file",
    )


def add_folder(parser: Parser, folder: str) -> None:
    """``--out FOLDER``, for figures."""
    parser.add_argument(
        "--out",
        type=path,
        metavar="FOLDER",
        default=Path(folder),
        help="folder of the figures",
    )


class Places:
    """Where a study writes: never over a file of the user, whole or not at all.

    Made before the work begins, so that no result is lost for want of a place.

    Args:
        runs: run folders that the study reads; nothing is written over them.

    Raises:
        UserError: from all methods, for a place that cannot be written to.
    """

    def __init__(self, *runs: Path | None) -> None:
        self._outputs = Outputs(*runs)

    def json(self, path: Path | None, keys: Collection[str]) -> Output:
        """``--json``, with the ``keys`` of what will be written."""
        return self._outputs.json(path, keys)

    def figure(self, path: Path | None) -> Output:
        """``--figure``."""
        return self._outputs.figure(path)

    def figures(self, folder: Path, *names: str) -> list[Output]:
        """``--out``, for figures of these names."""
        return self._outputs.figures(folder, names)


class Progress:
    """How far a study is: what it does now, how much of it is done, and how
    long the rest takes at this pace.

    A bar on a terminal; elsewhere (a pipe, a file) a line every ``QUIET``
    seconds.
    """

    def __init__(self, bar: Bar, console: Console, total: float | None) -> None:
        self._bar = bar
        self._console = console
        self._total = total
        self._task = bar.add_task("", total=total)
        self._done = 0.0
        self._since = time.monotonic()
        self._said = self._since
        self._now = ""

    def now(self, what: str) -> None:
        """Say what is being done."""
        self._now = what
        self._bar.update(self._task, description=what)
        self._speak()

    def done(self, units: float = 1) -> None:
        """So many units of the total are behind us."""
        self._done += units
        self._bar.advance(self._task, units)
        self._speak()

    def _speak(self) -> None:
        now = time.monotonic()
        # there the bar says it
        if self._console.is_terminal or now - self._said < QUIET:
            return
        self._said = now
        # what is being done is known even where the end is not
        line = self._now
        if self._total is not None:
            left = time_left(now - self._since, self._done / self._total)
            line = f"{line}: {self._done:.0f} of {self._total:.0f}, {left} left"
        self._console.print(line, highlight=False, soft_wrap=True)


def time_left(seconds: float, done: float) -> str:
    """Minutes and seconds that the rest takes.

    Args:
        seconds: spent so far.
        done: part of the work that they were spent on, in [0, 1].

    Returns:
        Like ``2:05``; a question mark where nobody can say.
    """
    left = seconds * (1 / done - 1) if done > 0 else math.inf
    if not left < LONGEST:
        return "?"
    return f"{int(left) // 60}:{int(left) % 60:02d}"


@contextmanager
def progress(total: float | None) -> Iterator[Progress]:
    """Progress on stderr, while the block runs.

    Args:
        total: units of work; None where nobody knows.
    """
    console = Terminal(stderr=True)
    with progress_bar(console) as bar:
        yield Progress(bar, console, total)
