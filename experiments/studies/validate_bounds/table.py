"""The tables of the study: by model, by problem, and what certificates cost."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.table import Table

from experiments.studies.shared.tables import new_table, number
from experiments.studies.validate_bounds.checks import BoundCheck
from experiments.studies.validate_bounds.costs import WANTED, CertificateCost
from experiments.studies.validate_bounds.summary import (
    effectivity,
    median,
    qualities,
)

BOUNDS = {"local": "assessed", "plain_local": "of the pair"}
"""Kinds of bounds, in words."""


def by_model(checks: Sequence[BoundCheck]) -> Table:
    """How sharp the bounds are on each model, how often they are wrong (never),
    and how often they certify nothing."""
    columns = (
        "model",
        "solved in",
        "bound",
        "checks",
        "median",
        "worst",
        "violated",
        "not certified",
    )
    made = new_table(
        "bound over true error of the gradient; violated: less than it; not "
        "certified: a bound above 1",
        columns,
        3,
    )
    for one in qualities(checks):
        made.add_row(
            one.model,
            one.dtype,
            BOUNDS[one.bound],
            str(one.checks),
            _ratio(one.median),
            _ratio(one.worst),
            f"{one.violated:.1%}",
            f"{one.not_certified:.1%}",
        )
    return made


def _ratio(value: float) -> str:
    # powers of ten where digits say nothing
    return number(value, ".2f" if value < 100 else ".0e", "–")


def by_problem(checks: Sequence[BoundCheck]) -> Table:
    """One line per problem and potential."""
    columns = (
        "problem",
        "potential",
        "error",
        "certified",
        "plain",
        "worst",
        "wrong",
    )
    made = new_table(
        "largest true error, medians of bound / true error, wrong statements",
        columns,
        2,
    )
    for (problem, potential, smoothing), group in grouped(checks).items():
        local = median(effectivity(group, "local"))
        plain = median(effectivity(group, "plain_local"))
        worst = median(effectivity(group, "worst_case"))
        made.add_row(
            problem,
            f"{potential} {smoothing:.2g}",
            f"{max(one.true_error for one in group):.0e}",
            f"{local:.2f}",
            f"{plain:.0e}",
            f"{worst:.0e}" if math.isfinite(worst) else "–",
            str(sum(len(one.violated) for one in group)),
        )
    return made


def of_costs(costs: Sequence[CertificateCost]) -> Table:
    """Certified against plain, one line per problem and method."""
    columns = (
        "problem",
        "method",
        "certified",
        "plain",
        "ratio",
        "bound",
        "its true error",
    )
    made = new_table(
        f"operator applications until the relative error is {WANTED:.0%}",
        columns,
        2,
    )
    for one in costs:
        made.add_row(
            one.problem,
            one.method,
            f"{one.certified_applications:.0f}",
            f"{one.plain_applications:.0f}",
            f"{one.ratio:.2f}",
            f"{one.certified_error:.1e}",
            f"{one.certified_true_error:.1e}",
        )
    return made


def grouped(
    checks: Sequence[BoundCheck],
) -> dict[tuple[str, str, float], list[BoundCheck]]:
    """By problem, potential and smoothing, in the order of appearance."""
    groups: dict[tuple[str, str, float], list[BoundCheck]] = {}
    for one in checks:
        key = (one.problem, one.potential, one.smoothing)
        groups.setdefault(key, []).append(one)
    return groups
