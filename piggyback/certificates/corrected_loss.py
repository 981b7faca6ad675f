"""The corrected loss: second-order accurate, with an interval that holds (docs/theory.md, eq. 16)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from piggyback.batched import ROUNDING_TERMS
from piggyback.certificates.evidence import PairEvidence, inflate
from piggyback.types import PerSample


@dataclass(frozen=True)
class LossInterval:
    """``|l(x*) - value| <= radius``, per sample."""

    value: PerSample
    radius: PerSample


def plain_loss(evidence: PairEvidence) -> LossInterval:
    """``l(x)`` with the first-order bound ``||grad l|| d + L_l d^2 / 2``, ``d`` the certified distance."""
    residuals, distance = evidence.residuals, evidence.distance
    radius = residuals.slope * distance + 0.5 * evidence.loss_smoothness * distance.square()
    return LossInterval(residuals.value, inflate(radius) + _rounding(residuals.size))


def corrected_loss(evidence: PairEvidence) -> LossInterval:
    """``l(x) - <P, grad h(x)>`` and its error bound (eq. 16)."""
    residuals, coupling, r = evidence.residuals, evidence.coupling, evidence.error
    bent = r * torch.minimum(0.5 * coupling.rate * r + coupling.rest, coupling.whole)
    quadratic = residuals.adjoint.float() * r + 0.5 * evidence.loss_smoothness * r.square() / evidence.strong_convexity
    size = residuals.size + residuals.correction_size
    radius = inflate(quadratic + bent).to(size) + _rounding(size)
    return LossInterval(residuals.value - residuals.correction, radius)


def _rounding(size: PerSample) -> PerSample:
    return ROUNDING_TERMS * torch.finfo(size.dtype).eps * size
