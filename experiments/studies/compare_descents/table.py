"""One table per problem: methods down, target losses across."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console

from experiments.studies.compare_descents.targets import (
    TargetLoss,
)
from experiments.studies.shared.tables import new_table


def show(found: Sequence[TargetLoss], console: Console) -> None:
    """One table per problem: methods down, targets across."""
    for problem in dict.fromkeys(level.problem for level in found):
        chosen = [level for level in found if level.problem == problem]
        table = new_table(
            f"{problem}: operator applications per image",
            (
                "left of the way",
                *(f"{level.remaining:.0%}" for level in chosen),
            ),
        )
        for method in chosen[0].costs:
            table.add_row(
                method, *(_cell(level.costs[method]) for level in chosen)
            )
        table.add_row(
            "adaptive / literature",
            *(_ratio(level.against_literature) for level in chosen),
            style="bold",
        )
        table.add_row(
            "adaptive / all of the above",
            *(_ratio(level.against_all) for level in chosen),
            style="bold",
        )
        table.add_row(
            "adaptive / picked in hindsight",
            *(_ratio(level.against_hindsight) for level in chosen),
        )
        console.print(table)


def _cell(cost: float) -> str:
    return f"{cost:.0f}" if math.isfinite(cost) else "never"


def _ratio(value: float) -> str:
    """``nan``: neither gets there; ``inf``: only the others; 0: only ours."""
    return (
        "neither"
        if math.isnan(value)
        else "others only"
        if math.isinf(value)
        else f"{value:.2f}"
        if value
        else "ours only"
    )
