"""Progress of long computations on the terminal."""

from __future__ import annotations

import math

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from piggyback.app.runs.history import HistoryRow


def progress_bar(console: Console) -> Progress:
    """A bar with what is being done, the time it took so far and the time it
    will still take; it vanishes at the end."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, transient=True)


class TrainingProgress:
    """A bar over the time budget (with the ETA) and one printed line per
    reported iteration."""

    def __init__(self, budget: float, iterations: int) -> None:
        self.budget, self.iterations = budget, iterations
        self.console = Console(stderr=True)
        self.bar = progress_bar(self.console)
        self.task = self.bar.add_task("training", total=1.0)

    def __enter__(self) -> TrainingProgress:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def show(self, row: HistoryRow) -> None:
        """Print one iteration and move the bar."""
        done = min(
            max(row.seconds / self.budget, row.iteration / self.iterations), 1.0
        )
        self.console.print(_line(row, done), highlight=False, soft_wrap=True)
        self.bar.update(self.task, completed=done)


def _line(row: HistoryRow, done: float) -> str:
    """What a row says, in words; ``done``: the part of the limits that is used
    up."""
    return (
        f"{row.iteration:5d}  PSNR {row.psnr:.2f} dB  loss {row.loss:.4f} in "
        f"[{row.loss_lower:.4f}, {row.loss_upper:.4f}]  "
        f"{gradient_in_words(row)}  tolerances {row.lower_tolerance:.1e}, "
        f"{row.adjoint_tolerance:.2f}  "
        f"{'rate' if row.phase == 'stochastic' else 'step'} {row.step:.2g}  "
        f"{row.operator_applications:.0f} pairs  "
        f"{_left(row.seconds, done)} left"
    )


def _left(seconds: float, done: float) -> str:
    """Minutes and seconds that the rest takes at this pace, a question mark
    where nobody can say."""
    left = seconds * (1 / done - 1) if done > 0 else math.inf
    if not left < _LONGEST:
        return "?"
    return f"{int(left) // 60}:{int(left) % 60:02d}"


# seconds; a larger time is a guess from next to nothing.
_LONGEST = 1e6


def gradient_in_words(row: HistoryRow) -> str:
    """The certified error of the gradient; a bound of 1 or more certifies
    nothing, and is not shown as if it did."""
    error = row.gradient_error_relative
    if not error < 1:
        return (
            "gradient not certified"
            if row.gradient_norm > 0
            else "gradient not assessed"
        )
    text = f"gradient error <= {_percent(error)}"
    if row.gradient_noise_relative < math.inf:
        return (
            f"{text} (mini-batch noise {_percent(row.gradient_noise_relative)})"
        )
    return text


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 1 else f"{100 * share:.0f} %"
