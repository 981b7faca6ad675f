"""What is reported of restored photographs, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from piggyback.app.console.terminal import Terminal


@dataclass(frozen=True)
class Row:
    """What is reported of one photograph.

    ``sigma``: the noise level used, in grey levels of 255, of each channel;
    ``estimated``: whether it was. ``distance``: certified root-mean-square
    distance to the exact minimiser, in grey levels of 255, before rounding;
    None where nothing is certified. With ``--compare``, in decibels: the
    photograph before and after, and the structural similarity after.
    """

    name: str
    output: str
    width: int
    height: int
    channels: int
    sigma: list[float]
    estimated: bool
    distance: float | None
    converged: bool
    operator_pairs: float
    seconds: float
    notes: list[str]
    psnr_before: float | None = None
    psnr: float | None = None
    ssim: float | None = None


def show(rows: Sequence[Row], model: str) -> None:
    """A table on the terminal, and what the user should know.

    Args:
        rows: One for each photograph.
        model: What the model is called.
    """
    compared = any(row.psnr is not None for row in rows)
    table = Table(
        "photograph",
        "noise",
        *(("before", "after", "SSIM") if compared else ()),
        "distance",
        "pairs",
        "seconds",
        caption=_caption(rows, model, compared),
    )
    for row in rows:
        measured = (
            _number(row.psnr_before, 2),
            _number(row.psnr, 2),
            _number(row.ssim, 4),
        )
        table.add_row(
            row.name,
            _noise(row),
            *(measured if compared else ()),
            _distance(row),
            f"{row.operator_pairs:.0f}",
            f"{row.seconds:.2f}",
        )
    console = Terminal()
    console.print(table)
    for text in dict.fromkeys(text for row in rows for text in row.notes):
        names = [row.name for row in rows if text in row.notes]
        which = "" if len(names) == len(rows) else f" ({', '.join(names[:5])})"
        console.print(f"{text}{which}", highlight=False)
    missed = [row.name for row in rows if not row.converged]
    if missed:
        console.print(
            "not converged to the tolerance (the distances say how far off): "
            f"{', '.join(missed)}",
            style="bold",
        )


def _caption(rows: Sequence[Row], model: str, compared: bool) -> str:
    """What the columns are."""
    said = [f"model {model}", "noise"]
    if any(row.estimated for row in rows):
        said[-1] += " (~: estimated)"
    said[-1] += " and certified RMS distance to the minimiser in levels of 255"
    if compared:
        said.append("before and after: PSNR in dB")
    return "; ".join(said)


def _noise(row: Row) -> str:
    """The root mean square over the channels."""
    squares = [level**2 for level in row.sigma]
    level = (sum(squares) / len(squares)) ** 0.5
    return f"{'~' if row.estimated else ''}{level:.3g}"


def _distance(row: Row) -> str:
    if row.distance is None:
        return "not certified"
    told = f"{row.distance:.2g}"
    return told if row.converged else f"{told} (not converged)"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
