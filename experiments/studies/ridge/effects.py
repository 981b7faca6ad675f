"""What one ridge does, to the images and to the bounds."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from experiments.studies.shared.instances import (
    scaled,
)
from piggyback.app.degradations.base import Blur, Degradation
from piggyback.app.images.sources import (
    image_generator,
)
from piggyback.app.report.metrics import psnr
from piggyback.certificates.bounds import local_bound
from piggyback.certificates.certify import (
    Certification,
    certify,
    examine,
)
from piggyback.hypergradients.implicit import ImplicitCG
from piggyback.hypergradients.on_demand import OnDemand
from piggyback.problems.pair import Accuracy
from piggyback.problems.posed import pose
from piggyback.solvers.lower import certified_energy
from piggyback.terms.losses import SquaredError
from regularizers.linear import LinearRegularizer

LOOSE, TIGHT = Accuracy(1e-4, 1e-2), Accuracy(1e-9, 1e-8)

FACTORS = (0.5, 1.0, 2.0)
"""Each ridge gets the best of these multiples of the run's weights, so that
none is blamed for weights tuned to another."""


@dataclass(frozen=True)
class RidgeRow:
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
    problem = regularizer.problem(degradation.data_term(observed))
    # the adjoint is not wanted: any loss will do
    loss = SquaredError(torch.zeros_like(observed))
    pair = ImplicitCG().differentiate(problem, loss, Accuracy(3e-4, 1.0))
    return pair.x


def study(
    regularizer: LinearRegularizer,
    degradation: Degradation,
    clean: Tensor,
    term: str,
) -> RidgeRow:
    """All figures of one data term.

    Args:
        regularizer: with the weights that it was trained with.
        degradation: which the data term belongs to.
        clean: ``(batch, channels, height, width)``, in grey values.
        term: what the data term is called.

    Returns:
        The row; bounds are those of the first image.
    """
    noisy = [
        degradation.observe(x, image_generator(1, index))
        for index, x in enumerate(clean)
    ]
    observed = torch.stack(noisy)
    data = degradation.data_term(observed)
    alone = data.solve(-data.gradient(torch.zeros_like(observed)))
    # without a ridge there is nothing that the weights could be wrong for
    factors = FACTORS if isinstance(degradation, Blur) else (1.0,)
    scores = {}
    for factor in factors:
        weighted = scaled(regularizer, factor)
        scores[factor] = _mean_psnr(
            restored(weighted, degradation, observed), clean
        )
    best = max(scores, key=scores.__getitem__)
    weighted = scaled(regularizer, best)
    ratios = effectivities(weighted, degradation, observed[:1], clean[:1])
    return RidgeRow(
        term=term,
        psnr_degraded=_mean_psnr(observed, clean),
        psnr_alone=_mean_psnr(alone, clean),
        psnr=scores[best],
        factor=best,
        distance=ratios.distance,
        data_distance=ratios.data_distance,
        gradient=ratios.gradient,
        assessed=ratios.assessed,
    )


@dataclass(frozen=True)
class BoundRatios:
    """Bound over true error of a loose pair: of the distance, of the distance
    in ``||.||_H``, of the gradient by norms (eq. 13), of the gradient assessed
    (eq. 24)."""

    distance: float
    data_distance: float
    gradient: float
    assessed: float


def effectivities(
    regularizer: LinearRegularizer,
    degradation: Degradation,
    observed: Tensor,
    clean: Tensor,
) -> BoundRatios:
    """All ratios for one image, in float64.

    Args:
        regularizer: in float32.
        degradation: what the observation comes from.
        observed: ``(1, channels, height, width)``, in grey values.
        clean: the truth, of the same shape.

    Returns:
        The ratios; the true errors are distances to a tight solve.
    """
    exact = copy.deepcopy(regularizer).double()
    data = degradation.data_term(observed.double())
    loss = SquaredError(clean.double())
    posed = pose(exact, data, loss)
    problem = posed.problem
    pair = ImplicitCG().differentiate(problem, loss, LOOSE)
    truth = ImplicitCG().differentiate(problem, loss, TIGHT)
    away = pair.x - truth.x
    energy = float(certified_energy(problem.detached(), pair.x))
    true_energy = float((away * data.hessian(away)).sum().sqrt())
    found = certify(posed, pair, Certification(local_bound))
    _, true_gradient = examine(posed, truth)
    error = float((found.gradient - true_gradient).norm())
    assessed = OnDemand().assess(found.gradient, posed, found.start).bound
    # the energy norm is at least the root of mu times the Euclidean one
    distance = energy / data.strong_convexity**0.5
    return BoundRatios(
        distance=distance / float(away.norm()),
        data_distance=energy / true_energy,
        gradient=found.gradient_error / error,
        assessed=assessed / error,
    )


def _mean_psnr(images: Tensor, clean: Tensor) -> float:
    pairs = zip(images, clean, strict=True)
    return sum(psnr(x, truth) for x, truth in pairs) / len(clean)
