"""Denoise a folder of images with a trained run and measure the result.

python -m experiments.evaluate RUN --images DIR --sigma 25 --seed 1 --json FILE
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jsonargparse import ArgumentParser
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from experiments.atomic import write_in_one_piece
from experiments.data import Photograph, add_noise, embedded_photographs, image_generator, load_folder
from experiments.errors import UserError, one_line_errors
from experiments.metrics import psnr, ssim
from experiments.model_file import load_regularizer
from experiments.restoration import restore
from experiments.run_folder import RunFolder, json_text
from experiments.runtime import available_cores, choose_device, prepare
from regularizers.linear import LinearRegularizer


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


def evaluate_images(
    regularizer: LinearRegularizer,
    images: Sequence[Photograph],
    sigma: float,
    seed: int,
    tolerance: float,
    workers: int = 1,
    save: Path | None = None,
) -> list[ImageResult]:
    """Add noise (``sigma`` in [0, 1] units, its own seed per image), denoise, and compare with the clean image.

    ``workers`` images are denoised side by side; figures other than the seconds do not depend on it.
    """

    def one(index: int) -> ImageResult:
        image = images[index]
        noisy = add_noise(image.pixels, sigma, image_generator(seed, index))
        restored = restore(regularizer, noisy.to(next(regularizer.parameters()).device), tolerance)
        estimate = restored.pixels.cpu()
        if save is not None:
            save_image(estimate, save / f"{Path(image.name).stem}.png")
        return ImageResult(
            name=image.name,
            psnr_noisy=psnr(noisy, image.pixels, clip=False),
            psnr=psnr(estimate, image.pixels),
            ssim=ssim(estimate.clamp(0, 1), image.pixels),
            error_bound=restored.error_bound,
            operator_applications=restored.operator_applications,
            seconds=restored.seconds,
        )

    with ThreadPoolExecutor(workers) as pool:
        done = pool.map(one, range(len(images)))
        console = Console(stderr=True)
        return list(track(done, "denoising", total=len(images), transient=True, console=console))


def mean_of(results: Sequence[ImageResult]) -> dict[str, float]:
    """The mean of every numerical column."""
    rows = [asdict(result) for result in results]
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0] if name != "name"}


def save_image(pixels: torch.Tensor, path: Path) -> None:
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
    images = embedded_photographs("test", colour) if options.images is None else load_folder(options.images, colour)
    sigma = trained_sigma(config) if options.sigma is None else options.sigma
    if not sigma > 0:
        raise UserError(f"--sigma must be positive, got {sigma}")
    regularizer = regularizer.to(choose_device(options.device))
    results = evaluate_images(
        regularizer, images, sigma / 255, options.seed, options.tolerance, options.threads, options.save
    )
    mean = mean_of(results)
    show(results, mean)
    if options.json is not None:
        content = {"images": [asdict(result) for result in results], "mean": mean, "model": config}
        write_in_one_piece(options.json, json_text(json.loads(json.dumps(content))).encode())


def trained_sigma(config: Mapping[str, object]) -> float:
    """The noise level a model was trained for, in grey levels of 255."""
    training = config.get("training")
    if isinstance(training, Mapping) and isinstance(training.get("sigma"), int | float):
        return float(training["sigma"])
    raise UserError("the model does not say for which noise it was trained; give --sigma")


if __name__ == "__main__":
    main()
