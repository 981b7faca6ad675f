"""What each method paid for the same training loss."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from experiments.studies.compare_descents.problems import (
    HINDSIGHT,
    LITERATURE,
    OURS,
)

REMAINING = (0.5, 0.25, 0.1, 0.05, 0.02)
"""Target losses: what is left of the way from the start to the best loss that
any method reached."""


@dataclass(frozen=True)
class DescentPoint:
    """An accepted iterate: applications per image so far, the loss the method
    ``claimed``, the ``loss`` it has."""

    applications: float
    claimed: float
    loss: float


@dataclass(frozen=True)
class DescentCurve:
    """All accepted iterates of one method on one problem; ``exhausted``: it
    ended before the budget did."""

    problem: str
    method: str
    points: list[DescentPoint]
    exhausted: bool

    def cost(self, target: float) -> float:
        """Applications per image of the first iterate whose true loss is at
        most ``target`` (infinite: none)."""
        return next(
            (
                point.applications
                for point in self.points
                if point.loss <= target
            ),
            math.inf,
        )


@dataclass(frozen=True)
class TargetLoss:
    """Costs of one target loss: of all methods, and ours over the best of
    others.

    ``against_literature``: MAID and the fixed tolerances with its line search;
    ``against_all``: worst-case bounds and fixed tolerances with our own steps
    too; ``against_hindsight``: the pair of tolerances picked knowing all
    results.
    """

    problem: str
    remaining: float
    target: float
    costs: dict[str, float]
    against_literature: float
    against_all: float
    against_hindsight: float


def levels(curves: Sequence[DescentCurve]) -> Iterator[TargetLoss]:
    """The targets of one problem."""
    start = curves[0].points[0].loss
    best = min(point.loss for curve in curves for point in curve.points)
    for remaining in REMAINING:
        # measured from the best loss of all, whoever reached it
        target = best + remaining * (start - best)
        costs = {curve.method: curve.cost(target) for curve in curves}

        def ratio(
            others: Sequence[str], costs: dict[str, float] = costs
        ) -> float:
            return costs[OURS] / min(costs[method] for method in others)

        known = [method for method in costs if method not in (OURS, HINDSIGHT)]
        yield TargetLoss(
            curves[0].problem,
            remaining,
            target,
            costs,
            ratio(LITERATURE),
            ratio(known),
            ratio([HINDSIGHT]),
        )
