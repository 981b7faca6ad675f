"""How the curvature change between ``x`` and ``x*`` couples the errors of ``x``
and ``P`` (docs/theory.md, section 5.2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from piggyback.batched import norm, per_sample
from piggyback.operators.base import LinearOperator
from piggyback.terms.potentials import CurvatureBounds
from piggyback.types import Dual, PerSample


@dataclass(frozen=True)
class CouplingRate:
    """``sup |<a, (A* - A) P>|`` over ``||a||_{A*} <= 1`` is at most ``rate ||x*
    - x||_H + rest``, and at most ``whole`` (eq. 12).

    Args:
        rate: ``(batch,)``, per unit of ``||x* - x||_H``.
        whole: ``(batch,)``, however far ``x*`` is.
        rest: ``(batch,)``, of coefficients whose curvature may jump.
    """

    rate: PerSample
    whole: PerSample
    rest: PerSample

    def change(self, error: PerSample) -> PerSample:
        """Bound of that supremum (eq. 12).

        Args:
            error: ``(batch,)``, at least ``||x* - x||_H``.
        """
        return torch.minimum(
            self.rate * error + self.rest,
            self.whole,
        )


@dataclass(frozen=True)
class Coupling(CouplingRate):
    """Bounds of ``w = (D* - D) K P``, coefficient by coefficient and as a
    whole.

    ``rate`` is a number with ``K^T diag(steep) K <= rate (H + K^T diag(lower)
    K)`` (eq. 12a). ``whole`` and ``rest`` are ``||jump / lifted^{1/2}||`` over
    all coefficients and over those apart.

    Args:
        jump: ``|w| <= jump``.
        steep: ``|w| <= steep |K(x* - x)|`` outside of ``apart``.
        apart: coefficients that ``rest`` pays for; there ``steep`` is 0.
    """

    jump: Dual
    steep: Dual
    apart: Dual


def couple(
    operator: LinearOperator,
    bounds: CurvatureBounds,
    radius: Dual,
    image: Dual,
    modulus: float,
    inverse_root: Dual,
) -> Coupling:
    """The coupling from what is known of the curvature around ``x``.

    Args:
        operator: ``K``.
        bounds: hold within ``radius`` of ``K x``.
        radius: of every coefficient, in the units of ``K x``.
        image: ``K P``.
        modulus: ``mu``.
        inverse_root: that of eq. 10b.
    """
    size = image.abs()
    jump = bounds.jump * size
    # alone, a coefficient costs steepness * radius * row in the rate, or jump *
    # ||K|| apart from it: take the cheaper
    share = operator.row_norms(image) / operator.norm_bound()
    # negated, so that a steepness that is not defined counts as the dearer one
    apart = ~(bounds.steepness * radius * share <= bounds.jump)
    steep = (bounds.steepness * size).masked_fill_(apart, 0.0)
    weighted = jump * inverse_root
    return Coupling(
        rate=_rate(operator, steep, bounds.lower, modulus),
        whole=norm(weighted),
        rest=norm(torch.where(apart, weighted, 0.0)),
        jump=jump,
        steep=steep,
        apart=apart,
    )


_HALVINGS = 6
_SPAN = 1e-4
"""Smallest rate that is looked for, relative to the one that needs no curvature
at all."""


def _rate(
    operator: LinearOperator, steep: Dual, lower: Dual, modulus: float
) -> PerSample:
    """A ``rate`` with ``||K^T diag((steep - rate lower)_+) K|| <= rate mu``
    (eq. 12a)."""
    # The left-hand side falls with the rate, so each look halves the interval
    # (of the logarithm). Its upper end is valid throughout, beginning with
    # ||K^T diag(steep) K|| / mu: whenever the search stops, it is a bound.
    plain = operator.gram_norm(steep) / modulus
    # a zero coupling would have no logarithm
    highest = plain + torch.finfo(steep.dtype).tiny
    lowest = _SPAN * highest
    for _ in range(_HALVINGS):
        rate = (lowest * highest).sqrt()
        lifted = per_sample(rate, lower)
        excess = torch.addcmul(
            steep,
            lower,
            lifted,
            value=-1,
        ).clamp_(min=0)
        valid = operator.gram_norm(excess) <= rate * modulus
        highest = torch.where(valid, rate, highest)
        lowest = torch.where(valid, lowest, rate)
    return highest
