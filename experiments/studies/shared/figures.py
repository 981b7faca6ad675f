"""What the figures of several studies are made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from piggyback.app.report.figures import tidy

BLACK = "#222222"
Row = Mapping[str, Any]
"""A line of a table, as it is written to the file of results."""


def panel() -> tuple[Figure, Axes]:
    """A figure with one tidy panel."""
    figure = Figure(figsize=(7, 4.6), layout="constrained")
    axis = figure.subplots()
    tidy(axis)
    return figure, axis
