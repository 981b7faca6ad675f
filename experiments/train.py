"""Train a convex regularizer for denoising or deblurring by bilevel learning with certified hypergradients.

python -m experiments.train denoise --train DIR --test DIR --sigma 25 --out RUN
python -m experiments.train deblur --blur gaussian --sigma 2.55 --train DIR --test DIR --out RUN
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from jsonargparse import ArgumentParser
from rich.console import Console

from experiments.baselines import TunedTV, tune_tv, tv_restore
from experiments.blur_kernels import blur_kernel
from experiments.data import Photograph, load_photographs, split_check
from experiments.degradations import EDGES, Blur, Degradation, Noise, edges_named
from experiments.errors import UserError, one_line_errors
from experiments.evaluate import ImageResult, Restorer, mean_of, side_by_side, tested_degradation
from experiments.metrics import psnr, ssim
from experiments.model_file import Learned, load_regularizer
from experiments.report import Comparison, comparison, filters, potentials, training_curves
from experiments.restoration import TOLERANCE
from experiments.run_folder import RunFolder
from experiments.runtime import Device, available_cores, choose_device, prepare
from experiments.training import Source, Trainer, TrainingPlan
from piggyback.bilevel import Samples
from piggyback.hypergradient.base import Accuracy
from piggyback.solvers.lower import radius_per_element, solve_lower
from piggyback.solvers.nonlinear_cg import NonlinearCG
from regularizers.adaptive import AdaptiveRegularizer, WeightConfig
from regularizers.icnn import NetworkConfig, NetworkRegularizer
from regularizers.kernels import measured_plan
from regularizers.lifted_regularizer import LiftedRegularizer
from regularizers.linear import LinearConfig, LinearRegularizer

TEST_SEED = 1
TV_PATCHES = 64
START_PATCHES, START_TOLERANCE, START_SMOOTHING = 8, 3e-3, 0.005
START_FACTORS = (0.0125, 0.025, 0.05, 0.1, 0.2, 0.4)
ADJOINT_TOLERANCE = 0.1


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
    parser.add_argument("task", choices=["denoise", "deblur"], help="what to undo")
    parser.add_argument(
        "--regularizer",
        choices=["auto", "adaptive", "linear", "icnn"],
        default="auto",
        help="adaptive: weights that depend on the observation; linear: one per filter; icnn: an input-convex network; "
        "auto: adaptive for denoise",
    )
    parser.add_argument("--train", type=Path | None, help="folder of training images (default: embedded photographs)")
    parser.add_argument("--test", type=Path | None, help="folder of test images, never trained on (default: embedded)")
    parser.add_argument(
        "--sigma", type=float | None, help="noise, in grey levels of 255 (default: 25 for denoise, 2.55 for deblur)"
    )
    parser.add_argument(
        "--blur", default="gaussian", help="gaussian (9x9), uniform (9x9), motion (15x15), or a file: image, .npy, text"
    )
    parser.add_argument("--blur-std", type=float, default=1.5, help="of the Gaussian blur, in pixels")
    parser.add_argument("--blur-seed", type=int, default=0, help="of the motion blur")
    parser.add_argument("--ridge", type=float, default=1e-3, help="of the deblurring data term")
    parser.add_argument(
        "--edges", choices=list(EDGES), default="circular", help="what training patches are beyond their border"
    )
    parser.add_argument("--out", type=Path | None, help="run folder (default: runs/denoise or runs/deblur)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="continue the interrupted run in --out")
    parser.add_argument("--device", choices=["cpu", "cuda", "auto"], default="auto")
    parser.add_argument("--budget", type=float, default=150.0, help="seconds of training proper")
    parser.add_argument(
        "--stochastic",
        type=float,
        default=0.8,
        help="part of the budget for mini-batches, before the certified descent",
    )
    parser.add_argument("--steps", type=int, default=100_000, help="most steps on mini-batches")
    parser.add_argument("--iterations", type=int, default=100_000, help="most steps of the certified descent")
    parser.add_argument("--minibatch", type=int, default=8, help="fresh patches per step")
    parser.add_argument("--rate", type=float, default=8e-3, help="step size of the steps on mini-batches")
    parser.add_argument(
        "--report-every", type=int, default=50, help="steps on mini-batches between reports and checkpoints"
    )
    parser.add_argument("--colour", action="store_true", help="keep colour (default: convert to grey)")
    parser.add_argument("--filters", type=int, default=32)
    parser.add_argument("--size", type=int, default=7, help="filters of size x size pixels")
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 16], help="icnn: channels of the hidden layers")
    parser.add_argument("--inner", type=int, default=1, help="icnn: side of the kernels between hidden layers")
    parser.add_argument(
        "--form",
        choices=["nested", "lifted"],
        default="nested",
        help="icnn: nested softplus network, or ReLU network whose hidden layers are variables (slow: for small sizes)",
    )
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
        "--tolerance", type=float, default=1e-3, help="coarsest RMS error of x, in grey values of [0, 1]"
    )
    return parser


@dataclass(frozen=True)
class Options:
    """The parsed command line."""

    task: str
    regularizer: str
    train: Path | None
    test: Path | None
    sigma: float | None
    blur: str
    blur_std: float
    blur_seed: int
    ridge: float
    edges: str
    out: Path | None
    seed: int
    resume: bool
    device: Device
    budget: float
    stochastic: float
    steps: int
    iterations: int
    minibatch: int
    rate: float
    report_every: int
    colour: bool
    filters: int
    size: int
    widths: list[int]
    inner: int
    form: str
    profile: str
    boundary: str
    patches: int
    patch: int
    batch: int
    measure_kernels: bool
    threads: int
    tolerance: float

    def __post_init__(self) -> None:
        positive = (
            "ridge", "budget", "minibatch", "rate", "report_every", "patches", "patch", "batch", "threads", "tolerance",
        )  # fmt: skip
        for name in positive:
            if not getattr(self, name) > 0:
                raise UserError(f"--{name.replace('_', '-')} must be positive, got {getattr(self, name)}")
        if self.form == "lifted" and self.regularizer != "icnn":
            raise UserError(f"--form lifted is a form of networks: it needs --regularizer icnn, not {self.regularizer}")
        if self.sigma is not None and not self.sigma > 0:
            raise UserError(f"--sigma must be positive, got {self.sigma}")
        if not (
            0 <= self.stochastic <= 1 and self.steps >= 0 and self.iterations >= 0 and self.steps + self.iterations > 0
        ):
            raise UserError(
                "nothing to do: --stochastic must lie in [0, 1], --steps and --iterations be non-negative, not both 0"
            )

    def folder(self) -> Path:
        return Path("runs") / self.task if self.out is None else self.out

    def family(self) -> str:
        """The regularizer: adaptive weights look at the observation, which should resemble the image."""
        if self.regularizer != "auto":
            return self.regularizer
        return "adaptive" if self.task == "denoise" else "linear"

    def degradation(self) -> Degradation:
        """What the run learns to undo.  Raises ``UserError`` for a blur that cannot be had."""
        if self.task == "denoise":
            return Noise((25.0 if self.sigma is None else self.sigma) / 255)
        kernel = blur_kernel(self.blur, self.blur_std, self.blur_seed)
        return Blur(
            kernel, (2.55 if self.sigma is None else self.sigma) / 255, self.ridge, edges_named(self.edges), self.blur
        )

    def plan(self) -> TrainingPlan:
        return TrainingPlan(
            degradation=self.degradation(),
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
            report_every=self.report_every,
        )


@one_line_errors()
def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    options = Options(**build_parser().parse_args(arguments).as_dict())
    prepare(threads=1)  # one thread per solve: --threads solves run side by side
    device = choose_device(options.device)
    train, test = photographs(options)
    plan, channels, folder = options.plan(), 3 if options.colour else 1, options.folder()
    run, checkpoint = RunFolder.resume(folder) if options.resume else (RunFolder.create(folder), None)
    source = Source(train, plan.degradation, plan.patch, channels, device)
    samples = source.draw(plan.patches, torch.Generator().manual_seed(plan.seed))
    regularizer = new_regularizer(options, plan.degradation, samples)
    with run:
        trainer = Trainer(run, regularizer, samples, source, plan)
        reason = trainer.train(checkpoint)
        Console(stderr=True).print(f"stopped: {reason.value} after {trainer.seconds():.0f} s", highlight=False)
        report(run, samples, test, plan.degradation, options.threads)


def photographs(options: Options) -> tuple[list[Photograph], list[Photograph]]:
    """Training and test images; raises ``UserError`` if an image is in both."""
    train = load_photographs(options.train, "train", options.colour)
    test = load_photographs(options.test, "test", options.colour)
    split_check(train, test)
    return train, test


def new_regularizer(options: Options, degradation: Degradation, samples: Samples) -> Learned:
    """Seeded start.  ``--measure-kernels`` may change the last digits of a run: kernels differ in rounding."""
    try:
        regularizer = _started(options, degradation, samples).to(samples.clean.device)
    except ValueError as error:
        raise UserError(str(error)) from error
    if options.measure_kernels and isinstance(regularizer, LinearRegularizer):
        regularizer.plan = measured_plan(regularizer.filters(), samples.clean[: options.batch])
    return regularizer


def _started(options: Options, degradation: Degradation, samples: Samples) -> Learned:
    """Raises ``ValueError`` for an impossible architecture."""
    sigma, channels = degradation.sigma, samples.clean.shape[1]
    generator = torch.Generator().manual_seed(options.seed)
    if options.family() == "icnn":
        widths = tuple(options.widths)
        network = NetworkConfig.for_noise(sigma, widths, options.size, options.inner, channels, options.boundary)
        if options.form == "lifted":
            return LiftedRegularizer(replace(network, activation="relu"), generator=generator)
        return NetworkRegularizer(network, generator)
    config = LinearConfig.for_noise(sigma, options.filters, options.size, channels, options.profile, options.boundary)
    if isinstance(degradation, Blur):
        config = start_for_blur(config, degradation, samples, options.seed)
    if options.family() == "adaptive":
        return AdaptiveRegularizer(config, WeightConfig(contrast=2 * sigma), generator)
    return LinearRegularizer(config, generator)


def start_for_blur(config: LinearConfig, blur: Blur, samples: Samples, seed: int) -> LinearConfig:
    """The architecture with those of a few starting weights that restore a few patches best: blurs differ too much to guess.

    Smoothings start at one grey level of 255, as rough as goes without losing quality: finer ones cost many more steps.
    """
    few = samples.select(slice(0, START_PATCHES))
    config = replace(config, smoothing=START_SMOOTHING, smoothing_floor=START_SMOOTHING / 4)

    def start(factor: float) -> LinearConfig:
        return replace(config, gradient_weight=factor * config.gradient_weight, weight=factor * config.weight)

    def error(factor: float) -> float:
        regularizer = LinearRegularizer(start(factor), torch.Generator().manual_seed(seed)).to(few.clean.device)
        problem = regularizer.problem(blur.data_term(few.degraded)).detached()
        (x,) = solve_lower(problem, NonlinearCG(), radius_per_element(problem, START_TOLERANCE)).result
        return float((x - few.clean).square().mean())

    return start(min(START_FACTORS, key=error))


def report(run: RunFolder, samples: Samples, test: list[Photograph], degradation: Degradation, threads: int) -> None:
    """Test the released model against TV tuned on the training patches; write metrics.json and the figures."""
    console = Console()
    console.print("tuning total variation on the training patches, testing ...", highlight=False)
    regularizer, config = load_regularizer(run)
    some = samples.select(slice(0, TV_PATCHES))
    tv = tune_tv(some.clean.cpu(), degradation.data_term(some.degraded.cpu()))
    restorer = Restorer(regularizer, tested_degradation(config, str(run.path)), TEST_SEED, TOLERANCE)
    tested = side_by_side(partial(compare, restorer, tv), test, threads)
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


def compare(restorer: Restorer, tv: TunedTV, image: Photograph, index: int) -> tuple[ImageResult, Comparison]:
    """One test image, restored both ways from the same observation."""
    degradation, example = restorer.degradation, restorer.restore(image, index)
    smooth = degradation.visible(tv_restore(degradation.data_term(example.observed.unsqueeze(0)), tv.weight))[0]
    row = Comparison(image.name, example.noisy, smooth, example.estimate, example.image.pixels)
    return example.figures(), row


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
