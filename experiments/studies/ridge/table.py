"""One line per data term."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from experiments.studies.ridge.effects import RidgeRow
from experiments.studies.shared.tables import new_table


def of_terms(rows: Sequence[RidgeRow]) -> Table:
    """PSNR in dB of the observation, of the data term alone and of the
    regularizer; then bounds over true errors."""
    columns = (
        "data term",
        "degraded",
        "alone",
        "learned",
        "weights ×",
        "distance",
        "in the data",
        "gradient",
        "assessed",
    )
    made = new_table("", columns)
    for row in rows:
        made.add_row(
            row.term,
            f"{row.psnr_degraded:.2f}",
            f"{row.psnr_alone:.2f}",
            f"{row.psnr:.2f}",
            f"{row.factor:g}",
            f"{row.distance:.3g}",
            f"{row.data_distance:.3g}",
            f"{row.gradient:.3g}",
            f"{row.assessed:.3g}",
        )
    return made
