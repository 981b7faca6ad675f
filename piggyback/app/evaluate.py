"""Degrade a folder of clean images as a run was trained to undo, restore them
with the run, and measure the result.

piggyback evaluate RUN --images DIR --sigma 25 --seed 1 --json FILE
--save DIR

Nothing that exists is overwritten, but for FILE if an earlier evaluation wrote
it; ``--save`` puts one PNG file per image into a folder that is not that of the
originals. Where to write is looked at before the work, and written to before
the table is shown.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image
from rich.progress import track
from rich.table import Table
from torch import Tensor

from piggyback.app.console.command import command
from piggyback.app.console.program import program
from piggyback.app.console.runtime import (
    available_cores,
    choose_device,
    prepare,
)
from piggyback.app.console.terminal import Terminal
from piggyback.app.degradations.base import (
    EDGES,
    Blur,
    Degradation,
    edges_named,
    from_description,
)
from piggyback.app.errors import UserError
from piggyback.app.files.outputs import Outputs, write_new
from piggyback.app.images.sources import (
    Photograph,
    image_generator,
    load_photographs,
)
from piggyback.app.options.parser import (
    THREADS,
    Parser,
    grey_levels,
    path,
    seed,
    tolerance,
    whole,
)
from piggyback.app.report.metrics import SSIM_WINDOW, psnr, ssim
from piggyback.app.restoration import (
    TOLERANCE,
    Restored,
    restore,
    unconverged_is_reported,
)
from piggyback.app.runs.folder import RunFolder
from piggyback.app.runs.model_file import at_level, load_regularizer
from regularizers.construction import Learned

Result = TypeVar("Result")


@dataclass(frozen=True)
class ImageResult:
    """Figures of one image: decibels on [0, 1], SSIM, certified ``||x - x*||``
    and ``||B (x - x*)||``, pairs, seconds.

    ``converged``: whether the solve reached its tolerance; the bounds hold in
    any case.
    """

    name: str
    psnr_noisy: float
    psnr: float
    ssim: float
    error_bound: float
    data_bound: float
    converged: bool
    operator_applications: float
    seconds: float


@dataclass(frozen=True, eq=False)
class Example:
    """A clean image, its observation, and what was made of that; ``estimate``
    is not clipped.

    ``observed`` is the observation as it is; ``image``, ``noisy`` and
    ``estimate`` show the part of the scene that it covers.
    """

    image: Photograph
    observed: Tensor
    noisy: Tensor
    estimate: Tensor
    restored: Restored

    def figures(self) -> ImageResult:
        """The estimate compared with the clean image."""
        truth, restored = self.image.pixels, self.restored
        return ImageResult(
            name=self.image.name,
            psnr_noisy=psnr(self.noisy, truth, clip=False),
            psnr=psnr(self.estimate, truth),
            ssim=ssim(self.estimate, truth),
            error_bound=restored.error_bound,
            data_bound=restored.data_bound,
            converged=restored.converged,
            operator_applications=restored.operator_applications,
            seconds=restored.seconds,
        )


@dataclass(frozen=True)
class Restorer:
    """A regularizer with the degradation it is tested on, which has its own
    seed per image."""

    regularizer: Learned
    degradation: Degradation
    seed: int
    tolerance: float

    def restore(self, image: Photograph, index: int) -> Example:
        """Degrade image ``index`` and restore it."""
        degradation, device = (
            self.degradation,
            next(self.regularizer.parameters()).device,
        )
        observed = degradation.observe(
            image.pixels, image_generator(self.seed, index)
        )
        restored = restore(
            self.regularizer,
            degradation.data_term(observed.unsqueeze(0).to(device)),
            self.tolerance,
        )
        seen = Photograph(image.name, degradation.visible(image.pixels))
        estimate = degradation.visible(restored.pixels.cpu())
        return Example(
            seen, observed, degradation.shown(observed), estimate, restored
        )


def side_by_side(
    job: Callable[[Photograph, int], Result],
    images: Sequence[Photograph],
    workers: int,
) -> list[Result]:
    """``job`` of every image and its index, ``workers`` at a time, in order,
    with a progress bar.

    Interrupted, it waits for the images in progress and begins no other.
    """
    if workers == 1:  # in the main thread, which an interrupt reaches at once
        return [
            job(image, index)
            for index, image in enumerate(
                tracked(images, len(images), "restoring")
            )
        ]
    with ThreadPoolExecutor(workers) as pool:
        try:
            done = pool.map(job, images, range(len(images)))
            return list(tracked(done, len(images), "restoring"))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def tracked(
    items: Iterable[Result], total: int, doing: str
) -> Iterable[Result]:
    """The items, with a progress bar if there is a terminal to show it on."""
    console = Terminal(stderr=True)
    return track(
        items,
        doing,
        total=total,
        transient=True,
        console=console,
        disable=not console.is_terminal,
    )


def evaluate_images(
    restorer: Restorer,
    images: Sequence[Photograph],
    workers: int = 1,
    places: Sequence[Path] | None = None,
) -> list[ImageResult]:
    """Figures of every image; those other than the seconds do not depend on
    ``workers``.

    ``places``: where to write each restored image; nothing may exist there.
    """

    def one(image: Photograph, index: int) -> ImageResult:
        example = restorer.restore(image, index)
        if places is not None:
            save_image(example.estimate, places[index])
        return example.figures()

    with unconverged_is_reported():
        return side_by_side(one, images, workers)


def mean_of(results: Sequence[ImageResult]) -> dict[str, float]:
    """The mean of every numerical column (of ``converged``: the part of the
    images that did)."""
    rows = [asdict(result) for result in results]
    return {
        name: sum(row[name] for row in rows) / len(rows)
        for name in rows[0]
        if name != "name"
    }


def save_image(pixels: Tensor, path: Path) -> None:
    """Write ``(channels, height, width)`` in [0, 1] as a new 8-bit PNG. Raises
    ``OSError``, naming it, if the file exists."""
    levels = (
        (pixels.clamp(0, 1) * 255)
        .round()
        .to(torch.uint8)
        .permute(1, 2, 0)
        .squeeze(-1)
        .numpy()
    )
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, "PNG")
    write_new(path, buffer.getvalue())


def check_sizes(images: Sequence[Photograph], degradation: Degradation) -> None:
    """Raise ``UserError``, naming it, for the first image of which too little
    is observed to be measured."""
    for image in images:
        height, width = image.pixels.shape[-2:]
        rows, columns = degradation.border
        seen = (height - 2 * rows, width - 2 * columns)
        if min(seen) < SSIM_WINDOW:
            raise UserError(
                f"{image.name}: of {width}x{height} pixels the blur leaves "
                f"{max(seen[1], 0)}x{max(seen[0], 0)}, "
                f"and SSIM needs {SSIM_WINDOW} on a side"
            )


def show(
    results: Sequence[ImageResult],
    mean: Mapping[str, float],
    degradation: Degradation,
) -> None:
    """A table on the terminal, which says first that images were degraded.

    Args:
        results: One for each image.
        mean: Of every column.
        degradation: What the clean images went through.
    """
    table = Table(
        "image",
        "degraded dB",
        "PSNR dB",
        "SSIM",
        "error bound",
        "in the data",
        "operator pairs",
        "seconds",
        title=(
            f"clean images, degraded first ({degradation.task}, noise of "
            f"{255 * degradation.sigma:g} grey levels), then restored"
        ),
    )
    for name, row in [
        *((r.name, asdict(r)) for r in results),
        ("mean", dict(mean)),
    ]:
        table.add_row(
            name,
            f"{row['psnr_noisy']:.2f}",
            f"{row['psnr']:.2f}",
            f"{row['ssim']:.4f}",
            f"{row['error_bound']:.1e}",
            f"{row['data_bound']:.1e}",
            f"{row['operator_applications']:.0f}",
            f"{row['seconds']:.2f}",
        )
    console = Terminal()
    console.print(table)
    missed = [result.name for result in results if not result.converged]
    if missed:
        console.print(
            "not converged to the tolerance (the error bounds say how far "
            f"off): {', '.join(missed)}",
            style="bold",
        )


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(
        program("evaluate"),
        "Degrade clean images as a run was trained to undo, restore them with "
        "the run, and measure the result. Photographs that are noisy or "
        "blurred already are for the command restore.",
    )
    parser.add_argument("run", type=path, help="run folder")
    parser.add_argument(
        "--images",
        type=path,
        help="folder of clean images (default: the embedded test images)",
    )
    parser.add_argument(
        "--sigma",
        type=grey_levels,
        help="noise in grey levels of 255 (default: as trained)",
    )
    parser.add_argument(
        "--edges",
        choices=list(EDGES),
        help="deblurring: the border (default: valid, nothing is known beyond it)",
    )
    parser.add_argument(
        "--seed", type=seed, default=1, help="seed of the noise"
    )
    parser.add_argument(
        "--tolerance",
        type=tolerance,
        default=TOLERANCE,
        help="certified RMS error of x, in grey values of [0, 1]",
    )
    parser.add_argument(
        "--json", type=path, help="write the figures to this file"
    )
    parser.add_argument(
        "--save",
        type=path,
        help="write the restored images to this folder; nothing is overwritten",
    )
    parser.add_argument(
        "--device", choices=["cpu", "cuda", "auto"], default="auto"
    )
    parser.add_argument(
        "--threads",
        type=whole(1, THREADS),
        default=available_cores(),
        help="images restored side by side",
    )
    return parser


@command()
def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    options = build_parser().parse_args(arguments)
    prepare(threads=1)
    device = choose_device(options.device)
    regularizer, config = load_regularizer(RunFolder.open(options.run))
    degradation = tested_degradation(
        config, str(options.run), options.sigma, options.edges
    )
    images = load_photographs(
        options.images, "test", keeps_colour(regularizer, options.run)
    )
    check_sizes(images, degradation)
    outputs = Outputs(options.run)
    figures, places = (
        outputs.json(options.json, ("images", "mean", "model")),
        None,
    )
    if options.save is not None:
        places = outputs.images(
            options.save, [image.file_name for image in images], options.images
        )
    restorer = Restorer(
        at_level(regularizer.to(device), degradation.sigma),
        degradation,
        options.seed,
        options.tolerance,
    )
    results = evaluate_images(restorer, images, options.threads, places)
    mean = mean_of(results)
    figures.write_json(
        {
            "images": [asdict(result) for result in results],
            "mean": mean,
            "model": config,
        }
    )
    show(results, mean, degradation)


def keeps_colour(regularizer: Learned, run: Path) -> bool:
    """Whether a model is one of colour images. Raises ``UserError`` for
    channels that no image has."""
    channels = regularizer.config.channels
    if channels not in (1, 3):
        raise UserError(
            f"{run}: a model of {channels} channels; images have 1 or 3"
        )
    return channels == 3


def tested_degradation(
    config: Mapping[str, object],
    run: str,
    sigma: float | None = None,
    edges: str | None = None,
) -> Degradation:
    """What a run is tested on: its own degradation, at another noise level if
    ``sigma`` (grey levels of 255) is given.

    Blurs are tested without assumptions beyond the border unless ``edges`` says
    otherwise. Raises ``UserError`` for a negative ``sigma``, for ``edges``
    without a blur, and if the model does not say how it was trained.
    """
    if sigma is not None and not 0 < sigma < math.inf:
        raise UserError(f"--sigma must be positive, got {sigma}")
    training = config.get("training")
    known: dict[str, object] = (
        dict(training) if isinstance(training, Mapping) else {}
    )
    if sigma is not None:
        known = {"task": "denoise", **known, "sigma": sigma}
    trained = from_description(known, run)
    if isinstance(trained, Blur):
        return trained.with_edges(edges_named(edges or "valid"))
    if edges is not None:
        raise UserError(
            f"--edges is for runs that deblur; {run} was trained to {trained.task}"
        )
    return trained
