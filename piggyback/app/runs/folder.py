"""The folder of a training run: what lies in it, and that it survives
interruption and a full disk.

``checkpoint.pt``      everything the run is made of; the files below follow from it
``model.safetensors``  weights, with the configuration in its header
``config.json``        the same configuration, to read
``history.csv``        one row per reported iteration
``timing.csv``         when it was reported, in seconds of training proper: the one thing a second run would not repeat
``metrics.json``       final figures
``options.json``       the options of the run, kept from before its first checkpoint on
``figures/``           PNG files
``tensorboard/``       events: the numbers of the history; appended
``.lock``              held while a process writes here; the system releases it when the process dies

All but the events are replaced in one piece: written to a temporary file beside
the old one, synced, renamed; a failure leaves the old file intact. The
checkpoint comes first. A run that is killed anywhere is resumed from it, and
whatever else is older, missing or damaged is written anew.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torch import Tensor

from piggyback.app.errors import UserError
from piggyback.app.files.atomic import (
    leftovers,
    write_if_new,
    write_in_one_piece,
)
from piggyback.app.files.sealed import (
    checkpoint_bytes,
    checkpoint_content,
    model_bytes,
    model_content,
)
from piggyback.app.runs.events import Events
from piggyback.app.runs.history import HISTORY, TIME, Cell, HistoryRow, table

Json = Mapping[str, "Json"] | Sequence["Json"] | str | float | int | bool | None


FIGURES = ("comparison.png", "filters.png", "potentials.png", "training.png")


@dataclass(frozen=True)
class Checkpoint:
    """``state`` holds what ``torch.load(weights_only=True)`` accepts: tensors,
    numbers, strings, lists, dicts."""

    iteration: int
    state: dict[str, Any]


class RunFolder:
    """The files of one run. Use ``create``, ``resume`` or ``open``; close it
    (or use ``with``) to close the events."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._events: Events | None = None
        self._purge_from: int | None = None

    @classmethod
    def create(cls, path: Path) -> RunFolder:
        """A new run. Raises ``UserError`` if ``path`` is a file or already
        holds a run."""
        run = cls(path)
        run.check_new()
        path.mkdir(parents=True, exist_ok=True)
        return run

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """A run with a model.  Raises ``UserError`` if there is none."""
        run = cls(path)
        if not path.is_dir():
            raise UserError(f"{path}: no such run folder")
        if not run.model.is_file():
            raise UserError(
                f"{path}: not a run folder, it holds no {run.model.name}"
            )
        return run

    @classmethod
    def resume(cls, path: Path) -> tuple[RunFolder, Checkpoint]:
        """An interrupted run and its checkpoint; nothing is written.

        Raises ``UserError`` if there is no checkpoint or it cannot be used.
        """
        if not path.is_dir():
            raise UserError(f"{path}: no such run folder, nothing to resume")
        run = cls(path)
        return run, run.load_checkpoint()

    def check_new(self) -> None:
        """Raise ``UserError`` if the path is a file or holds a run; one that
        was killed before its first checkpoint is none."""
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path}: not a folder")
        for file in (self.model, self.checkpoint, self.history):
            if file.exists():
                raise UserError(
                    f"{self.path}: already holds a run ({file.name}); resume it or choose another folder"
                )

    def was_begun(self) -> bool:
        """Whether a run was begun here, though it may have been killed before
        it could write anything but its lock."""
        return self.lock.exists() or self.options.exists()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only writer. Raises ``UserError`` if there is another one;
        dead ones do not count."""
        lock, fresh = FileLock(self.lock), not self.lock.exists()
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise UserError(
                f"{self.path}: another process writes this run; wait for its end, or stop it"
            ) from error
        try:
            yield
        except UserError:
            # nothing was written, so nothing stays; whoever waits for the
            # lock notices that it is gone
            if fresh:
                self.lock.unlink(missing_ok=True)
            raise
        finally:
            lock.release()

    @property
    def model(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint.pt"

    @property
    def history(self) -> Path:
        return self.path / "history.csv"

    @property
    def timing(self) -> Path:
        return self.path / "timing.csv"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.json"

    @property
    def options(self) -> Path:
        return self.path / "options.json"

    @property
    def lock(self) -> Path:
        return self.path / ".lock"

    @property
    def figures(self) -> Path:
        """The folder of the figures, made on first use."""
        folder = self.path / "figures"
        folder.mkdir(exist_ok=True)
        return folder

    def save_model(
        self, tensors: Mapping[str, Tensor], config: Mapping[str, Json]
    ) -> None:
        """Release a model. Raises ``OSError`` (naming the file) if it cannot be
        written; the old one then stays."""
        text = json_text(config)
        write_if_new(self.model, model_bytes(tensors, text))
        write_if_new(self.config, text.encode())

    def load_model(self) -> tuple[dict[str, Tensor], dict[str, Json]]:
        """Weights and configuration, both from ``model.safetensors``, so that
        they always belong together.

        Raises ``UserError`` if the file is missing, damaged, or not one of
        ours.
        """
        return model_content(
            self._read(self.model, "not a run folder"), str(self.model)
        )

    def save_checkpoint(
        self, iteration: int, state: Mapping[str, object]
    ) -> None:
        """Keep ``state`` after ``iteration``. Raises ``OSError`` if it cannot
        be written; the old one then stays."""
        write_in_one_piece(
            self.checkpoint,
            checkpoint_bytes({"iteration": iteration, "state": dict(state)}),
        )

    def load_checkpoint(self) -> Checkpoint:
        """The last checkpoint, on the CPU. Raises ``UserError`` if it is
        missing, damaged, or not one of ours."""
        raw = self._read(self.checkpoint, "nothing to resume")
        content = checkpoint_content(raw, str(self.checkpoint))
        if not isinstance(content.get("iteration"), int) or not isinstance(
            content.get("state"), dict
        ):
            raise UserError(f"{self.checkpoint}: not a checkpoint of a run")
        return Checkpoint(content["iteration"], content["state"])

    def save_options(self, options: Mapping[str, Json]) -> None:
        """Keep the options of the run. Raises ``OSError`` if they cannot be
        written."""
        write_if_new(self.options, json_text(options).encode())

    def load_options(self) -> dict[str, Any]:
        """The options of a run without a checkpoint. Raises ``UserError`` if
        they are missing or damaged."""
        raw = self._read(self.options, "nothing to resume")
        try:
            options = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{self.options}: damaged; nothing was trained yet, begin anew without --resume"
            ) from error
        if not isinstance(options, dict):
            raise UserError(
                f"{self.options}: damaged; nothing was trained yet, begin anew without --resume"
            )
        return options

    def write_history(self, rows: Sequence[HistoryRow]) -> None:
        """Write history.csv and timing.csv. Raises ``OSError`` if the disk is
        full; the old files then stay."""
        write_if_new(self.history, table(rows, HISTORY))
        write_if_new(self.timing, table(rows, TIME))

    def read_history(self) -> list[dict[str, Cell]]:
        """All rows; numbers are converted back.  An absent file has no rows."""
        if not self.history.exists():
            return []
        with self.history.open(newline="", encoding="utf-8") as file:
            return [
                {name: _parsed(cell) for name, cell in row.items()}
                for row in csv.DictReader(file)
            ]

    def add_events(self, rows: Sequence[HistoryRow]) -> None:
        """Append the finite numbers of the rows to the events."""
        if self._events is None:
            self._events = Events(self.path / "tensorboard", self._purge_from)
        for row in rows:
            cells = {
                name: value
                for name, value in asdict(row).items()
                if name != "iteration"
            }
            numbers = {
                name: value
                for name, value in cells.items()
                if not isinstance(value, str)
            }
            self._events.add(
                row.iteration,
                {
                    name: value
                    for name, value in numbers.items()
                    if math.isfinite(value)
                },
            )

    def drop_events_from(self, iteration: int) -> None:
        """Let the next events replace those of ``iteration`` and later ones."""
        self._purge_from = iteration

    def write_metrics(self, metrics: Mapping[str, Json]) -> None:
        """Write metrics.json; numbers that are not finite become ``null``."""
        write_if_new(self.metrics, json_text(metrics).encode())

    def close(self) -> None:
        """Close the events."""
        if self._events is not None:
            self._events.close()
            self._events = None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, file: Path, otherwise: str) -> bytes:
        """Raises ``UserError``: the folder holds no such file, which means
        ``otherwise``, or it cannot be read."""
        try:
            return file.read_bytes()
        except FileNotFoundError as error:
            raise UserError(
                f"{self.path}: {otherwise}, it holds no {file.name}"
            ) from error
        except OSError as error:
            raise UserError(
                f"{file}: cannot be read ({error.strerror})"
            ) from error

    def clear_leftovers(self) -> None:
        """Remove what killed writers left unfinished."""
        files = (
            self.model,
            self.config,
            self.checkpoint,
            self.history,
            self.timing,
            self.metrics,
            self.options,
        )
        for left in leftovers(self.path, [file.name for file in files]):
            left.unlink(missing_ok=True)
        drawn = self.path / "figures"
        for left in leftovers(drawn, FIGURES):
            left.unlink(missing_ok=True)


def _parsed(cell: str) -> Cell:
    for kind in (int, float):
        with suppress(ValueError):
            return kind(cell)
    return cell


def _finite(value: Json) -> Json:
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(item) for item in value]
    return (
        None if isinstance(value, float) and not math.isfinite(value) else value
    )


def json_text(value: Json) -> str:
    """Indented JSON ending in a newline; numbers that are not finite become
    ``null``."""
    return json.dumps(_finite(value), indent=2, allow_nan=False) + "\n"


def write_json(path: Path, value: Json) -> None:
    """Replace ``path`` by ``json_text(value)`` in one piece. Raises ``OSError``
    that names it."""
    write_in_one_piece(path, json_text(value).encode())
