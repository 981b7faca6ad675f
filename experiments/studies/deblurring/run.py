"""A trained deblurring run beside what else could be done: nothing, the ridge
alone, Wiener, tuned TV, a denoiser's regularizer.

python -m experiments.studies.deblurring RUN --denoiser RUN --train DIR --images
DIR

Everything with a number to choose (Wiener's strength, the weight of TV, the
weight of the denoiser's regularizer) has it tuned on the same training patches;
all share the run's blur, noise and data term, so a gain is never the ridge's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from rich.table import Table
from torch import Tensor

from experiments.studies.shared.instances import (
    PRETRAINED,
    blurred_run,
    linear_run,
    scaled,
)
from piggyback.app.console.command import command
from piggyback.app.console.runtime import prepare
from piggyback.app.console.terminal import Terminal
from piggyback.app.degradations.base import EDGES, Blur, edges_named
from piggyback.app.errors import UserError
from piggyback.app.evaluate import check_sizes, keeps_colour, tracked
from piggyback.app.files.outputs import Outputs
from piggyback.app.images.sources import (
    Photograph,
    draw_patches,
    image_generator,
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
from piggyback.app.report.baselines import tune, tune_tv, tv_restore, wiener
from piggyback.app.report.figures import Comparison, comparison
from piggyback.app.report.metrics import psnr, ssim
from piggyback.app.restoration import restore
from piggyback.solvers.lower import radius_per_element, solve_lower
from piggyback.solvers.nonlinear_cg import NonlinearCG
from piggyback.terms.data.base import DataTerm
from regularizers.linear import LinearRegularizer

STRENGTHS = (1e-5, 1.0)
SHARES = (2e-3, 0.2)
"""Where Wiener's strength and the share of a denoiser's weights are looked for.
"""

TV, LEARNED = "TV, tuned", "trained for deblurring"

Method = Callable[[Tensor, Blur], Tensor]
"""Observations ``(batch, ...)`` and their blur to whole images."""


@dataclass(frozen=True)
class Line:
    """One method: its tuned number (0: none), and PSNR in dB and SSIM, means
    over the test images."""

    method: str
    tuned: float
    psnr: float
    ssim: float


def by_ridge(observed: Tensor, blur: Blur) -> Tensor:
    """What the data term gives without a regularizer."""
    data = blur.data_term(observed)
    return data.solve(-data.gradient(torch.zeros_like(data.start)))


def by_tv(weight: float) -> Method:
    """Total variation with a weight."""
    return lambda observed, blur: tv_restore(blur.data_term(observed), weight)


def by_wiener(strength: float) -> Method:
    """Wiener's filter with a strength."""
    return lambda observed, blur: wiener(observed, blur, strength)


def by_regularizer(regularizer: LinearRegularizer) -> Method:
    """A learned regularizer, solved to an RMS error of 3e-4 grey values."""
    return lambda observed, blur: restore(
        regularizer, blur.data_term(observed), 3e-4
    ).pixels.unsqueeze(0)


def share_of_denoiser(
    regularizer: LinearRegularizer, data: DataTerm, clean: Tensor
) -> float:
    """The factor of all weights with which a regularizer that was trained for
    denoising deblurs training patches best."""

    def restored(factor: float) -> Tensor:
        problem = scaled(regularizer, factor).problem(data).detached()
        return solve_lower(
            problem, NonlinearCG(), radius_per_element(problem, 1e-3)
        ).result[0]

    return tune(restored, clean, SHARES)[0]


def tuned_methods(
    run: LinearRegularizer,
    denoiser: LinearRegularizer,
    blur: Blur,
    clean: Tensor,
    seed: int,
) -> list[tuple[str, float, Method]]:
    """Name, tuned number and method; the numbers come from training patches
    ``clean`` in the model world of the run."""
    observed = blur.observe(clean, torch.Generator().manual_seed(seed))
    data = blur.data_term(observed)
    strength, _ = tune(
        lambda value: wiener(observed, blur, value), clean, STRENGTHS
    )
    weight, share = (
        tune_tv(clean, data).weight,
        share_of_denoiser(denoiser, data, clean),
    )
    return [
        ("ridge alone", blur.ridge, by_ridge),
        ("Wiener, tuned", strength, by_wiener(strength)),
        (TV, weight, by_tv(weight)),
        (
            "trained for denoising, one weight tuned",
            share,
            by_regularizer(scaled(denoiser, share)),
        ),
        (LEARNED, 0.0, by_regularizer(run)),
    ]


def measure(
    methods: Sequence[tuple[str, float, Method]],
    images: Sequence[Photograph],
    blur: Blur,
    seed: int,
) -> tuple[list[Line], list[Comparison]]:
    """Means over the images, from the part of each that was observed, and
    pictures; the observation itself comes first."""
    scores: dict[str, list[tuple[float, float]]] = {"blurred": []} | {
        name: [] for name, _, _ in methods
    }
    pictures = []
    for index, image in enumerate(tracked(images, len(images), "testing")):
        observed = blur.observe(image.pixels, image_generator(seed, index))
        truth = blur.visible(image.pixels)
        scores["blurred"].append(
            (
                psnr(blur.shown(observed), truth),
                ssim(blur.shown(observed), truth),
            )
        )
        estimates = {
            name: blur.visible(method(observed.unsqueeze(0), blur))[0]
            for name, _, method in methods
        }
        for name, estimate in estimates.items():
            scores[name].append((psnr(estimate, truth), ssim(estimate, truth)))
        pictures.append(
            Comparison(
                image.name,
                blur.shown(observed),
                estimates[TV],
                estimates[LEARNED],
                truth,
            )
        )
    tuned = {"blurred": 0.0} | {name: value for name, value, _ in methods}
    means = {
        name: [sum(column) / len(images) for column in zip(*pairs, strict=True)]
        for name, pairs in scores.items()
    }
    return [Line(name, tuned[name], *means[name]) for name in scores], pictures


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(
        "python -m experiments.studies.deblurring", "Compare ways to deblur."
    )
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
    parser.add_argument(
        "--json", type=path, help="write the figures to this file"
    )
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
    images, tested = (
        load_photographs(options.images, "test", colour),
        blur.with_edges(edges_named(options.edges)),
    )
    check_sizes(images, tested)
    outputs = Outputs(options.run, options.denoiser)
    figures = outputs.json(options.json, ("edges", "methods"))
    figure = outputs.figure(options.figure)
    methods = tuned_methods(
        regularizer,
        denoiser,
        blur.with_edges("circular"),
        patches,
        options.seed,
    )
    lines, pictures = measure(methods, images, tested, options.seed)
    figures.write_json(
        {"edges": options.edges, "methods": [asdict(line) for line in lines]}
    )
    if options.figure is not None:
        comparison(pictures, figure)
    table = Table("method", "tuned number", "PSNR dB", "SSIM")
    for line in lines:
        table.add_row(
            line.method,
            f"{line.tuned:.3g}" if line.tuned else "",
            f"{line.psnr:.2f}",
            f"{line.ssim:.4f}",
        )
    Terminal().print(table)
