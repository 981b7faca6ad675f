"""The local certificate: energy norms and curvature intervals instead of global
constants (docs/theory.md, section 5)."""

from __future__ import annotations

import torch
from torch import Tensor

from piggyback.batched import norm, per_sample
from piggyback.certificates.evidence import PairEvidence
from piggyback.certificates.rounding import defined, inflate
from piggyback.certificates.saddle import Evidence, saddle_evidence
from piggyback.problems.groups import GradientBound
from piggyback.terms.potentials import Emphasis
from piggyback.types import Dual, PerSample


def local_bound(evidence: PairEvidence) -> GradientBound:
    """Bound of ``grad L - G`` for ``G`` read off a pair (eqs. 12-15b).

    Args:
        evidence: of a pair of a ``SaddleProblem``.

    Returns:
        Per sample the groups ``operator`` ``(batch,)``, ``weight``,
        ``smoothing`` and ``shift`` ``(batch, coefficients)``, and ``emphasis``
        ``(batch,)`` where weights depend on the observation.

    Raises:
        TypeError: for the evidence of other problems.
    """
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
    """Bound of ``||P* - P||_{A*}`` (eq. 12), ``(batch,)``.

    Args:
        evidence: of any kind of problem.
    """
    return inflate(evidence.adjoint_residual + adjoint_move(evidence))


def adjoint_move(evidence: PairEvidence) -> PerSample:
    """What the error of ``x`` contributes to ``adjoint_error``, ``(batch,)``;
    the residual of ``P`` is the rest.

    Args:
        evidence: of any kind of problem.
    """
    r = evidence.error
    # the right-hand side of the adjoint system moves, and so does its matrix
    right_side = evidence.loss_smoothness * r / evidence.strong_convexity
    return defined(right_side + evidence.coupling.change(r))


def _operator_bound(evidence: Evidence, adjoint: PerSample) -> PerSample:
    """``T1 + T2 + T3`` of eq. 13 for all parameters of ``K`` together."""
    operator = evidence.operator
    upper = evidence.bounds.upper
    r = evidence.error
    root_mu = evidence.strong_convexity**0.5
    # the computed x and P are known, x* and P* are not: what the step between
    # them can add is bounded by the largest curvature
    steep = upper.flatten(1).amax(1).sqrt() * operator.gain()
    gain_x = operator.forward_gain(evidence.x, upper)
    along_x = gain_x + steep * r / root_mu
    gain_p = operator.forward_gain(evidence.adjoint, upper)
    along_p = gain_p + steep * adjoint / root_mu
    # hypot: the two parts are measured by the two halves, H and K^T D K, of one
    # norm
    pulled_y = operator.adjoint_gain(evidence.y) / root_mu
    pulled_u = operator.adjoint_gain(evidence.u) / root_mu
    t1 = torch.hypot(pulled_y, along_x) * adjoint
    t2 = torch.hypot(pulled_u, along_p) * r
    return t1 + t2 + _curvature_term(evidence, along_x)


def _curvature_term(evidence: Evidence, along_x: PerSample) -> PerSample:
    """``T3`` of eq. 13: what the change of curvature does to ``u`` at the old
    ``P``."""
    operator = evidence.operator
    coupling = evidence.coupling
    r = evidence.error
    # a coefficient without any curvature has no jump either: 0, not 0/0
    least = torch.finfo(coupling.jump.dtype).tiny
    inverse = evidence.bounds.upper.clamp(min=least).rsqrt_()
    tilted = coupling.jump * inverse
    apart = norm(torch.where(coupling.apart, tilted, 0.0))
    weighted = coupling.steep * evidence.inverse_root
    # steepness bounds the change far out no better than the jump does
    moved = torch.minimum(
        weighted.flatten(1).amax(1) * r,
        norm(coupling.jump),
    )
    root_mu = evidence.strong_convexity**0.5
    further = operator.gain() * moved * r / root_mu
    split = (
        operator.forward_gain(
            evidence.x,
            weighted.square(),
        )
        * r
        + further
        + along_x * apart
    )
    # all jumps at once, or the jumps of some and the slopes of the others: both
    # are bounds
    return torch.minimum(
        along_x * norm(tilted),
        split,
    )


def _over_sites(v: Dual) -> Tensor:
    """Sum over the sites: ``(batch, coefficients)``."""
    # axis by axis: short sums, small rounding
    for _ in range(v.dim() - 2):
        v = v.sum(-2)
    return v


def _coefficient_norm(v: Dual) -> Tensor:
    """Euclidean norm over the sites: ``(batch, coefficients)``."""
    return _over_sites(v.square()).sqrt()


def _away(evidence: Evidence, adjoint: PerSample) -> Tensor:
    """Bound of ``||K_i (P* - P)||`` per coefficient."""
    away = adjoint / evidence.strong_convexity**0.5
    return evidence.operator.coefficient_norms() * away.unsqueeze(-1)


def _along(evidence: Evidence, derivative: Dual, adjoint: PerSample) -> Tensor:
    """Bound of ``|<K(P* - P), derivative>|`` per coefficient (eq. 14)."""
    through = _coefficient_norm(derivative) * _away(evidence, adjoint)
    # in the energy norm no norm of K enters, but flat coefficients are far
    energy = _coefficient_norm(derivative * evidence.inverse_root)
    return torch.minimum(
        through,
        energy * adjoint.unsqueeze(-1),
    )


def _weight_bound(evidence: Evidence, adjoint: PerSample) -> Tensor:
    """Eq. 14: one weight per coefficient."""
    potential = evidence.potential
    upper = evidence.bounds.upper
    steepest = upper
    # without sites each coefficient has one curvature
    if upper.dim() > 2:
        steepest = upper.flatten(1, -2).amax(1)
    away = steepest.sqrt() * _away(evidence, adjoint)
    image = _coefficient_norm(upper.sqrt() * evidence.image) + away
    # f' moves by at most D |K(x* - x)|; half of D goes to either side
    r = evidence.error.unsqueeze(-1)
    change = image * r / potential.weight
    return (
        _along(
            evidence,
            potential.weight_derivative(evidence.z),
            adjoint,
        )
        + change
    )


def _smoothing_bound(evidence: Evidence, adjoint: PerSample) -> Tensor:
    """Eq. 15: one smoothing per coefficient."""
    potential = evidence.potential
    bounds = evidence.bounds
    whole = bounds.mixed * evidence.image.abs()
    # at a kink the derivative jumps: no slope bounds its change, only its size
    kinked = torch.isinf(bounds.mixed_slope)
    slope = bounds.mixed_slope * evidence.image * evidence.inverse_root
    # infinity times zero would be NaN: filled after the product
    slope = slope.masked_fill_(kinked, 0.0)
    r = evidence.error.unsqueeze(-1)
    energy = _coefficient_norm(slope) * r
    kinks = _over_sites(torch.where(kinked, whole, 0.0))
    change = torch.minimum(
        _over_sites(whole),
        energy + kinks,
    )
    away = _away(evidence, adjoint)
    change = change + away * _coefficient_norm(bounds.mixed)
    return (
        _along(
            evidence,
            potential.smoothing_derivative(evidence.z),
            adjoint,
        )
        + change
    )


def _shift_bound(evidence: Evidence, adjoint: PerSample) -> Tensor:
    """Eq. 15a: one shift per coefficient."""
    coupling = evidence.coupling
    r = evidence.error.unsqueeze(-1)
    # the derivative in a shift is -f'', so that the error of P meets D^{1/2} on
    # either side
    root = _coefficient_norm(evidence.bounds.upper.sqrt())
    through = root * adjoint.unsqueeze(-1)
    energy = _coefficient_norm(coupling.steep * evidence.inverse_root) * r
    jumps = torch.where(
        coupling.apart,
        coupling.jump,
        0.0,
    )
    split = energy + _over_sites(jumps)
    return through + torch.minimum(
        _over_sites(coupling.jump),
        split,
    )


def _emphasis_bound(
    evidence: Evidence, emphasis: Emphasis, adjoint: PerSample
) -> PerSample:
    """Eq. 15b: the two parts of ``K P* o f'(z*) - K P o f'(z)``, pulled back to
    the parameters behind the factors."""
    upper = evidence.bounds.upper
    away = per_sample(
        adjoint / evidence.strong_convexity**0.5,
        evidence.image,
    )
    along = evidence.y.abs() * evidence.inverse_root
    # entries of K P*, not of the computed K P
    rows = evidence.operator.row_norms(upper)
    reach = evidence.image.abs() + rows * away
    change = reach * upper.sqrt()
    return (
        emphasis.pull_back(along) * adjoint
        + emphasis.pull_back(change) * evidence.error
    )
