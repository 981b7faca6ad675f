"""Figures of a run, as PNG files.  Grey values lie in [0, 1]."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from torch import Tensor

from piggyback.app.files.outputs import MARK, Output
from piggyback.app.files.places import write_to
from piggyback.app.report.metrics import psnr, ssim

# images in a comparison, and height over width of the room for one: longer
# ones are shown smaller, not left out
MAXIMUM_ROWS, MAXIMUM_HEIGHT = 4, 4.0
BLUE, ORANGE, GREEN, GREY = "#1f5fa8", "#d9730d", "#2e8b57", "#8a8a8a"


@dataclass(frozen=True, eq=False)
class Comparison:
    """One image in four versions, each ``(channels, height, width)``; PSNR and
    SSIM are computed from them.

    ``tv`` is None where total variation could not be solved.
    """

    name: str
    noisy: Tensor
    tv: Tensor | None
    learned: Tensor
    truth: Tensor


def comparison(rows: Sequence[Comparison], path: Path | Output) -> None:
    """Observation, tuned TV, learned and truth side by side with PSNR and SSIM;
    at most the first four images.

    Raises ``ValueError`` if there is no image.
    """
    if not rows:
        raise ValueError("a comparison needs at least one image")
    shown = rows[:MAXIMUM_ROWS]
    heights = [
        min(row.truth.shape[-2] / row.truth.shape[-1], MAXIMUM_HEIGHT)
        for row in shown
    ]
    figure = Figure(
        figsize=(12.4, sum(3.0 * height + 0.42 for height in heights)),
        layout=ConstrainedLayoutEngine(
            w_pad=0.03, h_pad=0.03, wspace=0.0, hspace=0.0
        ),
    )
    axes = figure.subplots(len(shown), 4, squeeze=False, height_ratios=heights)
    for row, line in zip(shown, axes, strict=True):
        name = row.name.encode(errors="replace").decode()
        _picture(
            line[0],
            row.noisy,
            f"{name}: observed  {_quality(row.noisy, row.truth, clip=False)}",
        )
        if row.tv is None:
            _missing(line[1], "tuned TV: not solved")
        else:
            _picture(
                line[1], row.tv, f"tuned TV  {_quality(row.tv, row.truth)}"
            )
        _picture(
            line[2], row.learned, f"learned  {_quality(row.learned, row.truth)}"
        )
        _picture(line[3], row.truth, "truth")
    save(figure, path)


def filters(bank: Tensor, weights: Tensor, path: Path | Output) -> None:
    """Filters ``(count, channels, k, k)``, largest weight first; each on its
    own scale, blue negative, red positive.

    Filters of three channels are shown as colours around grey.
    """
    values = bank.detach().cpu().double().numpy()
    strengths = weights.detach().cpu().double().numpy()
    columns = min(8, len(values))
    lines = math.ceil(len(values) / columns)
    figure = Figure(
        figsize=(1.25 * columns + 0.3, 1.45 * lines + 0.5), layout="constrained"
    )
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, index in zip(
        axes, np.argsort(-strengths, kind="stable"), strict=False
    ):
        scaled = values[index] / max(float(np.abs(values[index]).max()), 1e-30)
        if len(scaled) == 3:
            axis.imshow(
                0.5 + 0.5 * scaled.transpose(1, 2, 0), interpolation="nearest"
            )
        else:
            axis.imshow(
                scaled[0],
                cmap="RdBu_r",
                vmin=-1,
                vmax=1,
                interpolation="nearest",
            )
        axis.set_title(f"{strengths[index]:.2g}", fontsize=9)
    figure.suptitle(
        "learned filters, each on its own scale, with their weights",
        fontsize=11,
    )
    save(figure, path)


def potentials(grid: Tensor, values: Tensor, path: Path | Output) -> None:
    """Curves ``values (count, n)`` over the filter responses ``grid (n,)``,
    coloured by their height at the end."""
    z, curves = grid.detach().cpu().numpy(), values.detach().cpu().numpy()
    figure = Figure(figsize=(7, 4.6), layout="constrained")
    axis = figure.subplots()
    shades = colormaps["viridis"](np.linspace(0, 0.9, len(curves)))
    for shade, index in zip(
        shades, np.argsort(curves[:, -1], kind="stable"), strict=True
    ):
        axis.plot(z, curves[index], color=shade, linewidth=1.3)
    axis.set_xlabel("filter response z")
    axis.set_ylabel("weighted potential λ φ(z)")
    axis.set_title(f"{len(curves)} learned potentials", fontsize=11)
    axis.set_xlim(float(z.min()), float(z.max()))
    axis.margins(y=0.02)
    tidy(axis)
    save(figure, path)


def training_curves(
    rows: Sequence[Mapping[str, float | int | str]], path: Path | Output
) -> None:
    """How a run went, over the column ``iteration``; absent or empty columns
    leave their curve out.

    Columns: ``loss``, ``loss_lower``, ``loss_upper`` (certified interval),
    ``psnr``, ``gradient_error_relative`` (certified where it is below 1; other
    values certify nothing and are left out), ``gradient_noise_relative``,
    ``lower_tolerance``, ``adjoint_tolerance``, ``step``,
    ``operator_applications`` (cumulative), and ``phase``, whose value
    "stochastic" is shaded.

    Raises ``ValueError`` if there is no row.
    """
    if not rows:
        raise ValueError("training curves need at least one row")
    table = {name: _column(rows, name) for name in ("iteration", *_COLUMNS)}
    figure = Figure(figsize=(13, 7), layout="constrained")
    axes = figure.subplots(2, 3, sharex=True)
    _loss_panel(axes[0, 0], table)
    _panel(
        axes[0, 1],
        table["iteration"],
        "PSNR of the probe, dB",
        [("", table["psnr"], BLUE)],
        logarithmic=False,
    )
    error = np.where(
        table["gradient_error_relative"] < 1,
        table["gradient_error_relative"],
        np.nan,
    )
    quality = [
        ("certified error", error, ORANGE),
        ("mini-batch noise", table["gradient_noise_relative"], GREY),
    ]
    _panel(
        axes[0, 2],
        table["iteration"],
        "hypergradient, relative to its norm",
        quality,
    )
    tolerances = [
        ("image", table["lower_tolerance"], BLUE),
        ("adjoint", table["adjoint_tolerance"], ORANGE),
    ]
    _panel(axes[1, 0], table["iteration"], "tolerances", tolerances)
    _panel(
        axes[1, 1],
        table["iteration"],
        "step size",
        [("", table["step"], GREEN)],
    )
    _panel(
        axes[1, 2],
        table["iteration"],
        "operator applications so far",
        [("", table["operator_applications"], GREY)],
    )
    stochastic = np.array([row.get("phase") == "stochastic" for row in rows])
    for axis in axes.ravel():
        _shade(axis, table["iteration"], stochastic)
    for axis in axes[1]:
        axis.set_xlabel("iteration")
    save(figure, path)


_COLUMNS = (
    "loss",
    "loss_lower",
    "loss_upper",
    "psnr",
    "gradient_error_relative",
    "gradient_noise_relative",
    "lower_tolerance",
    "adjoint_tolerance",
    "step",
    "operator_applications",
)


def _loss_panel(axis: Axes, table: Mapping[str, np.ndarray]) -> None:
    x, loss = table["iteration"], table["loss"]
    known = np.isfinite(table["loss_lower"]) & np.isfinite(table["loss_upper"])
    axis.fill_between(
        x,
        table["loss_lower"],
        table["loss_upper"],
        where=known.tolist(),
        color=ORANGE,
        alpha=0.25,
        linewidth=0,
        label="certified interval",
    )
    axis.plot(
        x,
        loss,
        color=BLUE,
        linewidth=1.2,
        marker=".",
        markersize=3,
        label="loss",
    )
    positive = loss[np.isfinite(loss) & (loss > 0)]
    if positive.size and positive.max() > 10 * positive.min():
        axis.set_yscale("log")
    axis.set_title("upper loss", fontsize=11)
    axis.legend(frameon=False, fontsize=9)
    tidy(axis)


def _panel(
    axis: Axes,
    x: np.ndarray,
    title: str,
    curves: Sequence[tuple[str, np.ndarray, str]],
    logarithmic: bool = True,
) -> None:
    """Curves ``(label, values, colour)``; values that are not positive are left
    out."""
    drawn = False
    for label, values, colour in curves:
        positive = np.where(np.isfinite(values) & (values > 0), values, np.nan)
        if np.isfinite(positive).any():
            axis.plot(
                x,
                positive,
                color=colour,
                linewidth=1.2,
                marker=".",
                markersize=3,
                label=label,
            )
            drawn = True
    if drawn and logarithmic:
        axis.set_yscale("log")
    elif not drawn:
        axis.text(
            0.5,
            0.5,
            "not recorded",
            transform=axis.transAxes,
            ha="center",
            color=GREY,
        )
        axis.set_yticks([])
    if drawn and len(curves) > 1:
        axis.legend(frameon=False, fontsize=9)
    axis.set_title(title, fontsize=11)
    tidy(axis)


def _shade(axis: Axes, x: np.ndarray, marked: np.ndarray) -> None:
    """Grey behind each run of marked rows."""
    edges = np.flatnonzero(
        np.diff(np.concatenate([[False], marked, [False]]).astype(int))
    )
    for start, end in edges.reshape(-1, 2):
        axis.axvspan(
            float(x[start]),
            float(x[min(end, len(x) - 1)]),
            color="0.93",
            zorder=0,
        )
    if marked.any():
        axis.text(
            x[np.argmax(marked)],
            1.0,
            " stochastic",
            transform=axis.get_xaxis_transform(),
            va="top",
            fontsize=8,
            color=GREY,
        )


def _column(
    rows: Sequence[Mapping[str, float | int | str]], name: str
) -> np.ndarray:
    """A column as floats; absent and empty cells are NaN."""
    cells = [row.get(name, math.nan) for row in rows]
    return np.array(
        [math.nan if isinstance(cell, str) else float(cell) for cell in cells]
    )


def _picture(axis: Axes, pixels: Tensor, title: str) -> None:
    shown = pixels.detach().clamp(0, 1).cpu().numpy()
    if len(shown) == 3:
        axis.imshow(shown.transpose(1, 2, 0), interpolation="nearest")
    else:
        axis.imshow(
            shown[0], cmap="gray", vmin=0, vmax=1, interpolation="nearest"
        )
    axis.set_title(title, fontsize=10, parse_math=False)  # a name may hold a $
    axis.set_axis_off()


def _missing(axis: Axes, title: str) -> None:
    axis.set_title(title, fontsize=10, parse_math=False)
    axis.set_axis_off()


def _quality(estimate: Tensor, truth: Tensor, clip: bool = True) -> str:
    return f"{psnr(estimate, truth, clip):.2f} dB / {ssim(estimate, truth):.3f}"


def tidy(axis: Axes) -> None:
    """A faint grid, and no lines at the top and on the right."""
    axis.grid(True, color="0.9", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)


def rendered(figure: Figure) -> bytes:
    """A figure as PNG that says who drew it."""
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # names in letters that the font lacks
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(
            buffer, format="png", dpi=120, metadata={"Software": MARK}
        )
    return buffer.getvalue()


def save(figure: Figure, path: Path | Output) -> None:
    """Write a figure as PNG.  Raises ``OSError`` that names the file."""
    if isinstance(path, Output):
        path.write(rendered(figure))
    else:
        write_to(path, rendered(figure))
