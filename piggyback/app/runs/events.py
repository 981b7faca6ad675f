"""Events for TensorBoard, written by the thread that has them.

The writers of torch and of TensorBoard write from a thread of their own, where
a full disk ends in a traceback.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

# made when it is imported
from tensorboard.compat.proto.event_pb2 import (
    Event,  # pyright: ignore[reportAttributeAccessIssue]
    SessionLog,  # pyright: ignore[reportAttributeAccessIssue]
)
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.summary.writer.record_writer import RecordWriter

_FORMAT = "brain.Event:2"


class Events:
    """A new file of events in ``folder``; they take the place of earlier ones
    from step ``purge_from`` on, if that is given.

    All methods raise ``OSError`` that names the file.
    """

    def __init__(self, folder: Path, purge_from: int | None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # readers take the files of a folder in the order of their names
        self.path = (
            folder / f"events.out.tfevents.{time.time_ns()}.{os.getpid()}"
        )
        self._file = self.path.open("xb", buffering=0)
        self._records = RecordWriter(self._file)
        self._write(Event(wall_time=time.time(), file_version=_FORMAT))
        if purge_from is not None:
            start = SessionLog(status=SessionLog.START)
            self._write(
                Event(wall_time=time.time(), step=purge_from, session_log=start)
            )

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """One event with all values."""
        scalars = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in values.items()
        ]
        self._write(
            Event(
                wall_time=time.time(), step=step, summary=Summary(value=scalars)
            )
        )

    def close(self) -> None:
        self._file.close()

    def _write(self, event: Event) -> None:
        try:
            self._records.write(event.SerializeToString())
        except OSError as error:
            raise OSError(
                error.errno, error.strerror, str(self.path)
            ) from error
