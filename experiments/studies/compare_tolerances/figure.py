"""The figure of ``experiments.studies.compare_tolerances``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from piggyback.app.files.outputs import Output
from piggyback.app.report.figures import BLUE, GREEN, GREY, ORANGE, save, tidy

Run = dict[str, Any]


def training_without_tuning(runs: Sequence[Run], path: Path | Output) -> None:
    """Per task, a column: held-out loss over pairs; tolerances of ``auto``; its
    certified gradient error beside the noise."""
    tasks = list(dict.fromkeys(str(run["task"]) for run in runs))
    figure = Figure(figsize=(3.6 * len(tasks), 8.5), layout="constrained")
    axes = figure.subplots(3, len(tasks), squeeze=False)
    for column, task in enumerate(tasks):
        chosen = [run for run in runs if run["task"] == task]
        _losses(axes[0, column], chosen)
        axes[0, column].set_title(task, fontsize=11)
        auto = next(run for run in chosen if run["method"] == "auto")
        _driven(
            axes[1, column],
            auto,
            {
                "lower": ("of x, grey values", BLUE),
                "adjoint": ("of P, relative", ORANGE),
            },
        )
        _driven(
            axes[2, column],
            auto,
            {
                "error": ("certified error", ORANGE),
                "noise": ("mini-batch noise", GREY),
            },
        )
        axes[2, column].axhline(1.0, color=GREY, linewidth=0.6)
        axes[2, column].set_xlabel("steps")
    for row, label in enumerate(
        ("held-out loss", "tolerances (auto)", "gradient (auto), relative")
    ):
        axes[row, 0].set_ylabel(label)
    save(figure, path)


def _losses(axis: Axes, runs: Sequence[Run]) -> None:
    fixed = [
        run
        for run in runs
        if "," in str(run["method"]) and "auto" not in str(run["method"])
    ]
    shades = np.linspace(0.8, 0.2, max(len(fixed), 1))
    for run, shade in zip(fixed, shades, strict=True):
        axis.plot(
            *_curve(run, "loss"),
            color=(shade,) * 3,
            linewidth=1.0,
            label=run["method"],
        )
    for run in runs:
        if run["method"] == "auto":
            axis.plot(
                *_curve(run, "loss"),
                color=GREEN,
                linewidth=2.0,
                marker=".",
                label="auto",
            )
    axis.set_xlabel("operator pairs")
    axis.legend(frameon=False, fontsize=7)
    tidy(axis)


def _curve(run: Run, name: str) -> tuple[list[float], list[float]]:
    return [point["pairs"] for point in run["points"]], [
        point[name] for point in run["points"]
    ]


def _driven(axis: Axes, run: Run, curves: dict[str, tuple[str, str]]) -> None:
    steps = [point["steps"] for point in run["points"]]
    for name, (label, colour) in curves.items():
        values = np.array([point[name] for point in run["points"]], dtype=float)
        axis.plot(
            steps,
            np.where(np.isfinite(values), values, np.nan),
            color=colour,
            marker=".",
            label=label,
        )
    axis.set_yscale("log")
    axis.legend(frameon=False, fontsize=8)
    tidy(axis)
