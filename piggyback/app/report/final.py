"""The end of a training run: the released model against TV tuned on the
training patches; metrics.json and the figures."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from piggyback.app.degradations.base import Degradation
from piggyback.app.degradations.noise_range import NoiseRange
from piggyback.app.evaluate import (
    ImageResult,
    Restorer,
    mean_of,
    side_by_side,
    tested_degradation,
)
from piggyback.app.images.sources import Photograph
from piggyback.app.report.baselines import (
    TunedTV,
    Unsolved,
    tune_tv,
    tv_baseline,
)
from piggyback.app.report.figures import (
    Comparison,
    comparison,
    filters,
    potentials,
    training_curves,
)
from piggyback.app.report.metrics import psnr, ssim
from piggyback.app.restoration import TOLERANCE
from piggyback.app.runs.folder import Json, RunFolder
from piggyback.app.runs.model_file import at_level, load_regularizer
from piggyback.certificates.certify import Hypergradient
from piggyback.hypergradients.on_demand import OnDemand
from piggyback.terms.losses import SquaredError
from piggyback.training.samples import Samples
from regularizers.construction import Learned
from regularizers.icnn.regularizer import NetworkRegularizer
from regularizers.linear import LinearRegularizer

TEST_SEED = 1
TV_PATCHES = 64
CERTIFIED_PATCHES, CERTIFIED_BATCH = 16, 4
# columns of an evaluated image that a second run would not repeat
VOLATILE = ("seconds",)


@dataclass(frozen=True)
class ModelCertificate:
    """What is certain of the released model: its mean loss on ``patches``
    training patches, and the gradient of that.

    The exact loss lies in ``[loss_lower, loss_upper]``; ``gradient_error`` is
    the certified distance of the gradient of norm ``gradient_norm`` to the
    exact one (None where nothing certifies it).
    """

    patches: int
    loss: float
    loss_lower: float
    loss_upper: float
    gradient_norm: float
    gradient_error: float | None


@dataclass(frozen=True)
class Figures:
    """Mean decibels over the test images, and the gain over tuned TV (None
    where TV could not be solved)."""

    psnr_noisy: float
    psnr_tv: float | None
    psnr: float
    gain_over_tv: float | None
    ssim_tv: float | None
    ssim: float


def is_reported(run: RunFolder) -> bool:
    """Whether the metrics, which are written last, are those of the model as it
    is."""
    with suppress(OSError, ValueError):
        metrics = json.loads(run.metrics.read_bytes())
        return isinstance(metrics, dict) and metrics.get(
            "model_sha256"
        ) == _fingerprint(run)
    return False


def certificate(
    regularizer: Learned, samples: Samples, degradation: Degradation
) -> ModelCertificate:
    """Refine loss and gradient of the model on ``samples`` until they are
    certain to a few per cent, or say how far that went."""
    results = [
        _certified(regularizer, part, degradation)
        for part in samples.parts(CERTIFIED_BATCH)
    ]
    count = len(samples)
    value = sum(float(result.loss.value.sum()) for result in results) / count
    radius = sum(float(result.loss.radius.sum()) for result in results) / count
    gradient = (
        torch.stack([result.gradient for result in results]).sum(0) / count
    )
    error = sum(result.gradient_error for result in results) / count
    return ModelCertificate(
        patches=count,
        loss=value,
        loss_lower=value - radius,
        loss_upper=value + radius,
        gradient_norm=float(gradient.norm()),
        gradient_error=error if math.isfinite(error) else None,
    )


def _certified(
    regularizer: Learned, part: Samples, degradation: Degradation
) -> Hypergradient:
    data = part.observed(degradation.data_term)
    return OnDemand(rounds=2).differentiate(
        regularizer, data, SquaredError(part.clean), relative_error=0.03
    )


def _in_words(found: ModelCertificate) -> str:
    interval = f"loss in [{found.loss_lower:.4f}, {found.loss_upper:.4f}]"
    error = found.gradient_error
    if error is None or not error < found.gradient_norm:
        gradient = "gradient not certified"
    else:
        gradient = f"gradient norm {found.gradient_norm:.3g} +- {100 * error / found.gradient_norm:.2g} %"
    return (
        f"certified on {found.patches} training patches: {interval}, {gradient}"
    )


def report(
    run: RunFolder,
    samples: Samples,
    test: list[Photograph],
    degradation: Degradation,
    threads: int,
) -> None:
    """Test the released model against TV tuned on the training patches; write
    the figures and metrics.json."""
    console = Console()
    regularizer, config = load_regularizer(run)
    found = certificate(
        regularizer.to(samples.clean.device),
        samples.select(slice(0, CERTIFIED_PATCHES)),
        degradation,
    )
    console.print(_in_words(found), highlight=False)
    regularizer = regularizer.cpu()
    console.print(
        "tuning total variation on the training patches, testing ...",
        highlight=False,
    )
    few = samples.select(slice(0, TV_PATCHES))
    if isinstance(degradation, NoiseRange):
        few = degradation.at_tested_level(few)
    tv = tuned_tv(few, degradation)
    tested = tested_degradation(config, str(run.path))
    restorer = Restorer(
        at_level(regularizer, tested.sigma),
        tested,
        TEST_SEED,
        TOLERANCE,
    )
    tested = side_by_side(partial(compare, restorer, tv), test, threads)
    results, rows = [result for result, _ in tested], [row for _, row in tested]
    figures, tv_psnr = _figures(results, rows)
    if figures.psnr_tv is None:
        console.print(
            "total variation could not be solved for these images: no baseline",
            highlight=False,
        )
    draw(run, regularizer, rows)
    images: list[Json] = [
        _repeatable(result) | {"psnr_tv": value}
        for result, value in zip(results, tv_psnr, strict=True)
    ]
    run.write_metrics(
        {
            "mean": asdict(figures),
            "certificate": asdict(found),
            "tv_weight": None if tv is None else tv.weight,
            "images": images,
            "training": config["training"],
            "model_sha256": _fingerprint(run),
        }
    )
    console.print(
        f"{_summary(figures)}\nrun folder: {run.path}", highlight=False
    )


def tuned_tv(some: Samples, degradation: Degradation) -> TunedTV | None:
    """TV tuned on training patches; None if it cannot be solved for them."""
    with suppress(Unsolved):
        return tune_tv(
            some.clean.cpu(), degradation.data_term(some.degraded.cpu())
        )
    return None


def compare(
    restorer: Restorer, tv: TunedTV | None, image: Photograph, index: int
) -> tuple[ImageResult, Comparison]:
    """One test image, restored both ways from the same observation."""
    degradation, example = restorer.degradation, restorer.restore(image, index)
    smooth = (
        None
        if tv is None
        else tv_baseline(
            degradation.data_term(example.observed.unsqueeze(0)), tv.weight
        )
    )
    seen = None if smooth is None else degradation.visible(smooth)[0]
    row = Comparison(
        image.name, example.noisy, seen, example.estimate, example.image.pixels
    )
    return example.figures(), row


def draw(run: RunFolder, regularizer: Learned, rows: list[Comparison]) -> None:
    """All figures of a run (a network has no potentials to draw); one that
    cannot be drawn is said and left out."""
    jobs: dict[str, Callable[[Path], None]] = {
        "comparison.png": partial(comparison, rows),
        "training.png": partial(training_curves, run.read_history()),
        "filters.png": partial(_draw_filters, regularizer),
    }
    if not isinstance(regularizer, NetworkRegularizer):
        jobs["potentials.png"] = partial(_draw_potentials, regularizer)
    for name, job in jobs.items():
        try:
            job(run.figures / name)
        except (ValueError, ArithmeticError, RuntimeError) as error:
            Console(stderr=True).print(
                f"{name} could not be drawn: {error}", highlight=False
            )


def _figures(
    results: list[ImageResult], rows: list[Comparison]
) -> tuple[Figures, list[float | None]]:
    """The means, and the decibels of TV of every image."""
    mean = mean_of(results)
    tv_psnr = [
        None if row.tv is None else psnr(row.tv, row.truth) for row in rows
    ]
    tv_ssim = [
        None if row.tv is None else ssim(row.tv, row.truth) for row in rows
    ]
    baseline = _mean(tv_psnr)
    figures = Figures(
        psnr_noisy=mean["psnr_noisy"],
        psnr_tv=baseline,
        psnr=mean["psnr"],
        gain_over_tv=None if baseline is None else mean["psnr"] - baseline,
        ssim_tv=_mean(tv_ssim),
        ssim=mean["ssim"],
    )
    return figures, tv_psnr


def _mean(values: list[float | None]) -> float | None:
    """None if one is missing: a mean over other images would not compare."""
    known = [value for value in values if value is not None]
    return sum(known) / len(values) if len(known) == len(values) else None


def _summary(figures: Figures) -> str:
    if figures.psnr_tv is None or figures.ssim_tv is None:
        return f"test images: noisy {figures.psnr_noisy:.2f} dB, learned {figures.psnr:.2f} dB, SSIM {figures.ssim:.3f}"
    return (
        f"test images: noisy {figures.psnr_noisy:.2f} dB, tuned TV "
        f"{figures.psnr_tv:.2f} dB, learned {figures.psnr:.2f} dB "
        f"(gain {figures.gain_over_tv:+.2f} dB), SSIM {figures.ssim_tv:.3f} -> {figures.ssim:.3f}"
    )


def _repeatable(result: ImageResult) -> dict[str, float | str | bool]:
    """The columns of an image without the time it took."""
    return {
        name: value
        for name, value in asdict(result).items()
        if name not in VOLATILE
    }


def _fingerprint(run: RunFolder) -> str:
    return hashlib.sha256(run.model.read_bytes()).hexdigest()


def _draw_filters(regularizer: Learned, path: Path) -> None:
    bank = regularizer.filters().detach()
    strength = bank.flatten(1).norm(dim=1)
    if not isinstance(regularizer, NetworkRegularizer):
        strength = strength * regularizer.potential().weight.detach()
    filters(bank, strength, path)


def _draw_potentials(regularizer: LinearRegularizer, path: Path) -> None:
    with torch.no_grad():
        potential = regularizer.potential()
        grid = torch.linspace(-0.3, 0.3, 301)
        scale = potential.weight * potential.smoothing
        values = (
            potential.penalty.value(grid.unsqueeze(-1) / potential.smoothing)
            * scale
        )
    potentials(grid, values.T, path)
