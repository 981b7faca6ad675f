"""Figures of ``experiments.studies.validate_bounds`` and
``experiments.studies.truth_test``, as PNG files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from piggyback.app.files.outputs import Output
from piggyback.app.report.figures import BLUE, GREEN, GREY, ORANGE, save, tidy

BLACK = "#222222"
BAR_COLOURS = (ORANGE, "#c6d7ea", "#8fb4d9", "#5a8fc4", BLUE, GREEN)
Row = Mapping[str, Any]


def errors_and_bounds(rows: Sequence[Row], path: Path | Output) -> None:
    """Relative gradient error and what is said about it, over operator
    applications; ``rows`` in their order."""
    curves = (
        ("worst_case", "worst case", GREY, ":"),
        ("plain_local", "local bound of the pair as it is", ORANGE, "--"),
        ("local", "certified bound", ORANGE, "-"),
        ("true_error", "true error", BLACK, "-"),
        ("estimate", "estimate", BLUE, ":"),
    )
    _curves(
        rows,
        curves,
        "relative error of the gradient",
        "Error of the hypergradient and its bounds",
        path,
    )


def losses(rows: Sequence[Row], path: Path | Output) -> None:
    """Error of the plain and of the corrected upper loss, with the certified
    radius, over operator applications."""
    curves = (
        ("loss_error", "plain loss, true error", GREY, "-"),
        (
            "corrected_loss_bound",
            "corrected loss, certified radius",
            ORANGE,
            "--",
        ),
        ("corrected_loss_error", "corrected loss, true error", BLUE, "-"),
    )
    _curves(
        rows,
        curves,
        "error of the upper loss",
        "Plain and corrected loss",
        path,
    )


def effectivities(rows: Sequence[Row], path: Path | Output) -> None:
    """Histogram of bound, and of estimate, over true error."""
    figure, axis = _panel()
    curves = (
        ("plain_local", "local bound of the pair as it is", ORANGE),
        ("local", "certified bound", GREEN),
        ("estimate", "estimate", BLUE),
    )
    ratios = {
        name: np.array(
            [float(row[name]) / float(row["true_error"]) for row in rows]
        )
        for name, *_ in curves
    }
    finite = np.concatenate(
        [values[np.isfinite(values)] for values in ratios.values()]
    )
    low, high = (
        (
            math.floor(math.log10(finite.min())),
            math.ceil(math.log10(finite.max())),
        )
        if finite.size
        else (-1, 1)
    )
    edges = np.logspace(low, max(high, low + 1), 10 * max(high - low, 1) + 1)
    for name, label, colour in curves:
        axis.hist(
            ratios[name],
            bins=edges.tolist(),
            color=colour,
            alpha=0.65,
            label=label,
        )
    axis.axvline(1.0, color=BLACK, linewidth=1)
    axis.set_xscale("log")
    axis.set_xlabel("ratio to the true error")
    axis.set_ylabel("checks")
    axis.set_title(
        f"Ratio to the true error in {len(rows)} checks", fontsize=11
    )
    axis.legend(frameon=False, fontsize=9)
    save(figure, path)


def truth_bars(rows: Sequence[Row], wanted: float, path: Path | Output) -> None:
    """True errors of every method, one group of bars per instance; a line for
    what was ``wanted``, ticks for bounds.

    Errors that are not known leave a gap.
    """
    groups = list(dict.fromkeys(str(row["label"]) for row in rows))
    methods = list(dict.fromkeys(str(row["method"]) for row in rows))
    figure = Figure(
        figsize=(max(7.0, 1.35 * len(groups) + 1.5), 4.8), layout="constrained"
    )
    axis = figure.subplots()
    tidy(axis)
    axis.set_yscale("log")
    width = 0.84 / len(methods)
    for index, method in enumerate(methods):
        chosen = [
            row
            for row in rows
            if row["method"] == method and float(row["true_error"]) > 0
        ]
        places = [
            groups.index(str(row["label"]))
            + (index - (len(methods) - 1) / 2) * width
            for row in chosen
        ]
        colour = BAR_COLOURS[index % len(BAR_COLOURS)]
        axis.bar(
            places,
            [float(row["true_error"]) for row in chosen],
            width=0.92 * width,
            color=colour,
            label=method,
        )
        bounds = [float(row["bound"]) for row in chosen]
        axis.scatter(places, bounds, marker="_", color=BLACK, s=60, zorder=3)
    axis.set_axisbelow(True)
    axis.set_xlim(-0.6, len(groups) - 0.4)
    axis.axhline(wanted, color=BLACK, linewidth=1, linestyle=":")
    axis.set_xticks(
        range(len(groups)),
        [label.replace(", ", "\n").replace("/", "\n") for label in groups],
        fontsize=8,
    )
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
    save(figure, path)


def _panel() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7, 4.6), layout="constrained")
    axis = figure.subplots()
    tidy(axis)
    return figure, axis


def _curves(
    rows: Sequence[Row],
    curves: Sequence[tuple[str, str, str, str]],
    quantity: str,
    title: str,
    path: Path | Output,
) -> None:
    """Columns of the rows over operator applications: name, label, colour and
    line style of each."""
    figure, axis = _panel()
    for name, label, colour, line in curves:
        _curve(axis, rows, name, label, colour, line)
    axis.set_ylabel(quantity)
    axis.set_title(title, fontsize=11)
    axis.legend(frameon=False, fontsize=9)
    save(figure, path)


def _curve(
    axis: Axes,
    rows: Sequence[Row],
    name: str,
    label: str,
    colour: str,
    line: str,
) -> None:
    x = np.array([float(row["operator_applications"]) for row in rows])
    values = np.array([float(row[name]) for row in rows])
    values = np.where(np.isfinite(values) & (values > 0), values, np.nan)
    axis.plot(
        x,
        values,
        color=colour,
        linestyle=line,
        linewidth=1.4,
        marker=".",
        markersize=5,
        label=label,
    )
    axis.set_xlabel("operator applications")
    if np.isfinite(values).any():
        axis.set_yscale("log")


def descents(curves: Sequence[Row], path: Path | Output) -> None:
    """True training loss over operator applications per image: one panel per
    problem, one curve per method.

    Ours in front, the certified and the literature's adaptive ones beside it,
    fixed tolerances from light to dark.
    """
    problems = list(dict.fromkeys(str(curve["problem"]) for curve in curves))
    figure = Figure(figsize=(4.6 * len(problems), 4.8), layout="constrained")
    axes = figure.subplots(1, len(problems), squeeze=False)[0]
    for axis, problem in zip(axes, problems, strict=True):
        chosen = [curve for curve in curves if curve["problem"] == problem]
        best = min(
            float(point["loss"])
            for curve in chosen
            for point in curve["points"]
        )
        shades = iter(np.linspace(0.75, 0.1, len(chosen)))
        for curve in chosen:
            points = curve["points"]
            gaps = np.array(
                [max(float(point["loss"]) - best, 0.0) for point in points]
            )
            named = _METHOD_COLOURS.get(str(curve["method"]))
            colour = named if named is not None else (next(shades),) * 3
            axis.plot(
                [float(point["applications"]) for point in points],
                np.where(gaps > 0, gaps, np.nan),
                label=curve["method"],
                color=colour,
                linewidth=2.0 if named else 1.0,
                marker="." if named else None,
                zorder=3 if named else 2,
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
    save(figure, path)


_METHOD_COLOURS = {"adaptive": BLUE, "worst-case bounds": ORANGE, "MAID": GREEN}
