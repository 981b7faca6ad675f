"""The local certificate: energy norms and curvature intervals instead of global constants (docs/theory.md, section 5)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from piggyback.certificates.evidence import Evidence, inflate
from piggyback.types import Dual, PerSample


@dataclass(frozen=True)
class GradientBound:
    """Bounds of the hypergradient error per sample and parameter group.

    ``operator`` ``(batch,)`` bounds the Euclidean norm of the error over all parameters of ``K``;
    ``weight`` and ``smoothing`` ``(batch, coefficients)`` bound each component of the potential's groups.
    """

    operator: PerSample
    weight: Tensor
    smoothing: Tensor


def local_bound(evidence: Evidence) -> GradientBound:
    """Bound of ``grad L - G`` for ``G`` read off the pair of ``evidence`` (eqs. 12-15), per sample and group."""
    with torch.no_grad():
        adjoint = adjoint_error(evidence)
        return GradientBound(
            operator=inflate(_operator_bound(evidence, adjoint)),
            weight=inflate(_weight_bound(evidence, adjoint)),
            smoothing=inflate(_smoothing_bound(evidence, adjoint)),
        )


def adjoint_error(evidence: Evidence) -> PerSample:
    """Bound of ``||P* - P||_{A*}`` (eq. 12)."""
    r, mu, change = evidence.error, evidence.strong_convexity, evidence.change
    reach = evidence.operator.norm_bound() / mu**0.5
    energy = torch.minimum(change.energy, r * change.energy_third)
    additive = reach * torch.minimum(change.rest, change.rest_third * reach * r)
    return inflate(evidence.loss_smoothness * r / mu + evidence.residuals.adjoint.float() + energy + additive)


def _dual_adjoint_change(evidence: Evidence) -> PerSample:
    """``t_u``: bound of ``||(D* - D) K P / sqrt(D^hi)||`` (eq. 13)."""
    r, change = evidence.error, evidence.change
    reach = evidence.operator.norm_bound() / evidence.strong_convexity**0.5
    energy = torch.minimum(change.dual, r * change.dual_third)
    return energy + torch.minimum(change.rest_dual, change.rest_dual_third * reach * r)


def _operator_bound(evidence: Evidence, adjoint: PerSample) -> PerSample:
    """``T1 + T2 + T3 + T4`` of eq. 13 for all parameters of ``K`` together."""
    operator, upper, r = evidence.operator, evidence.bounds.upper, evidence.error
    root_mu = evidence.strong_convexity**0.5
    steep = upper.flatten(1).amax(1).sqrt() * operator.gain()
    t1 = operator.adjoint_gain(evidence.y) * adjoint / root_mu
    t2 = (operator.forward_gain(evidence.adjoint, upper) + steep * adjoint / root_mu) * r
    t3 = operator.adjoint_gain(evidence.u) * r / root_mu
    along_x = operator.forward_gain(evidence.x, upper) + steep * r / root_mu
    return t1 + t2 + t3 + along_x * (_dual_adjoint_change(evidence) + adjoint)


def _over_sites(v: Dual) -> Tensor:
    """Sum over the sites: ``(batch, coefficients)``."""
    for _ in range(v.dim() - 2):  # axis by axis: short sums, small rounding
        v = v.sum(-2)
    return v


def _coefficient_norm(v: Dual) -> Tensor:
    """Euclidean norm over the sites: ``(batch, coefficients)``."""
    return _over_sites(v.square()).sqrt()


def _away(evidence: Evidence, adjoint: PerSample) -> Tensor:
    """Bound of ``||K_i (P* - P)||`` per coefficient."""
    return evidence.operator.coefficient_norms() * (adjoint / evidence.strong_convexity**0.5).unsqueeze(-1)


def _along(evidence: Evidence, derivative: Dual, adjoint: PerSample) -> Tensor:
    """Bound of ``|<K(P* - P), derivative>|`` per coefficient (eq. 14)."""
    through = _coefficient_norm(derivative) * _away(evidence, adjoint)
    weighted = torch.where(derivative == 0, derivative, derivative * evidence.bounds.lower.rsqrt())
    return torch.minimum(through, _coefficient_norm(weighted) * adjoint.unsqueeze(-1))


def _weight_bound(evidence: Evidence, adjoint: PerSample) -> Tensor:
    """Eq. 14: one weight per coefficient."""
    potential, upper = evidence.potential, evidence.bounds.upper
    steep = (upper.flatten(1, -2).amax(1) if upper.dim() > 2 else upper).sqrt()
    image = _coefficient_norm(upper.sqrt() * evidence.image) + steep * _away(evidence, adjoint)
    change = image * evidence.error.unsqueeze(-1) / potential.weight
    return _along(evidence, potential.weight_derivative(evidence.z), adjoint) + change


def _smoothing_bound(evidence: Evidence, adjoint: PerSample) -> Tensor:
    """Eq. 15: one smoothing per coefficient."""
    potential, bounds = evidence.potential, evidence.bounds
    good = (bounds.lower > evidence.threshold) & torch.isfinite(bounds.mixed_slope)
    whole = bounds.mixed * evidence.image.abs()
    slope = torch.where(good, bounds.mixed_slope * evidence.image * bounds.lower.rsqrt(), 0.0)
    energy = _coefficient_norm(slope) * evidence.error.unsqueeze(-1)
    change = torch.minimum(_over_sites(whole), energy + _over_sites(torch.where(good, 0.0, whole)))
    change = change + _away(evidence, adjoint) * _coefficient_norm(bounds.mixed)
    return _along(evidence, potential.smoothing_derivative(evidence.z), adjoint) + change
