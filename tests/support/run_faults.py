"""Tiny training runs, every state in which a kill can leave their folder, and
flipped bits."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from piggyback.app import train
from piggyback.app.errors import UserError
from piggyback.app.files.atomic import TEMPORARY, write_in_one_piece
from piggyback.app.report import final as final_report
from piggyback.app.report.baselines import TunedTV

RESULTS = ("model.safetensors", "config.json", "history.csv", "metrics.json")
"""What a resumed run has in common with an uninterrupted one, byte for byte."""
FILES = dict[str, bytes | None]
"""A folder: relative paths and contents; None for a folder."""


def draw(folder: Path, seeds: range, side: int = 16) -> Path:
    """Smooth random pictures of ``side`` x ``side + 4`` pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        rng = np.random.default_rng(seed)
        rows, columns = np.mgrid[0:side, 0 : side + 4] / side
        a, b, c = rng.uniform(-1, 1, 3)
        picture = (
            0.5
            + 0.2 * np.sin(4 * (a * rows + b * columns))
            + 0.2 * (rows + c * columns > 0.5)
        )
        Image.fromarray((255 * picture.clip(0, 1)).astype(np.uint8)).save(
            folder / f"{seed}.png"
        )
    return folder


FAMILIES = {
    "linear": ("denoise", "--regularizer", "linear", "--filters", "2"),
    "adaptive": ("denoise", "--regularizer", "adaptive", "--filters", "2"),
    "levels": ("denoise", "--sigma-range", "2", "75", "--filters", "2"),
    "icnn": ("denoise", "--regularizer", "icnn", "--widths", "2", "2"),
    "deblur": (
        "deblur",
        "--filters",
        "2",
        "--blur-std",
        "0.7",
        "--patch",
        "12",
    ),
}


@dataclass(frozen=True)
class TinyRun:
    """A command that trains in a fraction of a second: a folder for images and
    outputs, and options of its own."""

    base: Path
    own: tuple[str, ...] = FAMILIES["linear"]
    limits: tuple[str, ...] = (
        "--steps",
        "1",
        "--iterations",
        "1",
        "--stochastic",
        "0.8",
    )

    def command(self, out: Path, *more: str) -> list[str]:
        """The options come before ``more``, which may contradict them."""
        if not (self.base / "train").exists():
            draw(self.base / "train", range(2))
            draw(self.base / "test", range(10, 11))
        where = [
            "--train",
            str(self.base / "train"),
            "--test",
            str(self.base / "test"),
            "--out",
            str(out),
        ]
        sizes = "--size 3 --patches 2 --patch 8 --batch 2 --minibatch 1 --threads 1 --report-every 1 --budget 600"
        return [
            self.own[0],
            *where,
            *sizes.split(),
            *self.limits,
            *self.own[1:],
            *more,
        ]

    def train(self, out: Path, *more: str) -> None:
        train.main(self.command(out, *more))


@contextmanager
def cheap_reports() -> Iterator[None]:
    """TV at a fixed weight, and one small file for all figures, written as
    figures are: both take longer than a tiny run."""

    def drawn(run: Any, *_: object) -> None:
        write_in_one_piece(run.figures / "filters.png", b"not really a figure")

    kept = final_report.tuned_tv, final_report.draw
    final_report.tuned_tv = lambda *_: TunedTV(0.003, 20.0)
    final_report.draw = drawn
    try:
        yield
    finally:
        final_report.tuned_tv, final_report.draw = kept


def results(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in RESULTS}


# --- what a kill leaves -------------------------------------------------------


def contents(folder: Path) -> FILES:
    """All that lies in ``folder``, the events aside: they are no result, and a
    thread of their own writes them."""
    if not folder.is_dir():
        return {}
    found: FILES = {".": None}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if not name.startswith("tensorboard"):
            found[name] = path.read_bytes() if path.is_file() else None
    return found


def restore(files: FILES, folder: Path) -> None:
    """The inverse of ``contents``."""
    for name, content in files.items():
        if content is None:
            (folder / name).mkdir(parents=True, exist_ok=True)
        else:
            (folder / name).write_bytes(content)


@dataclass
class Recorder:
    """The state of ``folder`` before every operation on files in it, while
    ``active``; Python tells of all of them (PEP 578).

    Libraries are seen as well as our own code. Data reach a file between two
    operations, so that of any growth half is a state too. A kill after an
    operation is one before the next.
    """

    folder: Path
    active: bool = False
    states: list[FILES] = field(default_factory=list)

    def hear(self, event: str, arguments: Sequence[Any]) -> None:
        if (
            not self.active
            or event not in _OPERATIONS
            or not arguments
            or not self._concerned(event, arguments)
        ):
            return
        self.active = False
        try:
            self.states.append(contents(self.folder))
        finally:
            self.active = True

    def _concerned(self, event: str, arguments: Sequence[Any]) -> bool:
        if not isinstance(arguments[0], str | os.PathLike):
            return False
        if event == "open" and not arguments[2] & (
            os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
        ):
            return False
        path = Path(os.path.abspath(os.fspath(arguments[0])))
        return path == self.folder or (
            self.folder in path.parents
            and self.folder / "tensorboard" not in path.parents
        )


_OPERATIONS = frozenset(
    {
        "open",
        "os.rename",
        "os.remove",
        "os.mkdir",
        "os.rmdir",
        "os.chmod",
        "os.truncate",
        "os.link",
    }
)


@dataclass(frozen=True)
class KillPoints:
    """``before``: the state before each operation, and at the end; ``half``:
    states with a file half written."""

    before: list[FILES]
    half: list[FILES]

    def distinct(self) -> list[FILES]:
        """Each state once: temporary names are drawn, so what they hold is all
        that tells them apart."""
        seen: dict[tuple[tuple[str, bytes | None], ...], FILES] = {}
        for state in (*self.before, *self.half):
            key = tuple(
                sorted(
                    (_plain(name), content)
                    for name, content in state.items()
                    if name != "timing.csv"
                )
            )
            seen.setdefault(key, state)
        return list(seen.values())


def _plain(name: str) -> str:
    return name[: -len(TEMPORARY) - 8] if name.endswith(TEMPORARY) else name


def kill_points(folder: Path, job: Callable[[], None]) -> KillPoints:
    """Run ``job`` once to its end and record every state of ``folder`` on the
    way."""
    recorder = Recorder(folder)
    sys.addaudithook(recorder.hear)  # stays, and is deaf once it is not active
    recorder.active = True
    try:
        job()
    finally:
        recorder.active = False
    states = [*recorder.states, contents(folder)]
    return KillPoints(
        states,
        [state for pair in pairwise(states) for state in _half_written(*pair)],
    )


def _half_written(before: FILES, after: FILES) -> Iterator[FILES]:
    """States between two operations: whatever grew, half grown.

    Only temporary files may grow. Anything else gets there by being renamed, in
    one piece: raises ``AssertionError`` otherwise.
    """
    for name, content in after.items():
        if not content or content == before.get(name):
            continue
        if name.endswith(TEMPORARY):
            yield {**after, name: content[: len(content) // 2]}
        else:
            assert content in before.values(), f"{name} was written in place"


# --- flipped bits -------------------------------------------------------------


@dataclass(frozen=True)
class Flips:
    """How many single flipped bits were refused in one line, and how many
    changed nothing that is read."""

    refused: int
    harmless: int
    unnoticed: int

    @property
    def tried(self) -> int:
        return self.refused + self.harmless + self.unnoticed


def flips(
    raw: bytes,
    read: Callable[[bytes], object],
    same: Callable[[object, object], bool],
    header: int,
) -> Flips:
    """Flip every bit of the first ``header`` bytes, and 1500 seeded ones
    anywhere."""
    right, refused, harmless, unnoticed = read(raw), 0, 0, 0
    anywhere = np.random.default_rng(0).integers(8 * len(raw), size=1500)
    for bit in [*range(8 * header), *anywhere.tolist()]:
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        try:
            found = read(bytes(changed))
        except UserError as error:
            assert "\n" not in str(error)
            refused += 1
            continue
        harmless += same(found, right)
        unnoticed += not same(found, right)
    return Flips(refused, harmless, unnoticed)
