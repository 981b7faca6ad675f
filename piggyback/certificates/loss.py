"""The corrected loss: second-order accurate, with an interval that holds
(docs/theory.md, eq. 16)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from piggyback.certificates.evidence import PairEvidence
from piggyback.certificates.rounding import defined, inflate, sum_allowance
from piggyback.types import PerSample


@dataclass(frozen=True)
class LossInterval:
    """``|l(x*) - value| <= radius``, per sample.

    Args:
        value: ``(batch,)``, in the units of the loss.
        radius: ``(batch,)``; infinite where nothing certifies it.
    """

    value: PerSample
    radius: PerSample


def plain_loss(evidence: PairEvidence) -> LossInterval:
    """``l(x)`` with the first-order bound ``||grad l|| d + L_l d^2 / 2``, ``d``
    the certified distance.

    Args:
        evidence: of any kind of problem; ``P`` does not matter.
    """
    residuals = evidence.residuals
    distance = evidence.distance
    linear = residuals.slope * distance
    quadratic = 0.5 * evidence.loss_smoothness * distance.square()
    radius = inflate(defined(linear + quadratic))
    return LossInterval(
        residuals.value,
        radius + sum_allowance(residuals.size),
    )


def corrected_loss(evidence: PairEvidence) -> LossInterval:
    """``l(x) - <P, grad h(x)>`` and its error bound, of second order in the
    residuals (eq. 16).

    Args:
        evidence: of any kind of problem.
    """
    residuals = evidence.residuals
    settled = _settled(evidence)
    # two bounds of the same error: the coupling rate is the better one close to
    # the solution, the variation of the Hessian far from it
    apart = settled + _curvature_change(evidence)
    together = _together(evidence, settled)
    # fmin: an undefined bound does not spoil the other
    radius = inflate(defined(torch.fmin(apart, together)))
    # value and correction may cancel: each brings its own rounding
    size = residuals.size + residuals.correction_size
    return LossInterval(
        residuals.value - residuals.correction,
        radius.to(size) + sum_allowance(size),
    )


def _settled(evidence: PairEvidence) -> PerSample:
    """The error of eq. 16 if the curvature were the same at ``x*``: that of
    ``P``, and the curvature of the loss."""
    r = evidence.error
    mu = evidence.strong_convexity
    linear = evidence.adjoint_residual * r
    quadratic = 0.5 * evidence.loss_smoothness * r.square() / mu
    return linear + quadratic


def _curvature_change(evidence: PairEvidence) -> PerSample:
    """What the change of curvature adds to eq. 16."""
    coupling = evidence.coupling
    r = evidence.error
    # a half: the mean of the curvature on the segment has moved half as far as
    # its end; that of coefficients that jump may have moved at once
    rate = 0.5 * coupling.rate * r + coupling.rest
    return r * torch.minimum(rate, coupling.whole)


def _together(evidence: PairEvidence, settled: PerSample) -> PerSample:
    """Largest value of ``a r_P + a^2 L_l / (2 mu) + beta (r a - a^2)`` over ``0
    <= a <= r`` (eq. 16b).

    ``settled``: the value at ``a = r``.
    """
    r = evidence.error
    beta = evidence.hessian_variation
    linear = evidence.adjoint_residual + beta * r
    mu = evidence.strong_convexity
    excess = beta - 0.5 * evidence.loss_smoothness / mu
    # the parabola has its top within [0, r]; elsewhere it rises up to r
    inside = linear < 2 * excess * r
    # where there is no top, 1 keeps the quotient finite; it is not used
    width = torch.where(inside, excess, 1.0)
    top = linear.square() / (4 * width)
    largest = torch.where(inside, top, settled)
    return torch.where(
        torch.isfinite(beta),
        largest,
        torch.inf,
    )
