"""What solvers cost, and what their steps cost."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from experiments.studies.benchmark.solvers import GRADIENT, OURS, SolverCost
from experiments.studies.benchmark.steps import StepCost
from experiments.studies.shared.tables import new_table


def show(
    found: Sequence[SolverCost], steps: Sequence[StepCost], console: Console
) -> None:
    """A table per problem, with multiples of ours, and one of the steps."""
    for problem in dict.fromkeys(one.problem for one in found):
        chosen = [one for one in found if one.problem == problem]
        mine = next(one for one in chosen if one.solver == OURS)
        table = new_table(
            f"applications until the gradient's norm is {GRADIENT:g}: {problem}",
            (
                "solver",
                "cold",
                "× ours",
                "warm",
                "× ours",
                "× ours cold / warm",
            ),
        )
        for one in chosen:
            missed = "" if one.reached else " (missed)"
            table.add_row(
                one.solver + missed,
                f"{one.cold:g}",
                f"{one.cold / mine.cold:.2f}",
                f"{one.warm:g}",
                f"{one.warm / mine.warm:.2f}",
                f"{one.cold / mine.warm:.2f}",
            )
        console.print(table)
    table = new_table(
        "one step",
        ("images", "solver", "ms per step", "bare K, Kᵀ", "ratio"),
        2,
    )
    for one in steps:
        ratio = one.seconds / one.bare
        table.add_row(
            one.images,
            one.solver,
            f"{1e3 * one.seconds:.2f}",
            f"{1e3 * one.bare:.2f}",
            f"{ratio:.2f}",
        )
    console.print(table)
