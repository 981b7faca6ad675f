"""A trained deblurring run beside what else could be done: nothing, the ridge
alone, Wiener, tuned TV, a denoiser's regularizer.

python -m experiments.studies.deblurring RUN --denoiser RUN --train DIR --images
DIR

Everything with a number to choose (Wiener's strength, the weight of TV, the
weight of the denoiser's regularizer) has it tuned on the same training patches;
all share the run's blur, noise and data term, so a gain is never the ridge's.
"""

from __future__ import annotations

from dataclasses import asdict

import torch

from experiments.studies.deblurring.methods import (
    tuned_methods,
)
from experiments.studies.deblurring.scores import measure
from experiments.studies.deblurring.table import of_scores
from experiments.studies.shared.command import (
    Places,
    add_json,
    command_line,
)
from experiments.studies.shared.instances import (
    PRETRAINED,
    blurred_run,
    linear_run,
)
from piggyback.app.console.command import command
from piggyback.app.console.runtime import prepare
from piggyback.app.console.terminal import Terminal
from piggyback.app.degradations.base import EDGES, edges_named
from piggyback.app.errors import UserError
from piggyback.app.evaluate import check_sizes, keeps_colour
from piggyback.app.images.sources import (
    draw_patches,
    load_photographs,
)
from piggyback.app.options.parser import (
    PATCHES,
    SIDE,
    Parser,
    path,
    seed,
    whole,
)
from piggyback.app.report.figures import comparison


def build_parser() -> Parser:
    """The command line."""
    parser = command_line("deblurring", "Compare ways to deblur.")
    parser.add_argument("run", type=path, help="run folder of a deblurring run")
    parser.add_argument(
        "--denoiser",
        type=path,
        default=PRETRAINED,
        help="run folder of a denoising run (default: the shipped model)",
    )
    parser.add_argument(
        "--train",
        type=path,
        help="folder to tune on (default: the embedded training images)",
    )
    parser.add_argument(
        "--images",
        type=path,
        help="folder of clean images (default: the embedded test images)",
    )
    parser.add_argument(
        "--edges",
        choices=list(EDGES),
        default="valid",
        help="what test images are beyond their border",
    )
    parser.add_argument(
        "--patches",
        type=whole(1, PATCHES),
        default=24,
        help="training patches to tune on",
    )
    parser.add_argument(
        "--patch", type=whole(1, SIDE), default=48, help="their side in pixels"
    )
    parser.add_argument(
        "--seed", type=seed, default=1, help="seed of the noise"
    )
    add_json(parser, "the figures")
    parser.add_argument(
        "--figure",
        type=path,
        help="draw the first images: observed, TV, learned, truth",
    )
    return parser


@command()
def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    options = build_parser().parse_args(arguments)
    prepare(threads=1)
    regularizer, blur = blurred_run(options.run)
    denoiser, _ = linear_run(options.denoiser)
    if denoiser.config.channels != regularizer.config.channels:
        raise UserError(
            f"{options.denoiser}: has {denoiser.config.channels} channels, the run another number"
        )
    colour = keeps_colour(regularizer, options.run)
    patches = draw_patches(
        load_photographs(options.train, "train", colour),
        options.patches,
        options.patch,
        torch.Generator().manual_seed(options.seed),
        regularizer.config.channels,
    )
    images = load_photographs(options.images, "test", colour)
    tested = blur.with_edges(edges_named(options.edges))
    check_sizes(images, tested)
    places = Places(options.run, options.denoiser)
    file = places.json(options.json, ("edges", "methods"))
    figure = places.figure(options.figure)
    # patches have no surroundings: they are tuned on in the run's own world
    methods = tuned_methods(
        regularizer,
        denoiser,
        blur.with_edges("circular"),
        patches,
        options.seed,
    )
    lines, pictures = measure(methods, images, tested, options.seed)
    file.write_json(
        {"edges": options.edges, "methods": [asdict(line) for line in lines]}
    )
    if options.figure is not None:
        comparison(pictures, figure)
    Terminal().print(of_scores(lines))
