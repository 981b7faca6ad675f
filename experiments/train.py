"""Train a convex regularizer for denoising by bilevel learning with certified hypergradients.

python -m experiments.train denoise --regularizer linear --train DIR --test DIR --sigma 25 --out RUN
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from jsonargparse import ArgumentParser
from rich.console import Console

from experiments.baselines import TunedTV, tune_tv, tv_denoise
from experiments.data import Photograph, load_photographs, split_check
from experiments.errors import UserError, one_line_errors
from experiments.evaluate import Denoiser, ImageResult, mean_of, side_by_side
from experiments.metrics import psnr, ssim
from experiments.model_file import Learned, load_regularizer
from experiments.report import Comparison, comparison, filters, potentials, training_curves
from experiments.run_folder import RunFolder
from experiments.runtime import Device, available_cores, choose_device, prepare
from experiments.training import Source, Trainer, TrainingPlan
from piggyback.bilevel import Samples
from piggyback.hypergradient.base import Accuracy
from regularizers.adaptive import AdaptiveRegularizer, WeightConfig
from regularizers.icnn import NetworkConfig, NetworkRegularizer
from regularizers.kernels import measured_plan
from regularizers.linear import LinearConfig, LinearRegularizer

TEST_SEED = 1
TV_PATCHES = 64
ADJOINT_TOLERANCE = 0.3  # coarse: the refinement that follows finishes both systems


@dataclass(frozen=True)
class Figures:
    """Mean decibels over the test images, and the gain over tuned TV."""

    psnr_noisy: float
    psnr_tv: float
    psnr: float
    gain_over_tv: float
    ssim_tv: float
    ssim: float


def build_parser() -> ArgumentParser:
    """The command line."""
    parser = ArgumentParser(prog="python -m experiments.train", description="Train a learned convex regularizer.")
    parser.add_argument("task", choices=["denoise"], help="what to restore")
    parser.add_argument(
        "--regularizer",
        choices=["adaptive", "linear", "icnn"],
        default="adaptive",
        help="adaptive: weights that are learned functions of the observation; linear: one weight per filter; "
        "icnn: an input-convex network",
    )
    parser.add_argument("--train", type=Path | None, help="folder of training images (default: embedded photographs)")
    parser.add_argument("--test", type=Path | None, help="folder of test images, never trained on (default: embedded)")
    parser.add_argument("--sigma", type=float, default=25.0, help="noise, in grey levels of 255")
    parser.add_argument("--out", type=Path, default=Path("runs/denoise"), help="run folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="continue the interrupted run in --out")
    parser.add_argument("--device", choices=["cpu", "cuda", "auto"], default="auto")
    parser.add_argument("--budget", type=float, default=150.0, help="seconds of training proper")
    parser.add_argument(
        "--stochastic",
        type=float,
        default=0.85,
        help="part of the budget for mini-batches, before the certified descent",
    )
    parser.add_argument("--steps", type=int, default=100_000, help="most steps on mini-batches")
    parser.add_argument("--iterations", type=int, default=100_000, help="most steps of the certified descent")
    parser.add_argument("--minibatch", type=int, default=8, help="fresh patches per step")
    parser.add_argument("--rate", type=float, default=8e-3, help="step size of the steps on mini-batches")
    parser.add_argument("--colour", action="store_true", help="keep colour (default: convert to grey)")
    parser.add_argument("--filters", type=int, default=48)
    parser.add_argument("--size", type=int, default=7, help="filters of size x size pixels")
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 16], help="icnn: channels of the hidden layers")
    parser.add_argument("--inner", type=int, default=1, help="icnn: side of the kernels between hidden layers")
    parser.add_argument("--profile", choices=["logcosh", "charbonnier", "huber"], default="logcosh")
    parser.add_argument("--boundary", choices=["reflect", "circular", "valid"], default="reflect")
    parser.add_argument("--patches", type=int, default=128, help="fixed patches of the certified descent")
    parser.add_argument("--patch", type=int, default=48, help="side of a patch in pixels")
    parser.add_argument("--batch", type=int, default=4, help="patches per batched solve")
    parser.add_argument(
        "--measure-kernels", action="store_true", help="time the convolution kernels for this patch size first"
    )
    parser.add_argument("--threads", type=int, default=available_cores(), help="CPU threads, one solve each")
    parser.add_argument(
        "--tolerance", type=float, default=3e-4, help="coarsest RMS error of x, in grey values of [0, 1]"
    )
    return parser


@dataclass(frozen=True)
class Options:
    """The parsed command line."""

    task: str
    regularizer: str
    train: Path | None
    test: Path | None
    sigma: float
    out: Path
    seed: int
    resume: bool
    device: Device
    budget: float
    stochastic: float
    steps: int
    iterations: int
    minibatch: int
    rate: float
    colour: bool
    filters: int
    size: int
    widths: list[int]
    inner: int
    profile: str
    boundary: str
    patches: int
    patch: int
    batch: int
    measure_kernels: bool
    threads: int
    tolerance: float

    def __post_init__(self) -> None:
        positive = "sigma", "budget", "minibatch", "rate", "patches", "patch", "batch", "threads", "tolerance"
        for name in positive:
            if not getattr(self, name) > 0:
                raise UserError(f"--{name} must be positive, got {getattr(self, name)}")
        if not (
            0 <= self.stochastic <= 1 and self.steps >= 0 and self.iterations >= 0 and self.steps + self.iterations > 0
        ):
            raise UserError(
                "nothing to do: --stochastic must lie in [0, 1], --steps and --iterations be non-negative, not both 0"
            )

    def plan(self) -> TrainingPlan:
        return TrainingPlan(
            sigma=self.sigma / 255,
            seed=self.seed,
            patches=self.patches,
            patch=self.patch,
            minibatch=self.minibatch,
            steps=self.steps,
            stochastic=self.stochastic,
            iterations=self.iterations,
            budget=self.budget,
            batch=self.batch,
            workers=self.threads,
            accuracy=Accuracy(self.tolerance, ADJOINT_TOLERANCE),
            rate=self.rate,
        )


@one_line_errors()
def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    options = Options(**build_parser().parse_args(arguments).as_dict())
    prepare(threads=1)  # one thread per solve: --threads solves run side by side
    device = choose_device(options.device)
    train, test = photographs(options)
    run, checkpoint = (RunFolder.resume(options.out)) if options.resume else (RunFolder.create(options.out), None)
    plan, channels = options.plan(), 3 if options.colour else 1
    source = Source(train, plan.sigma, plan.patch, channels, device)
    samples = source.draw(plan.patches, torch.Generator().manual_seed(plan.seed))
    regularizer = new_regularizer(options, samples)
    with run:
        trainer = Trainer(run, regularizer, samples, source, plan)
        reason = trainer.train(checkpoint)
        Console(stderr=True).print(f"stopped: {reason.value} after {trainer.seconds():.0f} s", highlight=False)
        report(run, samples, test, options)


def photographs(options: Options) -> tuple[list[Photograph], list[Photograph]]:
    """Training and test images; raises ``UserError`` if an image is in both."""
    train = load_photographs(options.train, "train", options.colour)
    test = load_photographs(options.test, "test", options.colour)
    split_check(train, test)
    return train, test


def new_regularizer(options: Options, samples: Samples) -> Learned:
    """Seeded start.  ``--measure-kernels`` may change the last digits of a run: kernels differ in rounding."""
    if options.regularizer == "icnn":
        return _network(options, samples.clean.shape[1]).to(samples.clean.device)
    try:
        config = LinearConfig.for_noise(
            sigma=options.sigma / 255,
            filters=options.filters,
            size=options.size,
            channels=samples.clean.shape[1],
            profile=options.profile,
            boundary=options.boundary,
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    generator = torch.Generator().manual_seed(options.seed)
    if options.regularizer == "adaptive":
        regularizer = _adaptive(config, options.sigma / 255, generator)
    else:
        regularizer = LinearRegularizer(config, generator)
    regularizer = regularizer.to(samples.clean.device)
    if options.measure_kernels:
        regularizer.plan = measured_plan(regularizer.filters(), samples.clean[: options.batch])
    return regularizer


def _network(options: Options, channels: int) -> NetworkRegularizer:
    try:
        config = NetworkConfig.for_noise(
            sigma=options.sigma / 255,
            widths=tuple(options.widths),
            size=options.size,
            inner=options.inner,
            channels=channels,
            boundary=options.boundary,
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    return NetworkRegularizer(config, torch.Generator().manual_seed(options.seed))


def _adaptive(config: LinearConfig, sigma: float, generator: torch.Generator) -> LinearRegularizer:
    try:
        return AdaptiveRegularizer(config, WeightConfig(contrast=2 * sigma), generator)
    except ValueError as error:
        raise UserError(str(error)) from error


def report(run: RunFolder, samples: Samples, test: list[Photograph], options: Options) -> None:
    """Test the released model against TV tuned on the training patches; write metrics.json and the figures."""
    console = Console()
    console.print("tuning total variation on the training patches, testing ...", highlight=False)
    regularizer, config = load_regularizer(run)
    some = samples.select(slice(0, TV_PATCHES))
    tv = tune_tv(some.clean.cpu(), some.degraded.cpu())
    denoiser = Denoiser(regularizer, options.sigma / 255, TEST_SEED, tolerance=1e-4)
    tested = side_by_side(partial(compare, denoiser, tv), test, options.threads)
    results, rows = [result for result, _ in tested], [row for _, row in tested]
    tv_psnr = [psnr(row.tv, row.truth) for row in rows]
    tv_ssim = [ssim(row.tv, row.truth) for row in rows]
    mean = mean_of(results)
    figures = Figures(
        psnr_noisy=mean["psnr_noisy"],
        psnr_tv=sum(tv_psnr) / len(rows),
        psnr=mean["psnr"],
        gain_over_tv=mean["psnr"] - sum(tv_psnr) / len(rows),
        ssim_tv=sum(tv_ssim) / len(rows),
        ssim=mean["ssim"],
    )
    images = [asdict(result) | {"psnr_tv": value} for result, value in zip(results, tv_psnr, strict=True)]
    run.write_metrics(
        {"mean": asdict(figures), "tv_weight": tv.weight, "images": images, "training": config["training"]}
    )
    draw(run, regularizer, rows)
    console.print(
        f"test images: noisy {figures.psnr_noisy:.2f} dB, tuned TV {figures.psnr_tv:.2f} dB, learned {figures.psnr:.2f} dB "
        f"(gain {figures.gain_over_tv:+.2f} dB), SSIM {figures.ssim_tv:.3f} -> {figures.ssim:.3f}\nrun folder: {run.path}",
        highlight=False,
    )


def compare(denoiser: Denoiser, tv: TunedTV, image: Photograph, index: int) -> tuple[ImageResult, Comparison]:
    """One test image, denoised both ways from the same noise."""
    denoised = denoiser.denoise(image, index)
    smooth = tv_denoise(denoised.noisy.unsqueeze(0), tv.weight)[0]
    return denoised.figures(), Comparison(image.name, denoised.noisy, smooth, denoised.estimate, image.pixels)


def draw(run: RunFolder, regularizer: Learned, rows: list[Comparison]) -> None:
    """All figures of a run (a network has no potentials to draw)."""
    comparison(rows, run.figures / "comparison.png")
    training_curves(run.read_history(), run.figures / "training.png")
    if isinstance(regularizer, NetworkRegularizer):
        bank = regularizer.filters().detach()
        filters(bank, bank.flatten(1).norm(dim=1), run.figures / "filters.png")
        return
    with torch.no_grad():
        potential = regularizer.potential()
        grid = torch.linspace(-0.3, 0.3, 301)
        scale = potential.weight * potential.smoothing
        values = potential.profile.value(grid.unsqueeze(-1) / potential.smoothing) * scale
        bank = regularizer.filters()
        strength = potential.weight * bank.flatten(1).norm(dim=1)
    filters(bank, strength, run.figures / "filters.png")
    potentials(grid, values.T, run.figures / "potentials.png")


if __name__ == "__main__":
    main()
