"""What the runs of a task say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from experiments.studies.compare_tolerances.plans import (
    AUTO,
    AUTO_RATE_GIVEN,
    DISTURBED,
    fixed_names,
)
from experiments.studies.compare_tolerances.rows import TrainingRun


@dataclass(frozen=True)
class TaskVerdict:
    """Of one task.  ``best``: the fixed pair with the least final loss.

    ``cost``, ``cost_rate_given``: pairs until that loss over those of the best
    pair (infinite: never); ``decrease``: of the loss after as many steps, over
    that of the best pair; ``disturbed``: over that of the undisturbed run, by
    disturbance. ``certified``: part of the points with a certified gradient
    error below 1.
    """

    task: str
    best: str
    cost: float
    cost_rate_given: float
    decrease: float
    disturbed: dict[str, float]
    share: float
    certified: float


def judge(runs: Sequence[TrainingRun], steps: int) -> TaskVerdict:
    """What the runs of one task say."""
    by_method = {training.method: training for training in runs}
    fixed = [by_method[name] for name in fixed_names()]
    best = min(fixed, key=lambda training: training.points[-1].loss)
    target = best.points[-1].loss
    spent = best.points[-1].pairs
    begun = best.points[0].loss
    auto = by_method[AUTO]

    def decrease(training: TrainingRun) -> float:
        # auto trains for longer: it is compared after as many steps
        known = [point for point in training.points if point.steps <= steps]
        return begun - known[-1].loss

    assessed = [point for point in auto.points if math.isfinite(point.error)]
    certified = sum(point.error < 1 for point in assessed)
    undisturbed = decrease(auto)
    disturbed = {
        label: decrease(by_method[label]) / undisturbed for label in DISTURBED
    }
    return TaskVerdict(
        task=best.task,
        best=best.method,
        cost=auto.pairs_to(target) / spent,
        cost_rate_given=by_method[AUTO_RATE_GIVEN].pairs_to(target) / spent,
        decrease=decrease(auto) / decrease(best),
        disturbed=disturbed,
        share=auto.share,
        certified=certified / max(len(assessed), 1),
    )
