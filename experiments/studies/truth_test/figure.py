"""True errors of every way, instance by instance, as bars."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.studies.shared.figures import BLACK, Row
from piggyback.app.files.outputs import Output
from piggyback.app.report.figures import BLUE, GREEN, ORANGE, save, tidy

COLOURS = (ORANGE, "#c6d7ea", "#8fb4d9", "#5a8fc4", BLUE, GREEN)
GROUP = 0.84
"""Width of all bars of one instance; the instances are 1 apart."""


def truth_bars(rows: Sequence[Row], wanted: float, place: Output) -> None:
    """One group of bars per instance; a line for what was ``wanted``, ticks for
    bounds.

    Errors that are not known leave a gap.
    """
    groups = list(dict.fromkeys(str(row["label"]) for row in rows))
    methods = list(dict.fromkeys(str(row["method"]) for row in rows))
    width = max(7.0, 1.35 * len(groups) + 1.5)
    figure = Figure(figsize=(width, 4.8), layout="constrained")
    axis = figure.subplots()
    tidy(axis)
    axis.set_yscale("log")
    for index, method in enumerate(methods):
        own = [row for row in rows if row["method"] == method]
        _add_bars(axis, own, groups, index, len(methods))
    axis.set_axisbelow(True)
    axis.set_xlim(-0.6, len(groups) - 0.4)
    axis.axhline(wanted, color=BLACK, linewidth=1, linestyle=":")
    labels = [label.replace(", ", "\n").replace("/", "\n") for label in groups]
    axis.set_xticks(range(len(groups)), labels, fontsize=8)
    axis.set_ylabel("relative error of the gradient")
    axis.set_title(
        f"True error when {wanted:.0%} is wanted (dotted); dashes: certified bounds",
        fontsize=11,
    )
    figure.legend(
        *axis.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=len(methods),
        fontsize=8,
        frameon=False,
    )
    save(figure, place)


def _add_bars(
    axis: Axes,
    rows: Sequence[Row],
    groups: Sequence[str],
    index: int,
    methods: int,
) -> None:
    """The bars of one method, number ``index`` of so many."""
    # an error of 0, or one that is not a number, has no logarithm
    shown = [row for row in rows if float(row["true_error"]) > 0]
    width = GROUP / methods
    offset = (index - (methods - 1) / 2) * width
    positions = [groups.index(str(row["label"])) + offset for row in shown]
    axis.bar(
        positions,
        [float(row["true_error"]) for row in shown],
        width=0.92 * width,
        color=COLOURS[index % len(COLOURS)],
        label=str(rows[0]["method"]),
    )
    bounds = [float(row["bound"]) for row in shown]
    axis.scatter(positions, bounds, marker="_", color=BLACK, s=60, zorder=3)
