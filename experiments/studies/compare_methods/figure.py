"""Figures of ``experiments.studies.compare_methods``, as PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.studies.compare_methods.comparison import (
    MethodRow,
    MethodTrainingRow,
)
from piggyback.app.files.outputs import Output
from piggyback.app.report.figures import GREY, save, tidy

MARKERS = {"certified": "o", "estimate": "s", "direction": "x"}


def errors(rows: Sequence[MethodRow], path: Path | Output) -> None:
    """Relative error over operator applications, one panel per problem; a grey
    bar reaches up to what is certified."""
    problems = list(dict.fromkeys(row.problem for row in rows))
    names = list(dict.fromkeys(row.method for row in rows))
    figure, axes = _panels(len(problems))
    for axis, problem in zip(axes, problems, strict=True):
        for row in (row for row in rows if row.problem == problem):
            where = row.operator_applications
            error = max(row.relative_error, 1e-16)
            if row.bound is not None:
                axis.plot(
                    [where, where],
                    [error, row.bound],
                    color=GREY,
                    linewidth=2,
                    alpha=0.5,
                )
            # rings around dots, where two methods agree
            size = 5 + 5 * (names.index(row.method) % 2)
            axis.plot(
                where,
                error,
                MARKERS[row.guarantee],
                label=row.method,
                color=_colour(names, row.method),
                markersize=size,
                fillstyle="none",
                markeredgewidth=1.8,
            )
        axis.set(
            xscale="log",
            yscale="log",
            title=problem,
            xlabel="operator applications",
        )
        tidy(axis)
    axes[0].set_ylabel("relative error of the gradient")
    _add_legend(figure, axes[0])
    save(figure, path)


def training(rows: Sequence[MethodTrainingRow], path: Path | Output) -> None:
    """Exact upper loss, over that of the start, against operator applications;
    one panel per problem."""
    problems = list(dict.fromkeys(row.problem for row in rows))
    names = list(dict.fromkeys(row.method for row in rows))
    figure, axes = _panels(len(problems))
    for axis, problem in zip(axes, problems, strict=True):
        for name in names:
            curve = [
                row
                for row in rows
                if row.problem == problem and row.method == name
            ]
            spent = [row.operator_applications for row in curve[1:]]
            losses = [row.upper_loss / curve[0].upper_loss for row in curve[1:]]
            axis.plot(
                spent,
                losses,
                color=_colour(names, name),
                linewidth=1.2,
                marker=".",
                label=name,
            )
        axis.axhline(1.0, color=GREY, linewidth=0.8)
        axis.set(xscale="log", title=problem, xlabel="operator applications")
        tidy(axis)
    axes[0].set_ylabel("upper loss over that of the start")
    _add_legend(figure, axes[0])
    save(figure, path)


def _panels(count: int) -> tuple[Figure, Sequence[Axes]]:
    """A figure with one panel per problem, side by side."""
    figure = Figure(figsize=(4.6 * count, 4.4), layout="constrained")
    return figure, figure.subplots(1, count, squeeze=False)[0]


def _add_legend(figure: Figure, axis: Axes) -> None:
    """What one panel shows, below all of them."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=7,
        frameon=False,
        fontsize=8,
    )


def _colour(
    names: Sequence[str], name: str
) -> tuple[float, float, float, float]:
    return colormaps["tab20"](names.index(name) % 20)
