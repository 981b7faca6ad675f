"""What the rows come to: ratios of bound and true error, wrong statements,
cases in which nothing was certified."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from experiments.studies.validate_bounds.checks import BoundCheck
from experiments.studies.validate_bounds.costs import CertificateCost
from piggyback.app.runs.folder import Json

WINDOW = (1e-6, 1e-1)
"""True errors, relative, for which the ratio of bound and true error is summed
up."""
CERTIFYING = 1.0
"""Relative errors up to which a bound says something about a gradient: a larger
one leaves its direction open."""


@dataclass(frozen=True)
class BoundQuality:
    """How one kind of bound did for one model.

    ``bound``: ``local`` (the assessment, as a user gets it) or ``plain_local``
    (the pair as the solve left it). ``median`` and ``worst``: of bound over
    true error, where the true error is at least ``WINDOW[0]`` (below, rounding
    has the say); not a number without any. ``violated``: share of the checks
    in which it is less than the true error, which has to be 0;
    ``not_certified``: share in which it is above ``CERTIFYING``.
    """

    model: str
    dtype: str
    bound: str
    checks: int
    median: float
    worst: float
    violated: float
    not_certified: float


def qualities(checks: Sequence[BoundCheck]) -> list[BoundQuality]:
    """Two rows, one per kind of bound, for every model and precision of the
    solves, in the order of appearance."""
    groups: dict[tuple[str, str], list[BoundCheck]] = {}
    for one in checks:
        model = one.problem.partition("/")[0]
        groups.setdefault((model, one.dtype), []).append(one)
    return [
        quality(model, dtype, bound, group)
        for (model, dtype), group in groups.items()
        for bound in ("local", "plain_local")
    ]


def quality(
    model: str, dtype: str, bound: str, group: Sequence[BoundCheck]
) -> BoundQuality:
    """Of one kind of bound in one group of checks, which must not be empty."""
    ratios = [
        getattr(one, bound) / one.true_error
        for one in group
        if one.true_error >= WINDOW[0]
    ]
    violated = sum(bound in one.violated for one in group)
    # written so that a bound that is not a number certifies nothing
    vacuous = sum(not getattr(one, bound) <= CERTIFYING for one in group)
    return BoundQuality(
        model=model,
        dtype=dtype,
        bound=bound,
        checks=len(group),
        median=median(ratios),
        worst=max(ratios, default=math.nan),
        violated=violated / len(group),
        not_certified=vacuous / len(group),
    )


def summary(
    checks: Sequence[BoundCheck],
    costs: Sequence[CertificateCost],
    residuals: Sequence[float],
) -> dict[str, Json]:
    """What the rows come to.

    Args:
        checks: all pairs.
        costs: of certificates.
        residuals: of the references, relative.

    Returns:
        Figures by name; ratios over the checks whose true error lies in
        ``WINDOW``, not a number without any. ``models``: ``BoundQuality`` of
        every model.
    """
    within = in_window(checks)
    local = effectivity(within, "local")
    plain = effectivity(within, "plain_local")
    estimate = effectivity(within, "estimate")
    worst = effectivity(within, "worst_case")
    assessments = [
        one.assessment_applications / one.operator_applications
        for one in checks
    ]
    return {
        "violations": sum(len(one.violated) for one in checks),
        "checks": len(checks),
        "effectivity_checks": len(within),
        "effectivity_median": median(local),
        "effectivity_p95": percentile(local),
        "estimate_low": min(estimate, default=math.nan),
        "estimate_high": max(estimate, default=math.nan),
        "plain_effectivity_median": median(plain),
        "plain_effectivity_p95": percentile(plain),
        "worst_case_effectivity_median": median(worst),
        "assessment_overhead_median": median(assessments),
        "reference_residual": max(residuals, default=math.nan),
        "certification_overhead": cost_ratio(costs, "piggyback"),
        "certification_overhead_implicit": cost_ratio(costs, "implicit"),
        "models": [asdict(one) for one in qualities(checks)],
    }


def in_window(checks: Sequence[BoundCheck]) -> list[BoundCheck]:
    """Those whose true error lies in ``WINDOW``."""
    low, high = WINDOW
    return [one for one in checks if low <= one.true_error <= high]


def effectivity(checks: Sequence[BoundCheck], name: str) -> list[float]:
    """A bound or estimate over the true error, check by check."""
    return [getattr(one, name) / one.true_error for one in checks]


def cost_ratio(costs: Sequence[CertificateCost], method: str) -> float:
    """Median over the problems of certified over plain applications."""
    return median([one.ratio for one in costs if one.method == method])


def median(values: Sequence[float]) -> float:
    """Not a number without values."""
    return float(np.median(values)) if values else math.nan


def percentile(values: Sequence[float]) -> float:
    """The smallest value that at least 95 % of them do not exceed; not a number
    without values."""
    if not values:
        return math.nan
    return float(np.quantile(values, 0.95, method="inverted_cdf"))
