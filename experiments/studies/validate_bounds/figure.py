"""Errors and bounds over operator applications, and a histogram of their
ratios."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.studies.shared.figures import BLACK, Row, panel
from experiments.studies.shared.instances import LINEAR
from experiments.studies.validate_bounds.checks import BoundCheck
from experiments.studies.validate_bounds.summary import in_window
from piggyback.app.files.outputs import Output
from piggyback.app.report.figures import BLUE, GREEN, GREY, ORANGE, save

FIGURES = ("bounds.png", "effectivities.png", "corrected_loss.png")


def draw(checks: Sequence[BoundCheck], places: Sequence[Output]) -> None:
    """The three ``FIGURES``, each to its place."""
    curve = [
        one.row()
        for one in sorted(checks, key=lambda one: one.operator_applications)
        if _is_shown(one)
    ]
    bounds, effectivities, losses = places
    draw_errors(curve, bounds)
    draw_effectivities([one.row() for one in in_window(checks)], effectivities)
    draw_losses(curve, losses)


def _is_shown(one: BoundCheck) -> bool:
    """Whether a pair is a point of the curves: the trained linear model in
    float64, down to the smallest errors."""
    shown = one.problem == f"{LINEAR}/denoise" and one.own and one.image == 0
    return shown and one.method == "implicit" and one.dtype == "float64"


def draw_errors(rows: Sequence[Row], place: Output) -> None:
    """Relative gradient error and what is said about it, over operator
    applications; ``rows`` in their order."""
    curves = (
        ("worst_case", "worst case", GREY, ":"),
        ("plain_local", "local bound of the pair as it is", ORANGE, "--"),
        ("local", "certified bound", ORANGE, "-"),
        ("true_error", "true error", BLACK, "-"),
        ("estimate", "estimate", BLUE, ":"),
    )
    figure, axis = _with_curves(rows, curves)
    axis.set_ylabel("relative error of the gradient")
    axis.set_title("Error of the hypergradient and its bounds", fontsize=11)
    axis.legend(frameon=False, fontsize=9)
    save(figure, place)


def draw_losses(rows: Sequence[Row], place: Output) -> None:
    """Error of the plain and of the corrected upper loss, with the certified
    radius, over operator applications."""
    radius = "corrected loss, certified radius"
    curves = (
        ("loss_error", "plain loss, true error", GREY, "-"),
        ("corrected_loss_bound", radius, ORANGE, "--"),
        ("corrected_loss_error", "corrected loss, true error", BLUE, "-"),
    )
    figure, axis = _with_curves(rows, curves)
    axis.set_ylabel("error of the upper loss")
    axis.set_title("Plain and corrected loss", fontsize=11)
    axis.legend(frameon=False, fontsize=9)
    save(figure, place)


def _with_curves(
    rows: Sequence[Row], curves: Sequence[tuple[str, str, str, str]]
) -> tuple[Figure, Axes]:
    """A panel with one curve for each ``(column, label, colour, line)``."""
    figure, axis = panel()
    for name, label, colour, line in curves:
        _add_curve(axis, rows, name, label, colour, line)
    return figure, axis


def draw_effectivities(rows: Sequence[Row], place: Output) -> None:
    """Histogram of bound, and of estimate, over true error."""
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
    figure, axis = panel()
    edges = _decades(list(ratios.values()))
    for name, label, colour in curves:
        axis.hist(
            ratios[name], bins=edges, color=colour, alpha=0.65, label=label
        )
    axis.axvline(1.0, color=BLACK, linewidth=1)
    axis.set_xscale("log")
    axis.set_xlabel("ratio to the true error")
    axis.set_ylabel("checks")
    axis.set_title(
        f"Ratio to the true error in {len(rows)} checks", fontsize=11
    )
    axis.legend(frameon=False, fontsize=9)
    save(figure, place)


def _decades(samples: Sequence[np.ndarray]) -> list[float]:
    """Edges of ten bins per decade, over all finite numbers."""
    parts = [values[np.isfinite(values)] for values in samples]
    finite = np.concatenate(parts)
    low = -1
    high = 1
    if finite.size:
        low = math.floor(math.log10(finite.min()))
        high = math.ceil(math.log10(finite.max()))
    # numbers that are all equal need a decade too
    high = max(high, low + 1)
    return np.logspace(low, high, 10 * (high - low) + 1).tolist()


def _add_curve(
    axis: Axes,
    rows: Sequence[Row],
    name: str,
    label: str,
    colour: str,
    line: str,
) -> None:
    x = np.array([float(row["operator_applications"]) for row in rows])
    values = np.array([float(row[name]) for row in rows])
    # what a logarithmic axis cannot show leaves a gap
    shown = np.isfinite(values) & (values > 0)
    axis.plot(
        x,
        np.where(shown, values, np.nan),
        color=colour,
        linestyle=line,
        linewidth=1.4,
        marker=".",
        markersize=5,
        label=label,
    )
    axis.set_xlabel("operator applications")
    if shown.any():
        axis.set_yscale("log")
