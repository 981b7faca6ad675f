"""The photograph on the front page: noisy, restored by the shipped model
without being told the noise level, and the truth.

python -m experiments.studies.front_page --figure docs/figures/restored.png
"""

from __future__ import annotations

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from experiments.studies.shared.command import Places, command_line
from piggyback.app.console.command import command
from piggyback.app.console.runtime import prepare
from piggyback.app.degradations.base import Noise
from piggyback.app.images.sources import embedded_photographs, image_generator
from piggyback.app.options.parser import Parser, grey_levels, path, seed
from piggyback.app.photographs.levels import estimated_levels
from piggyback.app.photographs.models import GREY
from piggyback.app.photographs.observed import as_values
from piggyback.app.photographs.restoring import Restoration, Restorer
from piggyback.app.report.figures import save
from piggyback.app.report.metrics import psnr
from piggyback.app.restoration import TOLERANCE
from piggyback.app.restore import chosen_model

PHOTOGRAPH = "chelsea"


def build_parser() -> Parser:
    """The command line."""
    parser = command_line("front_page", "The photograph on the front page.")
    parser.add_argument(
        "--model", type=path, default=GREY, help="as for restore"
    )
    parser.add_argument(
        "--sigma",
        type=grey_levels,
        default=25.0,
        help="noise that is added, grey levels of 255",
    )
    parser.add_argument("--seed", type=seed, default=0, help="of the noise")
    parser.add_argument(
        "--figure", type=path, metavar="FILE", help="write the figure there"
    )
    return parser


@command()
def main(arguments: list[str] | None = None) -> None:
    """Restore the photograph, say how well, and draw it."""
    options = build_parser().parse_args(arguments)
    prepare(threads=1)
    figure = Places().figure(options.figure)
    model, _ = chosen_model(str(options.model))
    photograph = next(
        one
        for one in embedded_photographs("test", colour=True)
        if one.name == PHOTOGRAPH
    )
    clean = photograph.pixels
    noise = Noise(options.sigma / 255)
    noisy = noise.observe(clean, image_generator(options.seed, 0))
    levels = estimated_levels(as_values(noisy))
    restored = Restorer(model, noise, TOLERANCE).restore(noisy, levels)
    print(_summary(clean, noisy, restored, levels))
    if options.figure is not None:
        save(_drawn(clean, noisy, restored), figure)


def _summary(
    clean: Tensor,
    noisy: Tensor,
    restored: Restoration,
    levels: tuple[float, ...],
) -> str:
    estimated = ", ".join(f"{255 * level:.1f}" for level in levels)
    return (
        f"noise taken for {estimated} grey levels; PSNR "
        f"{psnr(noisy, clean):.2f} -> {psnr(restored.pixels, clean):.2f} dB; "
        f"{255 * restored.distance:.2f} grey levels from the exact minimiser "
        f"at most, {restored.pairs:.0f} operator pairs"
    )


def _drawn(clean: Tensor, noisy: Tensor, restored: Restoration) -> Figure:
    figure = Figure(figsize=(9, 3.3), layout="constrained")
    axes = figure.subplots(1, 3)
    certified = f"within {255 * restored.distance:.2f} grey levels"
    panels = (
        (noisy, f"noisy, {psnr(noisy, clean):.1f} dB"),
        (
            restored.pixels,
            f"restored, {psnr(restored.pixels, clean):.1f} dB, {certified}",
        ),
        (clean, "truth"),
    )
    for axis, (pixels, title) in zip(axes, panels, strict=True):
        _show(axis, pixels, title)
    return figure


def _show(axis: Axes, pixels: Tensor, title: str) -> None:
    """``(channels, height, width)`` in grey values."""
    axis.imshow(torch.clamp(pixels, 0, 1).movedim(0, -1).numpy())
    axis.set_title(title, fontsize=9)
    axis.set_axis_off()
