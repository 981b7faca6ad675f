"""The folder of a training run: what lies in it, and that it survives interruption and a full disk.

``model.safetensors``  weights, with the configuration in its header     replaced in one piece
``config.json``        the same configuration, to read                   replaced in one piece
``checkpoint.pt``      everything needed to go on                        replaced in one piece
``history.csv``        one row per reported iteration                    appended
``tensorboard/``       events: the numbers of the same rows              appended
``metrics.json``       final figures                                     replaced in one piece
``figures/``           PNG files

"In one piece": written to a temporary file beside the old one, synced, renamed; a failure leaves the old file intact.
"""

from __future__ import annotations

import csv
import io
import json
import math
import pickle
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from experiments.atomic import append_in_one_piece, write_in_one_piece
from experiments.errors import UserError

FORMAT = "piggyback-bilevel"
VERSION = 1
ITERATION = "iteration"  # the column of history.csv that a checkpoint refers to

Cell = float | int | str
Row = Mapping[str, Cell]
Json = Mapping[str, "Json"] | Sequence["Json"] | str | float | int | bool | None


@dataclass(frozen=True)
class Checkpoint:
    """``state`` holds what ``torch.load(weights_only=True)`` accepts: tensors, numbers, strings, lists, dicts."""

    iteration: int
    state: dict[str, Any]


class RunFolder:
    """The files of one run.  Use ``create``, ``resume`` or ``open``; close it (or use ``with``) to flush the events."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._events: SummaryWriter | None = None
        self._purge_from: int | None = None

    @classmethod
    def create(cls, path: Path) -> RunFolder:
        """A new run.  Raises ``UserError`` if ``path`` is a file or already holds a run."""
        if path.exists() and not path.is_dir():
            raise UserError(f"{path}: not a folder")
        run = cls(path)
        for file in (run.model, run.checkpoint, run.history):
            if file.exists():
                raise UserError(f"{path}: already holds a run ({file.name}); resume it or choose another folder")
        path.mkdir(parents=True, exist_ok=True)
        return run

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """A run with a model.  Raises ``UserError`` if there is none."""
        run = cls(path)
        if not path.is_dir():
            raise UserError(f"{path}: no such run folder")
        if not run.model.is_file():
            raise UserError(f"{path}: not a run folder, it holds no {run.model.name}")
        return run

    @classmethod
    def resume(cls, path: Path) -> tuple[RunFolder, Checkpoint]:
        """An interrupted run and its checkpoint; rows of history.csv after the checkpoint are dropped.

        Raises ``UserError`` if there is no checkpoint or it cannot be used.
        """
        run = cls(path)
        if not path.is_dir():
            raise UserError(f"{path}: no such run folder, nothing to resume")
        checkpoint = run.load_checkpoint()
        run._drop_rows_after(checkpoint.iteration)
        run._purge_from = checkpoint.iteration + 1
        return run, checkpoint

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
    def metrics(self) -> Path:
        return self.path / "metrics.json"

    @property
    def figures(self) -> Path:
        """The folder of the figures, made on first use."""
        folder = self.path / "figures"
        folder.mkdir(exist_ok=True)
        return folder

    def save_model(self, tensors: Mapping[str, Tensor], config: Mapping[str, Json]) -> None:
        """Release a model.  Raises ``OSError`` (naming the file) if it cannot be written; the old one then stays."""
        text = json_text(config)
        contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        header = {"format": FORMAT, "version": str(VERSION), "config": text}
        write_in_one_piece(self.model, safetensors_bytes(contiguous, metadata=header))
        write_in_one_piece(self.config, text.encode())

    def load_model(self) -> tuple[dict[str, Tensor], dict[str, Json]]:
        """Weights and configuration, both from ``model.safetensors``, so that they always belong together.

        Raises ``UserError`` if the file is missing, damaged, or not one of ours.
        """
        try:
            with safe_open(self.model, framework="pt") as file:
                header = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except FileNotFoundError as error:
            raise UserError(f"{self.path}: not a run folder, it holds no {self.model.name}") from error
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(f"{self.model}: damaged or not a model ({error})") from error
        if header.get("format") != FORMAT or header.get("version") != str(VERSION):
            raise UserError(f"{self.model}: not a {FORMAT} model of format version {VERSION}")
        return tensors, json.loads(header["config"])

    def save_checkpoint(self, iteration: int, state: Mapping[str, object]) -> None:
        """Keep ``state`` after ``iteration``.  Raises ``OSError`` if it cannot be written; the old one then stays."""
        buffer = io.BytesIO()
        torch.save({"format": FORMAT, "version": VERSION, "iteration": iteration, "state": dict(state)}, buffer)
        write_in_one_piece(self.checkpoint, buffer.getvalue())

    def load_checkpoint(self) -> Checkpoint:
        """The last checkpoint, on the CPU.  Raises ``UserError`` if it is missing, damaged, or not one of ours."""
        try:
            content = torch.load(io.BytesIO(self.checkpoint.read_bytes()), map_location="cpu", weights_only=True)
        except FileNotFoundError as error:
            raise UserError(f"{self.path}: holds no {self.checkpoint.name}, nothing to resume") from error
        except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, OSError) as error:
            raise UserError(f"{self.checkpoint}: truncated or not a checkpoint ({type(error).__name__})") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise UserError(f"{self.checkpoint}: not a {FORMAT} checkpoint")
        if content.get("version") != VERSION:
            raise UserError(f"{self.checkpoint}: format version {content.get('version')}, expected {VERSION}")
        return Checkpoint(content["iteration"], content["state"])

    def append(self, row: Row) -> None:
        """Add ``row`` to history.csv and its finite numbers to the events; the first row sets the columns.

        Raises ``ValueError`` if the columns differ or there is no ``iteration``, ``OSError`` if the disk is full.
        """
        if ITERATION not in row:
            raise ValueError(f"a history row needs the column {ITERATION!r}")
        names = list(row)
        fresh = not self.history.exists() or self.history.stat().st_size == 0
        if not fresh and self._columns() != names:
            raise ValueError(f"history row has columns {names}, the file has {self._columns()}")
        text = (_csv_line(names) if fresh else "") + _csv_line([_cell(row[name]) for name in names])
        append_in_one_piece(self.history, text.encode())
        self._add_events(row)

    def read_history(self) -> list[dict[str, Cell]]:
        """All rows; numbers are converted back.  An absent file has no rows."""
        if not self.history.exists():
            return []
        with self.history.open(newline="", encoding="utf-8") as file:
            return [{name: _parsed(cell) for name, cell in row.items()} for row in csv.DictReader(file)]

    def write_metrics(self, metrics: Mapping[str, Json]) -> None:
        """Write metrics.json; numbers that are not finite become ``null``."""
        write_json(self.metrics, metrics)

    def close(self) -> None:
        """Flush and close the events."""
        if self._events is not None:
            self._events.close()
            self._events = None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _columns(self) -> list[str]:
        with self.history.open(newline="", encoding="utf-8") as file:
            return next(csv.reader(file))

    def _add_events(self, row: Row) -> None:
        if self._events is None:
            self._events = SummaryWriter(self.path / "tensorboard", purge_step=self._purge_from)
        for name, value in row.items():
            if name != ITERATION and not isinstance(value, str) and math.isfinite(value):
                self._events.add_scalar(name, value, int(row[ITERATION]))

    def _drop_rows_after(self, iteration: int) -> None:
        """Keep the header and complete rows up to ``iteration``, byte for byte."""
        if not self.history.exists():
            return
        header, *lines = self.history.read_text(encoding="utf-8").splitlines(keepends=True) or [""]
        columns = next(csv.reader([header]), [])
        kept = [line for line in lines if _belongs(line, columns, iteration)]
        write_in_one_piece(self.history, "".join([header, *kept]).encode() if header.endswith("\n") else b"")


def _belongs(line: str, columns: list[str], iteration: int) -> bool:
    """Whether a line of history.csv is complete and not after ``iteration``."""
    cells = next(csv.reader([line]), [])
    return line.endswith("\n") and len(cells) == len(columns) and float(cells[columns.index(ITERATION)]) <= iteration


def _csv_line(cells: Sequence[str]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(cells)
    return buffer.getvalue()


def _cell(value: Cell) -> str:
    """Floats in the shortest form that reads back to the same number."""
    return str(value) if isinstance(value, str | int) else repr(float(value))


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
    return None if isinstance(value, float) and not math.isfinite(value) else value


def json_text(value: Json) -> str:
    """Indented JSON ending in a newline; numbers that are not finite become ``null``."""
    return json.dumps(_finite(value), indent=2, allow_nan=False) + "\n"


def write_json(path: Path, value: Json) -> None:
    """Replace ``path`` by ``json_text(value)`` in one piece.  Raises ``OSError`` that names it."""
    write_in_one_piece(path, json_text(value).encode())
