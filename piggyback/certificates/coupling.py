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
    - x||_H + rest``, and at most ``whole``."""

    rate: PerSample
    whole: PerSample
    rest: PerSample

    def change(self, error: PerSample) -> PerSample:
        """Bound of that supremum, if ``error >= ||x* - x||_H`` (eq. 12)."""
        return torch.minimum(self.rate * error + self.rest, self.whole)


@dataclass(frozen=True)
class Coupling(CouplingRate):
    """Bounds of ``w = (D* - D) K P``, coefficient by coefficient and as a
    whole.

    ``|w| <= jump``, and ``|w| <= steep |K(x* - x)|`` outside of ``apart``,
    where ``steep`` is 0. ``rate`` is a number with ``K^T diag(steep) K <= rate
    (H + K^T diag(lower) K)`` (eq. 12a). ``whole`` and ``rest`` are ``||jump /
    lifted^{1/2}||`` over all coefficients and over those apart.
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
    """``bounds`` hold within ``radius``; ``image = K P``; ``inverse_root`` that
    of (10b)."""
    size = image.abs()
    jump = bounds.jump * size
    # alone, a coefficient costs steepness * radius * row in the rate, or jump *
    # ||K|| apart from it: take the cheaper
    share = operator.row_norms(image) / operator.norm_bound()
    apart = ~(bounds.steepness * radius * share <= bounds.jump)
    steep = (bounds.steepness * size).masked_fill_(apart, 0.0)
    weighted = jump * inverse_root
    rest = norm(torch.where(apart, weighted, 0.0))
    rate = _rate(operator, steep, bounds.lower, modulus)
    return Coupling(
        rate, norm(weighted), rest, jump=jump, steep=steep, apart=apart
    )


_HALVINGS = 6
_SPAN = 1e-4
"""Smallest rate that is looked for, relative to the one that needs no curvature
at all."""


def _rate(
    operator: LinearOperator, steep: Dual, lower: Dual, modulus: float
) -> PerSample:
    """A ``rate`` with ``||K^T diag((steep - rate lower)_+) K|| <= rate mu``
    (eq. 12a).

    The left-hand side falls with ``rate``, so each look halves the interval (of
    the logarithm); its upper end is valid throughout, beginning with ``||K^T
    diag(steep) K|| / mu``.
    """
    highest = (
        operator.gram_norm(steep) / modulus + torch.finfo(steep.dtype).tiny
    )
    lowest = _SPAN * highest
    for _ in range(_HALVINGS):
        rate = (lowest * highest).sqrt()
        excess = torch.addcmul(
            steep, lower, per_sample(rate, lower), value=-1
        ).clamp_(min=0)
        valid = operator.gram_norm(excess) <= rate * modulus
        highest, lowest = (
            torch.where(valid, rate, highest),
            torch.where(valid, lowest, rate),
        )
    return highest
