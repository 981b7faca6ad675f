"""How much the curvature can change between ``x`` and ``x*``, reduced to a few numbers per sample."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from piggyback.batched import norm
from piggyback.terms.potentials import CurvatureBounds
from piggyback.types import Dual, PerSample, Scalar


@dataclass(frozen=True)
class CurvatureChange:
    """Numbers per sample from which eqs. 12, 13 and 16 are assembled.

    With ``c = jump |K P|`` and ``s = third |K P|``, over the coefficients treated in the energy norm:
    ``energy = ||c / sqrt(lo)||``, ``energy_third = max s / lo``, ``dual = ||c / sqrt(hi)||``,
    ``dual_third = max s / sqrt(lo hi)``; over the additive ones: ``rest = ||c||``, ``rest_third = max s``,
    ``rest_dual = ||c / sqrt(hi)||``, ``rest_dual_third = max s / sqrt(hi)``.

    A coefficient is additive where its curvature may vanish or jump, or is so small (below ``mu/||K||^2``) that dividing
    by it costs more than passing through ``||K||``.  Any split gives valid bounds.
    """

    energy: PerSample
    energy_third: PerSample
    dual: PerSample
    dual_third: PerSample
    rest: PerSample
    rest_third: PerSample
    rest_dual: PerSample
    rest_dual_third: PerSample


def curvature_change(bounds: CurvatureBounds, image: Dual, threshold: Scalar) -> CurvatureChange:
    """One pass over the coefficients (``image = K P``); everything later works on ``(batch,)`` numbers."""
    image = image.abs()
    good = (bounds.lower > threshold) & torch.isfinite(bounds.third)
    inverse_lower = torch.where(good, bounds.lower.rsqrt(), 0.0)
    inverse_upper = bounds.upper.clamp(min=torch.finfo(image.dtype).tiny).rsqrt()
    change = bounds.jump * image
    third = _finite_product(bounds.third, image)  # a kink: infinite even if K P = 0
    dual, dual_third = change * inverse_upper, _finite_product(third, inverse_upper)
    third_good, dual_third_good = torch.where(good, third, 0.0), torch.where(good, dual_third, 0.0)
    return CurvatureChange(
        energy=norm(change * inverse_lower),
        energy_third=_peak(third_good * inverse_lower.square()),
        dual=norm(torch.where(good, dual, 0.0)),
        dual_third=_peak(dual_third_good * inverse_lower),
        rest=norm(torch.where(good, 0.0, change)),
        rest_third=_peak(torch.where(good, 0.0, third)),
        rest_dual=norm(torch.where(good, 0.0, dual)),
        rest_dual_third=_peak(torch.where(good, 0.0, dual_third)),
    )


def _peak(v: Dual) -> PerSample:
    return v.flatten(1).amax(1)


def _finite_product(third: Dual, factor: Dual) -> Dual:
    """``third * factor`` where ``inf * 0`` stays infinite."""
    return (third * factor).nan_to_num_(nan=torch.inf, posinf=torch.inf)
