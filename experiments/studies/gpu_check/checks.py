"""What a check is, and how a list of them is run on a borrowed card: one that
fails or hangs costs its own result only.

Every check has a limit of its own. An alarm interrupts it between two
operations; a call that never returns (a hung kernel) cannot be interrupted, and
then a watchdog ends the process. The report is rewritten after every check, so
that a kill at any moment loses nothing that was known.
"""

from __future__ import annotations

import json
import math
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType

import torch

from piggyback.app.files.places import is_stream, write_to

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]

HUNG = 3
"""Exit code of the watchdog."""
_GRACE = 15.0
"""Seconds between the alarm and the watchdog: one operation may take that long.
"""


class OutOfTime(Exception):
    """A check has used up its seconds."""


@dataclass(frozen=True)
class CardSetting:
    """Where and how thoroughly to check; ``deadline`` (``time.monotonic``) is
    that of the check at hand."""

    device: torch.device
    quick: bool
    deadline: float = float("inf")

    @property
    def left(self) -> float:
        """Seconds left to this check."""
        return self.deadline - time.monotonic()

    @property
    def on_card(self) -> bool:
        return self.device.type == "cuda"

    def wait(self) -> None:
        """Until the device has done everything."""
        if self.on_card:
            torch.cuda.synchronize(self.device)


@dataclass(frozen=True)
class Finding:
    """``right``: whether it is as it should be (None: a measurement, or nothing
    could be said: see ``note``)."""

    right: bool | None
    figures: dict[str, Json] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class CardCheck:
    """One row of the report; ``seconds``: its limit."""

    part: str
    name: str
    run: Callable[[CardSetting], Finding]
    seconds: float


@dataclass(frozen=True)
class CheckRow:
    """What came of a check: right, wrong, measured, skipped, failed, or out of
    time."""

    part: str
    name: str
    outcome: str
    seconds: float
    figures: dict[str, Json]
    note: str = ""


REPORTED = (
    "machine",
    "quick",
    "parts",
    "state",
    "running",
    "seconds",
    "marks",
    "checks",
)
"""Keys of the JSON file."""


class Report:
    """The JSON file: what is known so far, whole at every moment."""

    def __init__(self, path: Path, head: dict[str, Json]) -> None:
        self.path = path
        self.head = head
        self.rows: list[CheckRow] = []
        self.marks: list[dict[str, Json]] = []
        self.running = ""
        self.begun = time.monotonic()
        self._lock = threading.Lock()

    def add(self, row: CheckRow) -> None:
        """Append and write."""
        self.rows.append(row)
        self.write("running")

    def write(self, state: str) -> None:
        """Replace the file; ``state``: running, complete, or why it ended."""
        content = self.head | {
            "state": state,
            "running": self.running,
            "seconds": round(time.monotonic() - self.begun, 2),
            "marks": self.marks,
            "checks": [asdict(row) for row in self.rows],
        }
        # a report per line would not be one JSON document
        if state == "running" and is_stream(self.path):
            return  # a device or a FIFO gets the report once
        # the watchdog writes from a thread of its own
        with self._lock:
            write_to(
                self.path,
                (
                    json.dumps(plain(content), indent=1, allow_nan=False) + "\n"
                ).encode(),
            )


def plain(value: Json) -> Json:
    """The same with infinities and NaN as words, which JSON has no numbers for."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, list):
        return [plain(part) for part in value]
    return value


class Watchdog:
    """Ends the process, report written, when the check at hand or the whole run
    has not come back in time."""

    def __init__(self, report: Report, limit: float) -> None:
        self.report = report
        self.end = time.monotonic() + limit
        self.until = self.end
        self._stopped = threading.Event()
        # a thread, not a signal: a call that hangs in the driver never returns
        # to Python, where signals are handled
        threading.Thread(target=self._watch, daemon=True).start()

    def expect(self, until: float) -> None:
        """The check at hand comes back before ``until`` (``time.monotonic``)."""
        self.until = until

    def stop(self) -> None:
        self._stopped.set()

    def _watch(self) -> None:
        while not self._stopped.wait(0.2):
            if time.monotonic() > min(self.until, self.end):
                self.report.write(f"hung in: {self.report.running}")
                print(
                    f"hung in: {self.report.running}; the report holds what was known",
                    flush=True,
                )
                os._exit(HUNG)


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """``OutOfTime`` in the block after that many seconds (in the main thread;
    elsewhere, nothing)."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(
        signal, "setitimer"
    ):
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        raise OutOfTime

    # the handler of whoever calls is put back afterwards
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def perform(check: CardCheck, setting: CardSetting, seconds: float) -> CheckRow:
    """Run one check within ``seconds``; whatever it raises becomes its row."""
    begun = time.monotonic()
    figures = {}
    note = ""
    try:
        with alarm(seconds):
            finding = check.run(
                CardSetting(setting.device, setting.quick, begun + seconds)
            )
            setting.wait()
        outcome = {
            True: "right",
            False: "wrong",
            None: "measured" if finding.figures else "skipped",
        }[finding.right]
        figures = finding.figures
        note = finding.note
    except OutOfTime:
        outcome = "out of time"
        note = f"more than {seconds:.0f} s"
    except Exception as error:
        # the line that raised says more than the message of a kernel
        where = traceback.extract_tb(error.__traceback__)[-1]
        outcome = "failed"
        note = f"{type(error).__name__}: {str(error).strip()[:400]} ({Path(where.filename).name}:{where.lineno})"
        if setting.on_card and isinstance(error, torch.cuda.OutOfMemoryError):
            torch.cuda.empty_cache()  # the next check shall have all of it
    return CheckRow(
        check.part,
        check.name,
        outcome,
        round(time.monotonic() - begun, 3),
        figures,
        note,
    )


def run_all(
    checks: Sequence[CardCheck],
    setting: CardSetting,
    report: Report,
    limit: float,
    show: Callable[[CheckRow], None],
) -> None:
    """All checks, within ``limit`` seconds together; the report is written
    after each."""
    watchdog = Watchdog(report, limit + _GRACE)
    end = time.monotonic() + limit
    try:
        for check in checks:
            # late checks get what is left of the whole
            seconds = min(check.seconds, end - time.monotonic())
            report.running = f"{check.part}: {check.name}"
            # too short to say anything: better not begun than cut off
            if seconds < 0.5:
                row = CheckRow(
                    check.part,
                    check.name,
                    "out of time",
                    0.0,
                    {},
                    "the whole run's time was used up",
                )
            else:
                watchdog.expect(time.monotonic() + seconds + _GRACE)
                row = perform(check, setting, seconds)
            report.add(row)
            show(row)
        report.running = ""
    finally:
        watchdog.stop()


def figures_line(figures: dict[str, Json]) -> str:
    """Figures in a line, numbers to three digits."""
    return ", ".join(
        f"{name} {_short(value)}" for name, value in figures.items()
    )


def _short(value: Json) -> str:
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, dict):
        return "(" + figures_line(value) + ")"
    if isinstance(value, list):
        return " ".join(_short(part) for part in value)
    return str(value)


def table_line(row: CheckRow) -> str:
    """One line of the printed table."""
    text = " | ".join(
        part for part in (figures_line(row.figures), row.note) if part
    )
    return f"{row.outcome:>11}  {row.seconds:7.2f} s  {row.part:<16} {row.name:<44} {text}"
