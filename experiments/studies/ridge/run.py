"""What the ridge of a deblurring run does: to the images without a regularizer
and with it, and to the bounds.

python -m experiments.studies.ridge RUN --images DIR

For ridges from 1e-1 to 1e-4: mean PSNR of the data term alone and of the run's
regularizer (central crops, periodic blur), and, on the first crop, bounds over
true errors: of the distance, of the distance in the data, of the gradient by
norms (eq. 13) and of the assessed gradient (eq. 24). The truth is a tight solve
in float64. Denoising stands beside it.
"""

from __future__ import annotations

from dataclasses import asdict

import torch
from torch import Tensor

from experiments.studies.ridge.effects import RidgeRow, study
from experiments.studies.ridge.table import of_terms
from experiments.studies.shared.command import (
    Places,
    add_json,
    command_line,
    progress,
)
from experiments.studies.shared.instances import (
    blurred_run,
    trained_regularizer,
)
from piggyback.app.console.command import command
from piggyback.app.console.runtime import prepare
from piggyback.app.console.terminal import Terminal
from piggyback.app.degradations.base import Blur, Noise
from piggyback.app.errors import UserError
from piggyback.app.evaluate import keeps_colour
from piggyback.app.images.sources import (
    central_crop,
    load_photographs,
)
from piggyback.app.options.parser import SIDE, Parser, path, whole
from regularizers.linear import LinearRegularizer

RIDGES = (1e-1, 1e-2, 1e-3, 1e-4)
"""Of the deblurring data term."""


def build_parser() -> Parser:
    """The command line."""
    parser = command_line(
        "ridge",
        "What the ridge of a deblurring run does.",
    )
    parser.add_argument("run", type=path, help="run folder of a deblurring run")
    parser.add_argument(
        "--denoiser",
        type=path,
        help="run folder of a denoising run (default: the shipped model)",
    )
    parser.add_argument(
        "--images",
        type=path,
        help="folder of clean images (default: the embedded test images)",
    )
    parser.add_argument(
        "--side",
        type=whole(1, SIDE),
        default=64,
        help="side of the central crops",
    )
    parser.add_argument(
        "--crops", type=whole(), default=4, help="how many images"
    )
    add_json(parser, "the figures")
    return parser


@command()
def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    options = build_parser().parse_args(arguments)
    prepare(threads=1)
    regularizer, blur = blurred_run(options.run)
    denoiser = trained_regularizer(options.denoiser)
    if denoiser.config.channels != regularizer.config.channels:
        raise UserError(
            f"{options.denoiser}: has {denoiser.config.channels} channels, the run another number"
        )
    photographs = load_photographs(
        options.images, "test", keeps_colour(regularizer, options.run)
    )[: options.crops]
    # before the work: the last image may be the one that is too small
    for photograph in photographs:
        if min(photograph.pixels.shape[-2:]) < options.side:
            raise UserError(
                f"{photograph.name}: is smaller than a crop of --side {options.side} pixels"
            )
    check_fit(blur, options.side)
    file = Places(options.run, options.denoiser).json(options.json, ("rows",))
    clean = torch.stack(
        [
            central_crop(photograph.pixels, options.side)
            for photograph in photographs
        ]
    )
    rows = run_terms(regularizer, denoiser, blur, clean)
    file.write_json({"rows": [asdict(row) for row in rows]})
    Terminal().print(of_terms(rows))


def run_terms(
    regularizer: LinearRegularizer,
    denoiser: LinearRegularizer,
    blur: Blur,
    clean: Tensor,
) -> list[RidgeRow]:
    """Denoising, then deblurring with every ridge, with progress.

    Args:
        regularizer: trained to deblur.
        denoiser: trained to denoise.
        blur: what the regularizer was trained to undo.
        clean: crops ``(batch, channels, height, width)``, in grey values.

    Returns:
        One row per data term.
    """
    rows = []
    with progress(1 + len(RIDGES)) as bar:
        bar.now("denoising")
        rows.append(study(denoiser, Noise(25 / 255), clean, "denoising"))
        bar.done()
        for ridge in RIDGES:
            term = f"deblurring, ridge {ridge:g}"
            bar.now(term)
            world = blur.with_edges("circular").with_ridge(ridge)
            rows.append(study(regularizer, world, clean, term))
            bar.done()
    return rows


def check_fit(blur: Blur, side: int) -> None:
    """Raise ``UserError`` for crops that are smaller than the kernel."""
    if max(blur.kernel.shape) > side:
        raise UserError(
            f"--side {side}: the blur of the run has {'x'.join(map(str, blur.kernel.shape))} pixels"
        )
