"""The baseline certificate from global constants, with its cross terms
(docs/theory.md, eq. 17)."""

from __future__ import annotations

import torch
from torch import Tensor

from piggyback.batched import norm
from piggyback.certificates.evidence import (
    Evidence,
    PairEvidence,
    defined,
    inflate,
    saddle_evidence,
)
from piggyback.problems.groups import GradientBound
from piggyback.types import PerSample


def worst_case_bound(evidence: PairEvidence) -> GradientBound:
    """Bound of ``grad L - G`` from ``mu``, ``||K||``, ``max f''`` and the
    Lipschitz constant of ``f''``.

    Infinite for potentials whose curvature jumps (Huber): the constants do not
    exist.
    """
    with torch.no_grad():
        return _bound(saddle_evidence(evidence, "worst_case_bound"))


def _bound(evidence: Evidence) -> GradientBound:
    potential, operator = evidence.potential, evidence.operator
    mu, reach = evidence.strong_convexity, operator.norm_bound()
    distance = evidence.error / mu**0.5
    curvature, third = potential.max_curvature(), potential.max_third()
    bend = (
        third.max() * reach * distance * evidence.image.abs().flatten(1).amax(1)
    )
    adjoint = (
        evidence.loss_smoothness * distance + reach * bend
    ) / mu + evidence.adjoint_residual / mu**0.5
    y_change = curvature.max() * reach * distance
    u_change = curvature.max() * reach * adjoint + bend
    filters = operator.gain() * (
        _product(norm(evidence.adjoint), adjoint, norm(evidence.y), y_change)
        + _product(norm(evidence.x), distance, norm(evidence.u), u_change)
    )
    pair = norm(evidence.image), reach * adjoint
    slope, mixed = (
        potential.weight_derivative(evidence.z),
        potential.smoothing_derivative(evidence.z),
    )
    moved = reach * distance
    bent = norm(potential.curvature(evidence.z))
    groups = {
        "operator": filters,
        "weight": _per_coefficient(
            pair, norm(slope), curvature / potential.weight, moved
        ),
        "smoothing": _per_coefficient(
            pair, norm(mixed), potential.mixed_lipschitz(), moved
        ),
        "shift": _per_coefficient(pair, bent, third, moved),
    }
    if potential.emphasis is not None:
        field = _product(
            norm(evidence.image), reach * adjoint, norm(evidence.y), y_change
        )
        groups["emphasis"] = field * potential.emphasis.pull_back(
            torch.ones_like(evidence.image)
        )
    bound = GradientBound(groups)
    return bound.converted(lambda part: inflate(defined(part)))


def _product(
    a: PerSample, a_change: PerSample, b: PerSample, b_change: PerSample
) -> PerSample:
    """Change of a bilinear form whose factors have norms ``a``, ``b`` and move
    by at most the given amounts."""
    return a * b_change + b * a_change + a_change * b_change


def _per_coefficient(
    pair: tuple[PerSample, PerSample],
    factor: PerSample,
    lipschitz: Tensor,
    moved: PerSample,
) -> Tensor:
    """Bound of ``|<K P*, q(z*)> - <K P, q(z)>|`` for each coefficient's
    Lipschitz constant: ``(batch, coefficients)``."""
    image, image_change = pair
    change = moved.unsqueeze(-1) * lipschitz
    return (image + image_change).unsqueeze(-1) * change + (
        factor * image_change
    ).unsqueeze(-1)
