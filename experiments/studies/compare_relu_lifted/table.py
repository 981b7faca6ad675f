"""Who came how far, and conditioning by depth and width."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from experiments.studies.compare_relu_lifted.race import (
    LEVELS,
    Conditioning,
    RaceInstance,
    RacePoint,
    curves,
    first_below,
)
from experiments.studies.shared.tables import new_table


def show(
    instance: RaceInstance, points: Sequence[RacePoint], console: Console
) -> None:
    """One row per method and level, at the smoothing that reached it first
    (chosen knowing the result).

    ``pairs``: operator pairs; ``lowest``: smallest part of the gap that the
    method reached at all.
    """
    table = new_table(
        (
            f"nested ReLU energy: {instance.gap:.4g} above the reference at the start; the reference is at most "
            f"{instance.uncertain / instance.gap:.1e} of that above the minimum (certified)"
        ),
        (
            "method",
            "gap left",
            "smoothing",
            "steps",
            "pairs",
            "seconds",
            "lowest",
        ),
    )
    grouped = curves(points)
    for method in dict.fromkeys(method for method, _ in grouped):
        own = [curve for (name, _), curve in grouped.items() if name == method]
        # what smoothing leaves of the gap is seen here
        lowest = min(point.gap for curve in own for point in curve)
        for level in LEVELS:
            reached = [
                point
                for curve in own
                if (point := first_below(curve, level)) is not None
            ]
            # each method gets the smoothing that suits it best
            best = min(reached, key=lambda point: point.seconds, default=None)
            cells = ["–"] * 4
            if best is not None:
                cells = [
                    f"{best.smoothing:g}",
                    f"{best.steps}",
                    f"{best.operator_pairs:.0f}",
                    f"{best.seconds:.2f}",
                ]
            table.add_row(
                method if level == LEVELS[0] else "",
                f"{level:g}",
                *cells,
                f"{lowest:.1e}",
            )
    console.print(table)


def show_conditioning(
    rows: Sequence[Conditioning], limit: int, console: Console
) -> None:
    """Depth and width against condition figures and steps."""
    table = new_table(
        "lifted operator: bounds of the condition, PDHG steps to RMS 1e-3",
        (
            "widths",
            "condition, block steps",
            "condition, one step",
            "steps, block",
            "steps, one",
        ),
    )
    for row in rows:
        steps = [
            f"> {limit}" if count is None else f"{count}"
            for count in (row.block_steps, row.uniform_steps)
        ]
        table.add_row(
            ", ".join(map(str, row.widths)),
            f"{row.block_condition:.2g}",
            f"{row.uniform_condition:.2g}",
            *steps,
        )
    console.print(table)
