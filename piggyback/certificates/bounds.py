"""The local certificate: energy norms and curvature intervals instead of global
constants (docs/theory.md, section 5)."""

from __future__ import annotations

import torch
from torch import Tensor

from piggyback.batched import norm, per_sample
from piggyback.certificates.evidence import (
    Evidence,
    PairEvidence,
    defined,
    inflate,
    saddle_evidence,
)
from piggyback.problems.groups import GradientBound
from piggyback.terms.potentials import Emphasis
from piggyback.types import Dual, PerSample


def local_bound(evidence: PairEvidence) -> GradientBound:
    """Bound of ``grad L - G`` for ``G`` read off the pair of ``evidence`` (eqs.
    12-15b), per sample and group."""
    evidence = saddle_evidence(evidence, "local_bound")
    with torch.no_grad():
        adjoint = adjoint_error(evidence)
        groups = {
            "operator": _operator_bound(evidence, adjoint),
            "weight": _weight_bound(evidence, adjoint),
            "smoothing": _smoothing_bound(evidence, adjoint),
            "shift": _shift_bound(evidence, adjoint),
        }
        if evidence.potential.emphasis is not None:
            groups["emphasis"] = _emphasis_bound(
                evidence, evidence.potential.emphasis, adjoint
            )
        bound = GradientBound(groups)
        return bound.converted(lambda part: inflate(defined(part)))


def adjoint_error(evidence: PairEvidence) -> PerSample:
    """Bound of ``||P* - P||_{A*}`` (eq. 12)."""
    return inflate(evidence.adjoint_residual + adjoint_move(evidence))


def adjoint_move(evidence: PairEvidence) -> PerSample:
    """What the error of ``x`` contributes to ``adjoint_error``; the residual of
    ``P`` is the rest."""
    r, mu = evidence.error, evidence.strong_convexity
    return defined(
        evidence.loss_smoothness * r / mu + evidence.coupling.change(r)
    )


def _operator_bound(evidence: Evidence, adjoint: PerSample) -> PerSample:
    """``T1 + T2 + T3`` of eq. 13 for all parameters of ``K`` together."""
    operator, upper, r = (
        evidence.operator,
        evidence.bounds.upper,
        evidence.error,
    )
    root_mu = evidence.strong_convexity**0.5
    steep = upper.flatten(1).amax(1).sqrt() * operator.gain()
    along_x = operator.forward_gain(evidence.x, upper) + steep * r / root_mu
    along_p = (
        operator.forward_gain(evidence.adjoint, upper)
        + steep * adjoint / root_mu
    )
    t1 = (
        torch.hypot(operator.adjoint_gain(evidence.y) / root_mu, along_x)
        * adjoint
    )
    t2 = torch.hypot(operator.adjoint_gain(evidence.u) / root_mu, along_p) * r
    return t1 + t2 + _curvature_term(evidence, along_x)


def _curvature_term(evidence: Evidence, along_x: PerSample) -> PerSample:
    """``T3`` of eq. 13: what the change of curvature does to ``u`` at the old
    ``P``."""
    operator, coupling, r = evidence.operator, evidence.coupling, evidence.error
    tilted = (
        coupling.jump
        * evidence.bounds.upper.clamp(
            min=torch.finfo(coupling.jump.dtype).tiny
        ).rsqrt_()
    )
    apart = norm(torch.where(coupling.apart, tilted, 0.0))
    weighted = coupling.steep * evidence.inverse_root
    moved = torch.minimum(weighted.flatten(1).amax(1) * r, norm(coupling.jump))
    further = operator.gain() * moved * r / evidence.strong_convexity**0.5
    split = (
        operator.forward_gain(evidence.x, weighted.square()) * r
        + further
        + along_x * apart
    )
    return torch.minimum(along_x * norm(tilted), split)


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
    return evidence.operator.coefficient_norms() * (
        adjoint / evidence.strong_convexity**0.5
    ).unsqueeze(-1)


def _along(evidence: Evidence, derivative: Dual, adjoint: PerSample) -> Tensor:
    """Bound of ``|<K(P* - P), derivative>|`` per coefficient (eq. 14)."""
    through = _coefficient_norm(derivative) * _away(evidence, adjoint)
    return torch.minimum(
        through,
        _coefficient_norm(derivative * evidence.inverse_root)
        * adjoint.unsqueeze(-1),
    )


def _weight_bound(evidence: Evidence, adjoint: PerSample) -> Tensor:
    """Eq. 14: one weight per coefficient."""
    potential, upper = evidence.potential, evidence.bounds.upper
    steep = (upper.flatten(1, -2).amax(1) if upper.dim() > 2 else upper).sqrt()
    image = _coefficient_norm(upper.sqrt() * evidence.image) + steep * _away(
        evidence, adjoint
    )
    change = image * evidence.error.unsqueeze(-1) / potential.weight
    return (
        _along(evidence, potential.weight_derivative(evidence.z), adjoint)
        + change
    )


def _smoothing_bound(evidence: Evidence, adjoint: PerSample) -> Tensor:
    """Eq. 15: one smoothing per coefficient."""
    potential, bounds = evidence.potential, evidence.bounds
    whole = bounds.mixed * evidence.image.abs()
    kinked = torch.isinf(bounds.mixed_slope)
    slope = (
        bounds.mixed_slope * evidence.image * evidence.inverse_root
    ).masked_fill_(kinked, 0.0)
    energy = _coefficient_norm(slope) * evidence.error.unsqueeze(-1)
    change = torch.minimum(
        _over_sites(whole),
        energy + _over_sites(torch.where(kinked, whole, 0.0)),
    )
    change = change + _away(evidence, adjoint) * _coefficient_norm(bounds.mixed)
    return (
        _along(evidence, potential.smoothing_derivative(evidence.z), adjoint)
        + change
    )


def _shift_bound(evidence: Evidence, adjoint: PerSample) -> Tensor:
    """Eq. 15a: one shift per coefficient."""
    coupling, r = evidence.coupling, evidence.error.unsqueeze(-1)
    through = _coefficient_norm(
        evidence.bounds.upper.sqrt()
    ) * adjoint.unsqueeze(-1)
    energy = _coefficient_norm(coupling.steep * evidence.inverse_root) * r
    split = energy + _over_sites(
        torch.where(coupling.apart, coupling.jump, 0.0)
    )
    return through + torch.minimum(_over_sites(coupling.jump), split)


def _emphasis_bound(
    evidence: Evidence, emphasis: Emphasis, adjoint: PerSample
) -> PerSample:
    """Eq. 15b: the two parts of ``K P* o f'(z*) - K P o f'(z)``, pulled back to
    the parameters behind the factors."""
    upper = evidence.bounds.upper
    away = per_sample(adjoint / evidence.strong_convexity**0.5, evidence.image)
    along = evidence.y.abs() * evidence.inverse_root
    reach = evidence.image.abs() + evidence.operator.row_norms(upper) * away
    change = reach * upper.sqrt()
    return (
        emphasis.pull_back(along) * adjoint
        + emphasis.pull_back(change) * evidence.error
    )
