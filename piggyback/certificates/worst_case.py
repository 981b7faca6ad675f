"""The baseline certificate from global constants, with its cross terms
(docs/theory.md, eq. 17)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from piggyback.batched import norm
from piggyback.certificates.evidence import PairEvidence
from piggyback.certificates.rounding import defined, inflate
from piggyback.certificates.saddle import Evidence, saddle_evidence
from piggyback.problems.groups import GradientBound
from piggyback.terms.potentials import Emphasis
from piggyback.types import PerSample


@dataclass(frozen=True)
class _Change:
    """How far everything that eq. 9 multiplies can move, in Euclidean norms.

    ``x`` and ``adjoint``: the pair; ``y`` and ``u``: its duals.
    """

    x: PerSample
    adjoint: PerSample
    y: PerSample
    u: PerSample


def worst_case_bound(evidence: PairEvidence) -> GradientBound:
    """Bound of ``grad L - G`` from ``mu``, ``||K||``, ``max f''`` and the
    Lipschitz constant of ``f''`` (eq. 17).

    Args:
        evidence: of a pair of a ``SaddleProblem``.

    Returns:
        The groups of ``local_bound``, per sample. Infinite for potentials whose
        curvature jumps (Huber): the constants do not exist.

    Raises:
        TypeError: for the evidence of other problems.
    """
    with torch.no_grad():
        return _bound(saddle_evidence(evidence, "worst_case_bound"))


def _bound(evidence: Evidence) -> GradientBound:
    change = _change(evidence)
    groups = {
        "operator": _operator(evidence, change),
        **_columns(evidence, change),
    }
    emphasis = evidence.potential.emphasis
    if emphasis is not None:
        groups["emphasis"] = _factors(evidence, change, emphasis)
    bound = GradientBound(groups)
    return bound.converted(lambda part: inflate(defined(part)))


def _change(evidence: Evidence) -> _Change:
    potential = evidence.potential
    mu = evidence.strong_convexity
    reach = evidence.operator.norm_bound()
    distance = evidence.error / mu**0.5
    curvature = potential.max_curvature().max()
    third = potential.max_third().max()
    largest = evidence.image.abs().flatten(1).amax(1)
    # the diagonal D* - D, entry by entry, against K P
    bend = third * reach * distance * largest
    moved = evidence.loss_smoothness * distance + reach * bend
    # one inverse Hessian, at most 1/mu; the residual is in its norm already
    adjoint = moved / mu + evidence.adjoint_residual / mu**0.5
    y_change = curvature * reach * distance
    u_change = curvature * reach * adjoint + bend
    return _Change(distance, adjoint, y_change, u_change)


def _operator(evidence: Evidence, change: _Change) -> PerSample:
    """``y (x) P + u (x) x``, the gradient in the entries of ``K``."""
    along_adjoint = _product(
        norm(evidence.adjoint), change.adjoint, norm(evidence.y), change.y
    )
    along_x = _product(
        norm(evidence.x),
        change.x,
        norm(evidence.u),
        change.u,
    )
    return evidence.operator.gain() * (along_adjoint + along_x)


def _columns(evidence: Evidence, change: _Change) -> dict[str, Tensor]:
    """Weights, smoothings and shifts, ``(batch, coefficients)``."""
    potential = evidence.potential
    z = evidence.z
    reach = evidence.operator.norm_bound()
    pair = norm(evidence.image), reach * change.adjoint
    moved = reach * change.x
    curvature = potential.max_curvature()
    return {
        "weight": _per_coefficient(
            pair,
            norm(potential.weight_derivative(z)),
            # f' over the weight, and so its Lipschitz constant
            curvature / potential.weight,
            moved,
        ),
        "smoothing": _per_coefficient(
            pair,
            norm(potential.smoothing_derivative(z)),
            potential.mixed_lipschitz(),
            moved,
        ),
        "shift": _per_coefficient(
            pair,
            # minus the derivative of f' in the shift is its curvature
            norm(potential.curvature(z)),
            potential.max_third(),
            moved,
        ),
    }


def _factors(
    evidence: Evidence, change: _Change, emphasis: Emphasis
) -> PerSample:
    """``K P o f'``, behind the factors of the weights."""
    reach = evidence.operator.norm_bound()
    field = _product(
        norm(evidence.image),
        reach * change.adjoint,
        norm(evidence.y),
        change.y,
    )
    # the norm of the field may sit in any entry
    anywhere = emphasis.pull_back(torch.ones_like(evidence.image))
    return field * anywhere


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
    # a coefficient may hold all of K P, and all of q: global constants do not
    # know which
    at_new_adjoint = (image + image_change).unsqueeze(-1) * change
    at_old_slope = (factor * image_change).unsqueeze(-1)
    return at_new_adjoint + at_old_slope
