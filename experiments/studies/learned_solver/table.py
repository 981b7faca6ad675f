"""Operator applications and seconds, solver by solver."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from experiments.studies.learned_solver.contest import SolverRow
from experiments.studies.shared.tables import new_table


def show(rows: Sequence[SolverRow], console: Console) -> None:
    """One line per solver and task; for each tolerance operator applications
    per image, and seconds for all images."""
    tolerances = sorted({row.tolerance for row in rows}, reverse=True)
    columns = ["task", "solver"]
    for tolerance in tolerances:
        columns += [f"{tolerance:.0e}", "s"]
    table = new_table("", columns, 2)
    for task, solver in dict.fromkeys((row.task, row.solver) for row in rows):
        own = [row for row in rows if (row.task, row.solver) == (task, solver)]
        cells = [
            text
            for row in own
            for text in (
                f"{row.operator_applications:.1f}",
                f"{row.seconds:.2f}",
            )
        ]
        table.add_row(task, solver, *cells)
    console.print(table)
    worst = max(row.certified_rms / row.tolerance for row in rows)
    console.print(
        f"certified RMS distance to the minimiser over the tolerance: at most {worst:.4f}"
    )
