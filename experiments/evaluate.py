"""Denoise a folder of images with a trained run and measure the result.

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

from experiments.data import Photograph, add_noise, image_generator, load_photographs
from experiments.errors import UserError, one_line_errors
from experiments.metrics import psnr, ssim
from experiments.model_file import Learned, load_regularizer
from experiments.restoration import Restored, restore
from experiments.run_folder import RunFolder, write_json
from experiments.runtime import available_cores, choose_device, prepare

Result = TypeVar("Result")


@dataclass(frozen=True)
class ImageResult:
    """Figures of one image: decibels on [0, 1], SSIM, certified ``||x - x*||``, pairs of ``K`` and ``K^T``, seconds."""

    name: str
    psnr_noisy: float
    psnr: float
    ssim: float
    error_bound: float
    operator_applications: float
    seconds: float


@dataclass(frozen=True, eq=False)
class Denoised:
    """A clean image, its noisy version, and what was made of that; ``estimate`` is not clipped."""

    image: Photograph
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
            operator_applications=restored.operator_applications,
            seconds=restored.seconds,
        )


@dataclass(frozen=True)
class Denoiser:
    """A regularizer with the noise it is tested on: ``sigma`` in [0, 1] units, its own seed per image."""

    regularizer: Learned
    sigma: float
    seed: int
    tolerance: float

    def denoise(self, image: Photograph, index: int) -> Denoised:
        """Add the noise of image ``index`` and denoise."""
        noisy = add_noise(image.pixels, self.sigma, image_generator(self.seed, index))
        device = next(self.regularizer.parameters()).device
        restored = restore(self.regularizer, noisy.to(device), self.tolerance)
        return Denoised(image, noisy, restored.pixels.cpu(), restored)


def side_by_side(job: Callable[[Photograph, int], Result], images: Sequence[Photograph], workers: int) -> list[Result]:
    """``job`` of every image and its index, ``workers`` at a time, in order, with a progress bar."""
    with ThreadPoolExecutor(workers) as pool:
        done = pool.map(job, images, range(len(images)))
        console = Console(stderr=True)
        return list(track(done, "denoising", total=len(images), transient=True, console=console))


def evaluate_images(
    denoiser: Denoiser, images: Sequence[Photograph], workers: int = 1, save: Path | None = None
) -> list[ImageResult]:
    """Figures of every image; those other than the seconds do not depend on ``workers``.  ``save``: folder for PNGs."""

    def one(image: Photograph, index: int) -> ImageResult:
        denoised = denoiser.denoise(image, index)
        if save is not None:
            save_image(denoised.estimate, save / f"{Path(image.name).stem}.png")
        return denoised.figures()

    return side_by_side(one, images, workers)


def mean_of(results: Sequence[ImageResult]) -> dict[str, float]:
    """The mean of every numerical column."""
    rows = [asdict(result) for result in results]
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0] if name != "name"}


def save_image(pixels: Tensor, path: Path) -> None:
    """Write ``(channels, height, width)`` in [0, 1] as an 8-bit PNG."""
    levels = (pixels.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).squeeze(-1).numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(levels).save(path)


def show(results: Sequence[ImageResult], mean: Mapping[str, float]) -> None:
    """A table on the terminal."""
    table = Table("image", "noisy dB", "PSNR dB", "SSIM", "error bound", "operator pairs", "seconds")
    for name, row in [*((r.name, asdict(r)) for r in results), ("mean", dict(mean))]:
        table.add_row(
            name, f"{row['psnr_noisy']:.2f}", f"{row['psnr']:.2f}", f"{row['ssim']:.4f}", f"{row['error_bound']:.1e}",
            f"{row['operator_applications']:.0f}", f"{row['seconds']:.2f}",
        )  # fmt: skip
    Console().print(table)


def build_parser() -> ArgumentParser:
    """The command line."""
    parser = ArgumentParser(prog="python -m experiments.evaluate", description="Denoise images with a trained run.")
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--images", type=Path | None, help="folder of clean images (default: the embedded test images)")
    parser.add_argument("--sigma", type=float | None, help="noise in grey levels of 255 (default: as trained)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the noise")
    parser.add_argument(
        "--tolerance", type=float, default=1e-4, help="certified RMS error of x, in grey values of [0, 1]"
    )
    parser.add_argument("--json", type=Path | None, help="write the figures to this file")
    parser.add_argument("--save", type=Path | None, help="write the denoised images to this folder")
    parser.add_argument("--device", type=str, choices=["cpu", "cuda", "auto"], default="auto")
    parser.add_argument("--threads", type=int, default=available_cores(), help="images denoised side by side")
    return parser


@one_line_errors()
def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    options = build_parser().parse_args(arguments)
    prepare(threads=1)
    regularizer, config = load_regularizer(RunFolder.open(options.run))
    colour = regularizer.config.channels == 3
    images = load_photographs(options.images, "test", colour)
    sigma = trained_sigma(config) if options.sigma is None else options.sigma
    if not sigma > 0:
        raise UserError(f"--sigma must be positive, got {sigma}")
    regularizer = regularizer.to(choose_device(options.device))
    denoiser = Denoiser(regularizer, sigma / 255, options.seed, options.tolerance)
    results = evaluate_images(denoiser, images, options.threads, options.save)
    mean = mean_of(results)
    show(results, mean)
    if options.json is not None:
        images_figures = [asdict(result) for result in results]
        write_json(options.json, {"images": images_figures, "mean": mean, "model": config})


def trained_sigma(config: Mapping[str, object]) -> float:
    """The noise level a model was trained for, in grey levels of 255."""
    training = config.get("training")
    if isinstance(training, Mapping) and isinstance(training.get("sigma"), int | float):
        return float(training["sigma"])
    raise UserError("the model does not say for which noise it was trained; give --sigma")


if __name__ == "__main__":
    main()
