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

import copy
from dataclasses import asdict, dataclass

import torch
from rich.table import Table
from torch import Tensor

from experiments.studies.shared.instances import (
    blurred_run,
    scaled,
    trained_regularizer,
)
from piggyback.app.console.command import command
from piggyback.app.console.runtime import prepare
from piggyback.app.console.terminal import Terminal
from piggyback.app.degradations.base import Blur, Degradation, Noise
from piggyback.app.errors import UserError
from piggyback.app.evaluate import keeps_colour
from piggyback.app.files.outputs import Outputs
from piggyback.app.images.sources import (
    central_crop,
    image_generator,
    load_photographs,
)
from piggyback.app.options.parser import SIDE, Parser, path, whole
from piggyback.app.report.metrics import psnr
from piggyback.certificates.bounds import local_bound
from piggyback.certificates.certify import Certification, assemble, examine
from piggyback.hypergradients.implicit import ImplicitCG
from piggyback.hypergradients.on_demand import OnDemand
from piggyback.operators.counting import ApplicationCounter
from piggyback.problems.pair import Accuracy, Sensitivity
from piggyback.solvers.lower import certified_energy
from piggyback.terms.data.base import DataTerm
from piggyback.terms.losses import SquaredError
from regularizers.linear import LinearRegularizer

RIDGES = (1e-1, 1e-2, 1e-3, 1e-4)
LOOSE, TIGHT = Accuracy(1e-4, 1e-2), Accuracy(1e-9, 1e-8)
FACTORS = (0.5, 1.0, 2.0)
"""Each ridge gets the best of these multiples of the run's weights, so that
none is blamed for weights tuned to another."""


@dataclass(frozen=True)
class Row:
    """One data term: PSNR in dB of the observations, of the data term alone and
    of the regularizer, and bounds over errors."""

    term: str
    psnr_degraded: float
    psnr_alone: float
    psnr: float
    factor: float
    distance: float
    data_distance: float
    gradient: float
    assessed: float


def restored(
    regularizer: LinearRegularizer, degradation: Degradation, observed: Tensor
) -> Tensor:
    """Solutions to an RMS error of 3e-4 grey values."""
    pair = ImplicitCG().differentiate(
        regularizer.problem(degradation.data_term(observed)),
        SquaredError(torch.zeros_like(observed)),
        Accuracy(3e-4, 1.0),
    )
    return pair.x


def study(
    regularizer: LinearRegularizer,
    degradation: Degradation,
    clean: Tensor,
    term: str,
) -> Row:
    """All figures of one data term on ``clean`` ``(batch, channels, height,
    width)``."""
    observed = torch.stack(
        [
            degradation.observe(x, image_generator(1, index))
            for index, x in enumerate(clean)
        ]
    )
    data = degradation.data_term(observed)
    alone = data.solve(-data.gradient(torch.zeros_like(observed)))
    factors = FACTORS if isinstance(degradation, Blur) else (1.0,)
    images = {
        factor: restored(scaled(regularizer, factor), degradation, observed)
        for factor in factors
    }
    scores = {factor: _mean_psnr(x, clean) for factor, x in images.items()}
    best = max(scores, key=scores.__getitem__)
    ratios = effectivities(
        scaled(regularizer, best), degradation, observed[:1], clean[:1]
    )
    return Row(
        term,
        _mean_psnr(observed, clean),
        _mean_psnr(alone, clean),
        scores[best],
        best,
        *ratios,
    )


def effectivities(
    regularizer: LinearRegularizer,
    degradation: Degradation,
    observed: Tensor,
    clean: Tensor,
) -> tuple[float, float, float, float]:
    """Bound over true error of a loose pair: distance, distance in ``||.||_H``,
    gradient by norms, gradient assessed."""
    exact = copy.deepcopy(regularizer).double()
    data, loss = (
        degradation.data_term(observed.double()),
        SquaredError(clean.double()),
    )
    problem, counter = exact.problem(data), ApplicationCounter()
    pair = ImplicitCG().differentiate(problem, loss, LOOSE)
    truth = ImplicitCG().differentiate(problem, loss, TIGHT)
    away = pair.x - truth.x
    energy = float(certified_energy(problem.detached(), pair.x))
    true_energy = float((away * data.hessian(away)).sum().sqrt())
    evidence, gradient = examine(exact, data, loss, pair, counter)
    bound = assemble(
        exact, pair, evidence, gradient, Certification(local_bound), counter
    ).gradient_error
    error = float((gradient - _gradient(exact, data, loss, truth)).norm())
    assessed = OnDemand().assess(exact, data, loss, pair).bound
    return (
        energy / data.strong_convexity**0.5 / float(away.norm()),
        energy / true_energy,
        bound / error,
        assessed / error,
    )


def _gradient(
    regularizer: LinearRegularizer,
    data: DataTerm,
    loss: SquaredError,
    pair: Sensitivity,
) -> Tensor:
    return examine(regularizer, data, loss, pair, ApplicationCounter())[1]


def _mean_psnr(images: Tensor, clean: Tensor) -> float:
    return sum(
        psnr(x, truth) for x, truth in zip(images, clean, strict=True)
    ) / len(clean)


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(
        "python -m experiments.studies.ridge",
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
    parser.add_argument(
        "--json", type=path, help="write the figures to this file"
    )
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
    for photograph in photographs:
        if min(photograph.pixels.shape[-2:]) < options.side:
            raise UserError(
                f"{photograph.name}: is smaller than a crop of --side {options.side} pixels"
            )
    check_fit(blur, options.side)
    figures = Outputs(options.run, options.denoiser).json(
        options.json, ("rows",)
    )
    clean = torch.stack(
        [
            central_crop(photograph.pixels, options.side)
            for photograph in photographs
        ]
    )
    rows = [study(denoiser, Noise(25 / 255), clean, "denoising")]
    for ridge in RIDGES:
        world = blur.with_edges("circular").with_ridge(ridge)
        rows.append(
            study(regularizer, world, clean, f"deblurring, ridge {ridge:g}")
        )
    figures.write_json({"rows": [asdict(row) for row in rows]})
    table = Table(
        "data term",
        "degraded",
        "alone",
        "learned",
        "weights ×",
        "distance",
        "in the data",
        "gradient",
        "assessed",
    )
    for row in rows:
        decibels = (
            f"{value:.2f}"
            for value in (row.psnr_degraded, row.psnr_alone, row.psnr)
        )
        ratios = (
            f"{value:.3g}"
            for value in (
                row.distance,
                row.data_distance,
                row.gradient,
                row.assessed,
            )
        )
        table.add_row(row.term, *decibels, f"{row.factor:g}", *ratios)
    Terminal().print(table)


def check_fit(blur: Blur, side: int) -> None:
    """Raise ``UserError`` for crops that are smaller than the kernel."""
    if max(blur.kernel.shape) > side:
        raise UserError(
            f"--side {side}: the blur of the run has {'x'.join(map(str, blur.kernel.shape))} pixels"
        )
