"""One table per problem."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from experiments.studies.compare_methods.comparison import (
    MethodRow,
    MethodTrainingRow,
)
from experiments.studies.shared.tables import new_table


def show(
    rows: Sequence[MethodRow],
    curves: Sequence[MethodTrainingRow],
    console: Console,
) -> None:
    """One table per problem.

    ``promise``: the certified relative error, or what the method gives instead;
    ``cost``: operator applications; ``solved``: whether its solves reached the
    tolerance; ``trained``: upper loss after training over that of the start.
    """
    for problem in dict.fromkeys(row.problem for row in rows):
        columns = (
            "method",
            "promise",
            "error",
            "cosine",
            "cost",
            "s",
            "MB",
            "solved",
            "trained",
        )
        table = new_table(problem, columns, 2)
        for row in (row for row in rows if row.problem == problem):
            own = [
                curve
                for curve in curves
                if curve.problem == problem and curve.method == row.method
            ]
            promise = (
                f"≤ {row.bound:.1e}"
                if row.guarantee == "certified"
                else row.guarantee
            )
            table.add_row(
                row.method,
                promise,
                f"{row.relative_error:.1e}",
                f"{row.cosine:+.3f}",
                f"{row.operator_applications:.0f}",
                f"{row.seconds:.2f}",
                f"{row.peak_mb:.1f}",
                "yes" if row.converged else "no",
                f"{own[-1].upper_loss / own[0].upper_loss:.1%}",
            )
        console.print(table)
