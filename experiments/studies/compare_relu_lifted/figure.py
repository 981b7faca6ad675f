"""Energy over seconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from experiments.studies.compare_relu_lifted.race import (
    RacePoint,
    curves,
)
from piggyback.app.files.outputs import Output
from piggyback.app.report.figures import save, tidy


def draw(points: Sequence[RacePoint], path: Path | Output) -> None:
    """Energy gap against seconds, one line per method and smoothing."""
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axis = figure.subplots()
    grouped = curves(points)
    # a colour per method, a line style per smoothing
    names = list(dict.fromkeys(method for method, _ in grouped))
    for (method, smoothing), curve in grouped.items():
        shades = sorted({s for name, s in grouped if name == method})
        style = ("-", "--", ":")[shades.index(smoothing)]
        label = f"{method}, {smoothing:g}" if smoothing else method
        # below this the reference itself is uncertain
        gaps = [max(point.gap, 1e-7) for point in curve]
        colour = f"C{names.index(method)}"
        axis.plot(
            [point.seconds for point in curve],
            gaps,
            style,
            color=colour,
            linewidth=1.3,
            label=label,
        )
    axis.set(
        xscale="log",
        yscale="log",
        xlabel="seconds, one core",
        ylabel="energy above the reference / at the start",
    )
    tidy(axis)
    axis.legend(
        frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5)
    )
    save(figure, path)
