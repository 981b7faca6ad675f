"""Progress of long computations on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from experiments.history import HistoryRow


def progress_bar(console: Console) -> Progress:
    """A bar with what is being done, the time it took so far and the time it will still take; it vanishes at the end."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, transient=True)


class TrainingProgress:
    """A bar over the time budget (with the ETA) and one printed line per reported iteration."""

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
        self.console.print(
            f"{row.iteration:4d} {row.phase} {row.samples} patches  loss {row.loss:.5f} "
            f"[{row.loss_lower:.5f}, {row.loss_upper:.5f}]  gradient ±{row.gradient_error_relative:.1e} (certified, relative)  "
            f"tolerance {row.lower_tolerance:.1e}  step {row.step:.2g}  {row.operator_applications:.0f} operator pairs",
            highlight=False,
            soft_wrap=True,
        )
        done = max(row.seconds / self.budget, row.iteration / self.iterations)
        self.bar.update(self.task, completed=min(done, 1.0))
