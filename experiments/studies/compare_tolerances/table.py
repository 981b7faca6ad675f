"""One row per task."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console

from experiments.studies.compare_tolerances.plans import DISTURBED
from experiments.studies.compare_tolerances.verdicts import TaskVerdict
from experiments.studies.shared.tables import new_table


def show(verdicts: Sequence[TaskVerdict], console: Console) -> None:
    """One row per task."""
    columns = (
        "task",
        "best fixed pair",
        "pairs / its",
        "rate given",
        "decrease / its",
        *DISTURBED,
        "assessed",
        "certified < 1",
    )
    table = new_table(
        "tolerance and rate auto, against the best of five fixed pairs",
        columns,
        2,
    )
    for verdict in verdicts:
        table.add_row(
            verdict.task,
            verdict.best,
            _ratio(verdict.cost),
            _ratio(verdict.cost_rate_given),
            f"{verdict.decrease:.3f}",
            *(f"{value:.3f}" for value in verdict.disturbed.values()),
            f"{verdict.share:.1%}",
            f"{verdict.certified:.0%}",
        )
    console.print(table)


def _ratio(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "never"
