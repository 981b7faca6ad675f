"""One line per method."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from experiments.studies.deblurring.scores import DeblurringLine
from experiments.studies.shared.tables import new_table


def of_scores(lines: Sequence[DeblurringLine]) -> Table:
    """Means over the test images, and the number that was tuned."""
    made = new_table("", ("method", "tuned number", "PSNR dB", "SSIM"))
    for line in lines:
        made.add_row(
            line.method,
            f"{line.tuned:.3g}" if line.tuned else "",
            f"{line.psnr:.2f}",
            f"{line.ssim:.4f}",
        )
    return made
