"""What is kept of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingPoint:
    """After ``steps``: operator pairs spent, loss on held-out patches,
    tolerances, certified error and noise (relative)."""

    steps: int
    pairs: float
    loss: float
    lower: float
    adjoint: float
    error: float
    noise: float


@dataclass(frozen=True)
class GradientLook:
    """Errors of mini-batch gradients at one moment: ``bias`` of their mean, the
    rest ``spread``; relative to the mean."""

    steps: int
    bias: float
    spread: float
    noise: float


@dataclass(frozen=True)
class TrainingRun:
    """One run.  ``share``: part of the operator pairs that assessments took."""

    task: str
    method: str
    rate: float
    share: float
    points: list[TrainingPoint]
    looks: list[GradientLook]

    def pairs_to(self, loss: float) -> float:
        """Operator pairs until the held-out ``loss`` is reached, interpolated
        between points; infinite if it never is."""
        for before, after in zip(self.points, self.points[1:], strict=False):
            if after.loss <= loss:
                part = 1.0
                if before.loss > after.loss:
                    part = (before.loss - loss) / (before.loss - after.loss)
                # the point before may have been there already
                part = min(max(part, 0.0), 1.0)
                return before.pairs + part * (after.pairs - before.pairs)
        return math.inf
