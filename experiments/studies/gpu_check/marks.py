"""What one card has to reach (an H100), read off the rows of a report: met, not
met, or not measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from experiments.studies.gpu_check.checks import CardSetting, CheckRow, Json

GRADIENTS_PER_SECOND = 2000.0
RESTORATION_MS = 50.0


@dataclass(frozen=True)
class Mark:
    """``found`` reads a figure off the rows (None: it is not there), ``met``
    judges it."""

    mark: str
    found: Callable[[Sequence[CheckRow]], float | None]
    met: Callable[[float], bool]


def _not_right(rows: Sequence[CheckRow]) -> float | None:
    """Checks that had to be right and were not."""
    judged = [
        row
        for row in rows
        if row.outcome in ("right", "wrong", "failed", "out of time")
    ]
    return (
        float(sum(row.outcome != "right" for row in judged)) if judged else None
    )


def _waits(rows: Sequence[CheckRow]) -> float | None:
    """In all steps of all solvers; a step that raised under the framework's own
    watch counts as one."""
    steps = [
        row
        for row in rows
        if row.part == "synchronisations" and row.name.startswith("steps of")
    ]
    return (
        float(
            sum(
                _number(row, "waits") or 0.0 if row.outcome != "failed" else 1.0
                for row in steps
            )
        )
        if steps
        else None
    )


def _fastest_gradients(rows: Sequence[CheckRow]) -> float | None:
    """Of 48² patches, the default model, the best batch."""
    found = [
        _number(row, "gradients per second")
        for row in rows
        if row.name.startswith("patch gradients, adaptive")
        and row.name.endswith("x 48²")
    ]
    return max((value for value in found if value is not None), default=None)


def _restoration(rows: Sequence[CheckRow]) -> float | None:
    found = [
        row
        for row in rows
        if row.name == "certified restoration, 512²" and row.outcome == "right"
    ]
    return _number(found[0], "ms") if found else None


def _number(row: CheckRow, name: str) -> float | None:
    value = row.figures.get(name)
    return float(value) if isinstance(value, (int, float)) else None


MARKS = (
    Mark(
        "everything right: checks that are not",
        _not_right,
        lambda count: count == 0,
    ),
    Mark(
        "no synchronisation between two looks: waits found",
        _waits,
        lambda count: count == 0,
    ),
    Mark(
        "hypergradients of 48² patches per second, at least 2,000",
        _fastest_gradients,
        lambda v: v >= GRADIENTS_PER_SECOND,
    ),
    Mark(
        "512² restored to a certified RMS of 2e-3, in ms, at most 50",
        _restoration,
        lambda v: v <= RESTORATION_MS,
    ),
)


def judged(
    rows: Sequence[CheckRow], setting: CardSetting
) -> list[dict[str, Json]]:
    """Every mark with its verdict; speeds are those of a card only, and waits
    only where a card was asked."""
    found: list[dict[str, Json]] = []
    for index, mark in enumerate(MARKS):
        value = mark.found(rows)
        known = value is not None and (setting.on_card or index == 0)
        verdict = (
            "not measured"
            if not known or value is None
            else "met"
            if mark.met(value)
            else "not met"
        )
        found.append({"mark": mark.mark, "verdict": verdict, "found": value})
    return found
