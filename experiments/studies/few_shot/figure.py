"""PSNR before and after adaptation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from experiments.studies.few_shot.ways import ORACLE, AdaptationRow
from piggyback.app.files.outputs import Output
from piggyback.app.report.figures import BLUE, GREY, ORANGE, save, tidy


def figure(rows: Sequence[AdaptationRow], path: Path | Output) -> None:
    """PSNR before and after adaptation, one panel per task; lines at rescaling
    and at the oracle."""
    tasks = list(dict.fromkeys(row.task for row in rows))
    drawing = Figure(figsize=(5.6 * len(tasks), 4.0), layout="constrained")
    for axis, task in zip(
        drawing.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True
    ):
        own = [row for row in rows if row.task == task]
        heights = range(len(own))[::-1]
        for height, row in zip(heights, own, strict=True):
            axis.plot(
                [row.before, row.after],
                [height, height],
                color=GREY,
                linewidth=1,
            )
            axis.plot(row.before, height, "o", color=GREY, fillstyle="none")
            axis.errorbar(
                row.after,
                height,
                xerr=row.spread,
                fmt="o",
                color=BLUE,
                capsize=3,
            )
        for name, colour in (("rescaled", ORANGE), (ORACLE, GREY)):
            axis.axvline(
                next(row.after for row in own if row.method == name),
                color=colour,
                linewidth=0.8,
            )
        axis.set_yticks(list(heights), [row.method for row in own])
        axis.set(
            title=task,
            xlabel="PSNR of the query images, dB (ring: before adaptation)",
        )
        tidy(axis)
    save(drawing, path)
