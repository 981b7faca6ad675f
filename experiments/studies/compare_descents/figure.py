"""True training loss over what it took, one curve per method."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.studies.shared.figures import Row
from piggyback.app.files.outputs import Output
from piggyback.app.report.figures import BLUE, GREEN, ORANGE, save, tidy

COLOURS = {"adaptive": BLUE, "worst-case bounds": ORANGE, "MAID": GREEN}
"""Of the methods that choose their tolerances; the others are grey."""


def descents(curves: Sequence[Row], place: Output) -> None:
    """True training loss over operator applications per image: one panel per
    problem, one curve per method.

    Ours in front, the certified and the literature's adaptive ones beside it,
    fixed tolerances from light to dark.
    """
    problems = list(dict.fromkeys(str(curve["problem"]) for curve in curves))
    figure = Figure(figsize=(4.6 * len(problems), 4.8), layout="constrained")
    axes = figure.subplots(1, len(problems), squeeze=False)[0]
    for axis, problem in zip(axes, problems, strict=True):
        _draw_problem(
            axis, [curve for curve in curves if curve["problem"] == problem]
        )
        tidy(axis)
        axis.set_yscale("log")
        axis.set_title(problem, fontsize=11)
        axis.set_xlabel("operator applications per image")
    axes[0].set_ylabel("training loss above the best")
    figure.legend(
        *axes[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=5,
        fontsize=8,
        frameon=False,
    )
    save(figure, place)


def _draw_problem(axis: Axes, curves: Sequence[Row]) -> None:
    """What each method is above the best loss that any of them reached."""
    losses = [
        float(point["loss"]) for curve in curves for point in curve["points"]
    ]
    best = min(losses)
    shades = iter(np.linspace(0.75, 0.1, len(curves)))
    for curve in curves:
        points = curve["points"]
        gaps = np.array([float(point["loss"]) - best for point in points])
        named = COLOURS.get(str(curve["method"]))
        colour = named if named is not None else (next(shades),) * 3
        axis.plot(
            [float(point["applications"]) for point in points],
            # the best point itself has no logarithm
            np.where(gaps > 0, gaps, np.nan),
            label=curve["method"],
            color=colour,
            linewidth=2.0 if named else 1.0,
            marker="." if named else None,
            zorder=3 if named else 2,
        )
