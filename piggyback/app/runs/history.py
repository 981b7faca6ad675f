"""The rows that a training run reports, and the two tables made of them."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

Cell = float | int | str
# columns of timing.csv
TIME = ("iteration", "phase", "seconds")


@dataclass(frozen=True)
class HistoryRow:
    """One reported iteration. ``loss`` is the mean of ``||x - clean||^2 / 2``
    per patch; tolerances are in grey values (lower) and relative (adjoint);
    ``phase`` is "stochastic" (a row every few steps: the loss of the average on
    some of the fixed patches) or "adaptive" (each row is one accepted step, the
    first row the start); ``psnr`` is that of the loss.
    ``gradient_error_relative``: certified, of all fixed patches ("adaptive") or
    of the mini-batch that was assessed last, whose noise (standard deviation of
    its gradient, relative too) is beside it; ``gradient_norm`` of the same
    gradient. Tolerances and step size are those of the next step.
    ``operator_applications`` is cumulative, ``seconds`` of training proper too.
    """

    iteration: int
    phase: str
    samples: int
    loss: float
    loss_lower: float
    loss_upper: float
    psnr: float
    gradient_norm: float
    gradient_error_relative: float
    gradient_noise_relative: float
    lower_tolerance: float
    adjoint_tolerance: float
    step: float
    operator_applications: float
    seconds: float


# columns of history.csv: all that a second run of the same options repeats,
# hence without the time
HISTORY = tuple(
    field.name for field in fields(HistoryRow) if field.name != "seconds"
)


def table(rows: Sequence[HistoryRow], columns: Sequence[str]) -> bytes:
    """A CSV file with these columns; floats in the shortest form that reads
    back to the same number."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        cells = asdict(row)
        writer.writerow([_text(cells[name]) for name in columns])
    return buffer.getvalue().encode()


def _text(value: Cell) -> str:
    return str(value) if isinstance(value, str | int) else repr(float(value))
