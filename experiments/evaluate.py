"""Degrade a folder of clean images as a run was trained to undo, restore them with the run, and measure the result.

python -m experiments.evaluate RUN --images DIR --sigma 25 --seed 1 --json FILE
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import torch
from jsonargparse import ArgumentParser
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from experiments.data import Photograph, image_generator, load_photographs
from experiments.degradations import EDGES, Blur, Degradation, edges_named, from_description
from experiments.errors import UserError, one_line_errors
from experiments.metrics import psnr, ssim
from experiments.model_file import Learned, load_regularizer
from experiments.restoration import TOLERANCE, Restored, restore
from experiments.run_folder import RunFolder, write_json
from experiments.runtime import available_cores, choose_device, prepare

Result = TypeVar("Result")


@dataclass(frozen=True)
class ImageResult:
    """Figures of one image: decibels on [0, 1], SSIM, certified ``||x - x*||`` and ``||B (x - x*)||``, pairs, seconds.

    ``converged``: whether the solve reached its tolerance; the bounds hold in any case.
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
    """A clean image, its observation, and what was made of that; ``estimate`` is not clipped.

    ``observed`` is the observation as it is; ``image``, ``noisy`` and ``estimate`` show the part of the scene that it covers.
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
    """A regularizer with the degradation it is tested on, which has its own seed per image."""

    regularizer: Learned
    degradation: Degradation
    seed: int
    tolerance: float

    def restore(self, image: Photograph, index: int) -> Example:
        """Degrade image ``index`` and restore it."""
        degradation, device = self.degradation, next(self.regularizer.parameters()).device
        observed = degradation.observe(image.pixels, image_generator(self.seed, index))
        restored = restore(self.regularizer, degradation.data_term(observed.unsqueeze(0).to(device)), self.tolerance)
        seen = Photograph(image.name, degradation.visible(image.pixels))
        estimate = degradation.visible(restored.pixels.cpu())
        return Example(seen, observed, degradation.shown(observed), estimate, restored)


def side_by_side(job: Callable[[Photograph, int], Result], images: Sequence[Photograph], workers: int) -> list[Result]:
    """``job`` of every image and its index, ``workers`` at a time, in order, with a progress bar."""
    with ThreadPoolExecutor(workers) as pool:
        done = pool.map(job, images, range(len(images)))
        console = Console(stderr=True)
        return list(track(done, "restoring", total=len(images), transient=True, console=console))


def evaluate_images(
    restorer: Restorer, images: Sequence[Photograph], workers: int = 1, save: Path | None = None
) -> list[ImageResult]:
    """Figures of every image; those other than the seconds do not depend on ``workers``.  ``save``: folder for PNGs."""

    def one(image: Photograph, index: int) -> ImageResult:
        example = restorer.restore(image, index)
        if save is not None:
            save_image(example.estimate, save / f"{Path(image.name).stem}.png")
        return example.figures()

    return side_by_side(one, images, workers)


def mean_of(results: Sequence[ImageResult]) -> dict[str, float]:
    """The mean of every numerical column (of ``converged``: the part of the images that did)."""
    rows = [asdict(result) for result in results]
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0] if name != "name"}


def save_image(pixels: Tensor, path: Path) -> None:
    """Write ``(channels, height, width)`` in [0, 1] as an 8-bit PNG."""
    levels = (pixels.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).squeeze(-1).numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(levels).save(path)


def show(results: Sequence[ImageResult], mean: Mapping[str, float]) -> None:
    """A table on the terminal."""
    table = Table("image", "degraded dB", "PSNR dB", "SSIM", "error bound", "in the data", "operator pairs", "seconds")
    for name, row in [*((r.name, asdict(r)) for r in results), ("mean", dict(mean))]:
        table.add_row(
            name, f"{row['psnr_noisy']:.2f}", f"{row['psnr']:.2f}", f"{row['ssim']:.4f}", f"{row['error_bound']:.1e}",
            f"{row['data_bound']:.1e}",
            f"{row['operator_applications']:.0f}", f"{row['seconds']:.2f}",
        )  # fmt: skip
    console = Console()
    console.print(table)
    missed = [result.name for result in results if not result.converged]
    if missed:
        console.print(
            f"not converged to the tolerance (the error bounds say how far off): {', '.join(missed)}", style="bold"
        )


def build_parser() -> ArgumentParser:
    """The command line."""
    parser = ArgumentParser(
        prog="python -m experiments.evaluate", description="Degrade images and restore them with a trained run."
    )
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--images", type=Path | None, help="folder of clean images (default: the embedded test images)")
    parser.add_argument("--sigma", type=float | None, help="noise in grey levels of 255 (default: as trained)")
    parser.add_argument(
        "--edges", choices=list(EDGES), help="deblurring: the border (default: valid, nothing is known beyond it)"
    )
    parser.add_argument("--seed", type=int, default=1, help="seed of the noise")
    parser.add_argument(
        "--tolerance", type=float, default=TOLERANCE, help="certified RMS error of x, in grey values of [0, 1]"
    )
    parser.add_argument("--json", type=Path | None, help="write the figures to this file")
    parser.add_argument("--save", type=Path | None, help="write the restored images to this folder")
    parser.add_argument("--device", type=str, choices=["cpu", "cuda", "auto"], default="auto")
    parser.add_argument("--threads", type=int, default=available_cores(), help="images restored side by side")
    return parser


@one_line_errors()
def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    options = build_parser().parse_args(arguments)
    prepare(threads=1)
    regularizer, config = load_regularizer(RunFolder.open(options.run))
    colour = regularizer.config.channels == 3
    images = load_photographs(options.images, "test", colour)
    degradation = tested_degradation(config, str(options.run), options.sigma, options.edges)
    regularizer = regularizer.to(choose_device(options.device))
    restorer = Restorer(regularizer, degradation, options.seed, options.tolerance)
    results = evaluate_images(restorer, images, options.threads, options.save)
    mean = mean_of(results)
    show(results, mean)
    if options.json is not None:
        images_figures = [asdict(result) for result in results]
        write_json(options.json, {"images": images_figures, "mean": mean, "model": config})


def tested_degradation(
    config: Mapping[str, object], run: str, sigma: float | None = None, edges: str | None = None
) -> Degradation:
    """What a run is tested on: its own degradation, at another noise level if ``sigma`` (grey levels of 255) is given.

    Blurs are tested without assumptions beyond the border unless ``edges`` says otherwise.  Raises ``UserError`` for a
    negative ``sigma``, for ``edges`` without a blur, and if the model does not say how it was trained.
    """
    if sigma is not None and not sigma > 0:
        raise UserError(f"--sigma must be positive, got {sigma}")
    training = config.get("training")
    known: dict[str, object] = dict(training) if isinstance(training, Mapping) else {}
    if sigma is not None:
        known = {"task": "denoise", **known, "sigma": sigma}
    trained = from_description(known, run)
    if isinstance(trained, Blur):
        return trained.with_edges(edges_named(edges or "valid"))
    if edges is not None:
        raise UserError(f"--edges is for runs that deblur; {run} was trained to {trained.task}")
    return trained


if __name__ == "__main__":
    main()
