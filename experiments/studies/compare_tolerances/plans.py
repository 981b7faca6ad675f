"""What drives each run of a task, and where it starts."""

from __future__ import annotations

from piggyback.problems.pair import Accuracy

FIXED = (
    Accuracy(4e-2, 0.8),
    Accuracy(1.2e-2, 0.6),
    Accuracy(4e-3, 0.4),
    Accuracy(1e-3, 0.1),
    Accuracy(3e-4, 0.03),
)
"""RMS error of ``x`` in grey values, and relative residual of the adjoint."""

START, RATE = Accuracy(4e-3, 0.4), 8e-3
"""The pair and the step size that were tuned by hand for denoising at sigma 25.
"""

COARSEST = Accuracy(0.05, 0.8)
"""The loosest tolerances that a disturbed run starts from."""

AUTO, AUTO_RATE_GIVEN = "auto", "auto, rate given"

DISTURBED = {
    "tolerances / 10": (0.1, 1.0),
    "tolerances x 10": (10.0, 1.0),
    "rate / 10": (1.0, 0.1),
    "rate x 10": (1.0, 10.0),
}
"""Factors of the tolerances and of the rate that ``auto`` starts from."""


def name_of(accuracy: Accuracy) -> str:
    """What a run at fixed tolerances is called."""
    return f"{accuracy.lower:g}, {accuracy.adjoint:g}"


def fixed_names() -> list[str]:
    """Runs whose tolerances never change."""
    return [name_of(accuracy) for accuracy in FIXED]


def plans() -> list[tuple[str, Accuracy, float]]:
    """Method, tolerances and rate to start from, of every run of a task."""
    found = [(name_of(accuracy), accuracy, RATE) for accuracy in FIXED]
    found += [(AUTO, START, RATE), (AUTO_RATE_GIVEN, START, RATE)]
    for label, (tolerance, rate) in DISTURBED.items():
        # beyond these a pair says nothing about the gradient
        lower = min(START.lower * tolerance, COARSEST.lower)
        adjoint = min(START.adjoint * tolerance, COARSEST.adjoint)
        disturbed = Accuracy(lower, adjoint)
        found.append((label, disturbed, RATE * rate))
    return found
