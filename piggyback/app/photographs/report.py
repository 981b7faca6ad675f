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
        "size",
        "noise",
        *(("before dB", "PSNR dB", "SSIM") if compared else ()),
        "distance",
        "converged",
        "pairs",
        "seconds",
        caption=(
            f"model {model}; noise and certified RMS distance to the "
            "minimiser in grey levels of 255"
        ),
    )
    for row in rows:
        measured = (
            _number(row.psnr_before, 2),
            _number(row.psnr, 2),
            _number(row.ssim, 4),
        )
        table.add_row(
            row.name,
            f"{row.width}x{row.height}",
            _noise(row),
            *(measured if compared else ()),
            "not certified" if row.distance is None else f"{row.distance:.2g}",
            "yes" if row.converged else "no",
            f"{row.operator_pairs:.0f}",
            f"{row.seconds:.2f}",
        )
    console = Terminal()
    console.print(table)
    for text in dict.fromkeys(text for row in rows for text in row.notes):
        names = [row.name for row in rows if text in row.notes]
        which = "" if len(names) == len(rows) else f" ({', '.join(names[:5])})"
        console.print(f"{text}{which}", highlight=False)
    if not all(row.converged for row in rows):
        console.print(
            "not converged to the tolerance: the distances say how far off",
            style="bold",
        )


def _noise(row: Row) -> str:
    """Of each channel, unless they are one."""
    told = [f"{level:.3g}" for level in row.sigma]
    text = told[0] if len(set(told)) == 1 else " ".join(told)
    return f"{text} (estimated)" if row.estimated else text


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
