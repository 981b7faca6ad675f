"""What adaptation gained and cost, and whether a rule is worth it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from experiments.studies.few_shot.verdicts import verdicts
from experiments.studies.few_shot.ways import AdaptationRow
from experiments.studies.shared.tables import new_table


def show(rows: Sequence[AdaptationRow], console: Console) -> None:
    """A table per task, and what the rules are worth beside the plain ways."""
    for task in dict.fromkeys(row.task for row in rows):
        own = [row for row in rows if row.task == task]
        columns = (
            "method",
            "before",
            "after",
            "±",
            "gradients",
            "cost",
            "meta cost",
            "s",
        )
        table = new_table(task, columns)
        for row in own:
            table.add_row(
                row.method,
                f"{row.before:.2f}",
                f"{row.after:.2f}",
                f"{row.spread:.2f}",
                f"{row.hypergradients:.0f}",
                f"{row.operator_applications:.0f}",
                f"{row.meta_applications:.0f}",
                f"{row.seconds:.0f}",
            )
        console.print(table)
        for line in verdicts(own):
            console.print(line, highlight=False)
