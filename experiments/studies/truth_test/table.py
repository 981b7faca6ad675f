"""The tables of the study: answer by answer, and what the certificates came
to, model by model."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rich.table import Table

from experiments.studies.shared.tables import new_table, number
from experiments.studies.truth_test.answers import Answer
from experiments.studies.truth_test.ways import CERTIFIED, WANTED
from piggyback.app.runs.folder import Json


@dataclass(frozen=True)
class CertifiedModel:
    """What the certified answers for one model came to.

    ``median`` and ``worst``: of bound over true error; ``violated``: share of
    the answers whose bound is less than the true error, which has to be 0;
    ``not_certified``: share whose bound is above 1; ``missed``: share whose
    bound is above what was wanted.
    """

    model: str
    answers: int
    median: float
    worst: float
    violated: float
    not_certified: float
    missed: float

    def row(self) -> dict[str, Json]:
        """For the file of results."""
        return dict(asdict(self))


def certified_models(answers: Sequence[Answer]) -> list[CertifiedModel]:
    """One row per model, in the order of appearance."""
    groups: dict[str, list[Answer]] = {}
    for one in answers:
        if one.method == CERTIFIED:
            model = one.problem.partition("/")[0]
            groups.setdefault(model, []).append(one)
    return [_certified(model, group) for model, group in groups.items()]


def _certified(model: str, group: Sequence[Answer]) -> CertifiedModel:
    ratios = [
        one.bound / one.true_error if one.true_error > 0 else math.inf
        for one in group
    ]
    # written so that a bound that is not a number holds and certifies nothing
    violated = sum(not one.bound >= one.true_error for one in group)
    vacuous = sum(not one.bound <= 1 for one in group)
    missed = sum(not one.bound <= WANTED for one in group)
    return CertifiedModel(
        model=model,
        answers=len(group),
        median=statistics.median(ratios),
        worst=max(ratios),
        violated=violated / len(group),
        not_certified=vacuous / len(group),
        missed=missed / len(group),
    )


def by_answer(answers: Sequence[Answer]) -> Table:
    """One line per instance and method."""
    made = new_table(
        f"a gradient wanted to {WANTED:.0%}; cost in operator applications",
        ("instance", "method", "cost", "true error", "promised"),
        2,
    )
    before = ""
    for one in answers:
        made.add_row(
            one.label if one.label != before else "",
            one.method,
            number(one.operator_applications, ".0f"),
            f"{one.true_error:.1e}",
            number(one.bound, ".1e", "nothing"),
        )
        before = one.label
    return made


def by_model(answers: Sequence[Answer]) -> Table:
    """The certified answers, model by model."""
    made = new_table(
        "bound over true error of the certified answers; not certified: a "
        f"bound above 1; missed: above {WANTED:.0%}",
        (
            "model",
            "answers",
            "median",
            "worst",
            "violated",
            "not certified",
            "missed",
        ),
    )
    for one in certified_models(answers):
        made.add_row(
            one.model,
            str(one.answers),
            f"{one.median:.3g}",
            f"{one.worst:.3g}",
            f"{one.violated:.1%}",
            f"{one.not_certified:.1%}",
            f"{one.missed:.1%}",
        )
    return made
