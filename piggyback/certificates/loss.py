"""The corrected loss: second-order accurate, with an interval that holds
(docs/theory.md, eq. 16)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from piggyback.batched import ROUNDING_TERMS
from piggyback.certificates.evidence import PairEvidence, defined, inflate
from piggyback.types import PerSample


@dataclass(frozen=True)
class LossInterval:
    """``|l(x*) - value| <= radius``, per sample."""

    value: PerSample
    radius: PerSample


def plain_loss(evidence: PairEvidence) -> LossInterval:
    """``l(x)`` with the first-order bound ``||grad l|| d + L_l d^2 / 2``, ``d``
    the certified distance."""
    residuals, distance = evidence.residuals, evidence.distance
    radius = (
        residuals.slope * distance
        + 0.5 * evidence.loss_smoothness * distance.square()
    )
    return LossInterval(
        residuals.value, inflate(defined(radius)) + _rounding(residuals.size)
    )


def corrected_loss(evidence: PairEvidence) -> LossInterval:
    """``l(x) - <P, grad h(x)>`` and its error bound (eq. 16)."""
    residuals, coupling, r = (
        evidence.residuals,
        evidence.coupling,
        evidence.error,
    )
    bent = r * torch.minimum(
        0.5 * coupling.rate * r + coupling.rest, coupling.whole
    )
    quadratic = (
        evidence.adjoint_residual * r
        + 0.5
        * evidence.loss_smoothness
        * r.square()
        / evidence.strong_convexity
    )
    size = residuals.size + residuals.correction_size
    radius = inflate(
        defined(torch.fmin(quadratic + bent, _together(evidence, quadratic)))
    ).to(size) + _rounding(size)
    return LossInterval(residuals.value - residuals.correction, radius)


def _together(evidence: PairEvidence, quadratic: PerSample) -> PerSample:
    """Largest value of ``a r_P + a^2 L_l / (2 mu) + bend (r a - a^2)`` over ``0
    <= a <= r`` (eq. 16b)."""
    r, bend = evidence.error, evidence.bend
    linear = evidence.adjoint_residual + bend * r
    excess = bend - 0.5 * evidence.loss_smoothness / evidence.strong_convexity
    inside = linear < 2 * excess * r  # the parabola has its top there
    top = linear.square() / (4 * torch.where(inside, excess, 1.0))
    return torch.where(
        torch.isfinite(bend), torch.where(inside, top, quadratic), torch.inf
    )


def _rounding(size: PerSample) -> PerSample:
    return ROUNDING_TERMS * torch.finfo(size.dtype).eps * size
