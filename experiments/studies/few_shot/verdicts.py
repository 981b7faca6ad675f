"""Whether a rule beats the plain ways."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.studies.few_shot.ways import (
    ORACLE,
    PLAIN,
    AdaptationRow,
)


def verdicts(rows: Sequence[AdaptationRow]) -> list[str]:
    """For every rule, whether it beats the best of the plain ways by more than
    the spread of the draws, and its cost."""
    plain = [row for row in rows if row.method in PLAIN]
    best = max(plain, key=lambda row: row.after)
    lines = []
    for row in rows:
        if row.method in (*PLAIN, "unadapted", ORACLE):
            continue
        gain = row.after - best.after
        # another draw of the support patches would move either by this much
        noise = max(row.spread, best.spread)
        word = "helps" if gain > noise else "does not help"
        cost = row.operator_applications / best.operator_applications
        lines.append(
            f"{row.method} {word}: {gain:+.2f} dB against {best.method} "
            f"(spread {noise:.2f}), {cost:.0%} of its cost"
        )
    return lines
