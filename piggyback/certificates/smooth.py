"""Certificates for smooth energies: residuals, and the constants of the energy
(docs/theory.md, section N)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from piggyback.batched import ROUNDING_TERMS, inner, norm, per_sample
from piggyback.certificates.bounds import adjoint_error
from piggyback.certificates.coupling import CouplingRate
from piggyback.certificates.evidence import (
    PairEvidence,
    Residuals,
    defined,
    inflate,
)
from piggyback.problems.groups import GradientBound
from piggyback.problems.smooth import SmoothProblem
from piggyback.terms.energies import EnergyBounds, FunctionalBound, PairBounds
from piggyback.terms.losses import Loss
from piggyback.types import PerSample, Primal


@dataclass(frozen=True)
class SmoothEvidence(PairEvidence):
    """The evidence for a smooth energy: ``bounds`` and ``pair`` hold on the
    ball around ``x`` that contains ``x*``.

    ``force = ||P||``.
    """

    bounds: EnergyBounds
    pair: PairBounds
    force: PerSample


@dataclass(frozen=True)
class Examined:
    """What every certificate of a smooth energy measures of a pair, whatever it
    knows of the energy.

    ``gaps`` as in ``PairEvidence``; ``measured = ||grad h(x)||_{H^{-1}}`` as
    computed; ``bent = D^2 R P``; ``read_off``: the surrogate of eq. 9,
    differentiable in the parameters.
    """

    residuals: Residuals
    gaps: tuple[Primal, Primal]
    measured: PerSample
    bent: Primal
    read_off: PerSample


def examine_pair(
    problem: SmoothProblem, loss: Loss, x: Primal, adjoint: Primal
) -> Examined:
    """Residuals at the cost of one gradient and one Hessian product;
    ``problem``, ``x`` and ``adjoint`` in float64."""
    x, adjoint = x.detach(), adjoint.detach()
    read_off = problem.surrogate(x, adjoint)
    with torch.no_grad():
        fixed, slope = problem.detached(), loss.gradient(x)
        gradient, size = fixed.gradient_and_rounding(x)
        bent = fixed.bend(fixed.curvature(x), adjoint)
        gap = slope - (fixed.data.hessian(adjoint) + bent)
        measured = fixed.data.dual_norm(gradient)
        residuals = _residuals(
            fixed,
            loss,
            (x, adjoint),
            (gradient, gap),
            measured,
            slope,
            size,
            bent,
        )
        return Examined(residuals, (-gradient, gap), measured, bent, read_off)


def gather_smooth_evidence(
    problem: SmoothProblem, loss: Loss, x: Primal, adjoint: Primal
) -> tuple[SmoothEvidence, PerSample]:
    """The evidence of a pair, at one gradient and one Hessian product, and the
    surrogate of eq. 9.

    ``problem``, ``x`` and ``adjoint`` in float64.
    """
    found = examine_pair(problem, loss, x, adjoint)
    with torch.no_grad():
        fixed, force = problem.detached(), norm(adjoint)
        mu = fixed.data.strong_convexity
        radius = found.residuals.error / mu**0.5
        bounds = fixed.regularizer.bounds(x, radius)
        pair = fixed.regularizer.pair_bounds(x, adjoint, radius, mu)
        finer = found.measured + _finer_rounding(
            fixed, x, bounds, pair.rounding, radius
        )
        residuals = replace(
            found.residuals, error=torch.fmin(found.residuals.error, finer)
        )
        coupling = _couple(
            bounds,
            pair,
            residuals.error,
            force,
            _energy_norm(fixed, adjoint, found.bent),
            mu,
        )
        return SmoothEvidence(
            residuals=residuals,
            gaps=found.gaps,
            strong_convexity=mu,
            loss_smoothness=loss.smoothness,
            coupling=coupling,
            bend=_bend(bounds, pair, residuals.error / mu**0.5),
            bounds=bounds,
            pair=pair,
            force=force,
        ), found.read_off


def _energy_norm(
    problem: SmoothProblem, adjoint: Primal, bent: Primal
) -> PerSample:
    """At least ``||P||_R``, rounding included, from ``bent = D^2 R P``."""
    energy = inner(adjoint, bent).clamp(min=0)
    lost = (
        ROUNDING_TERMS
        * torch.finfo(adjoint.dtype).eps
        * problem.stiffness()
        * inner(adjoint, adjoint)
    )
    return (energy + lost).sqrt()


def _finer_rounding(
    problem: SmoothProblem,
    x: Primal,
    bounds: EnergyBounds,
    lost: FunctionalBound,
    radius: PerSample,
) -> PerSample:
    """What rounding adds to ``||grad h(x)||_{H^{-1}}`` as a bound of ``||x -
    x*||_H``, in the energy norm (eq. N30)."""
    data = problem.data
    summed = (
        data.smoothness * (norm(x) + norm(data.start)) + norm(lost.flat)
    ) / data.strong_convexity**0.5
    turned = torch.exp(0.5 * bounds.concordance * radius)
    return defined(
        ROUNDING_TERMS
        * data.unit_roundoff(x.dtype)
        * (summed + norm(lost.whole) + 2 * turned * norm(lost.bent))
    )


def _couple(
    bounds: EnergyBounds,
    pair: PairBounds,
    error: PerSample,
    force: PerSample,
    energy: PerSample,
    mu: float,
) -> CouplingRate:
    """Eqs. N9 and N31: the smallest of the absolute, the relative and the local
    rate."""
    turned = torch.exp(bounds.concordance * error / mu**0.5)
    relative = bounds.concordance * turned * energy / mu**0.5
    local = turned.sqrt() * torch.fmin(0.5 * pair.turn, pair.shared_turn)
    rate = torch.fmin(torch.fmin(bounds.third * force / mu, relative), local)
    whole = bounds.hessian * force / mu**0.5
    return CouplingRate(
        inflate(defined(rate)), inflate(defined(whole)), torch.zeros_like(force)
    )


def _bend(
    bounds: EnergyBounds, pair: PairBounds, radius: PerSample
) -> PerSample:
    """The constant of eq. 16a: ``D^2 R`` at ``x`` and its mean differ by half
    the turn, but for its growth (eq. N31)."""
    share = torch.fmin(
        0.5 * torch.exp(0.5 * bounds.concordance * radius),
        torch.ones_like(radius),
    )
    return inflate(defined(share * pair.turn))


def _residuals(
    problem: SmoothProblem,
    loss: Loss,
    pair: tuple[Primal, Primal],
    gaps: tuple[Primal, Primal],
    measured: PerSample,
    slope: Primal,
    size: PerSample,
    bent: Primal,
) -> Residuals:
    (x, adjoint), (gradient, gap), data = pair, gaps, problem.data
    value, steepness, force = loss.value(x), norm(slope), norm(adjoint)
    unit = (
        ROUNDING_TERMS
        * data.unit_roundoff(x.dtype)
        / data.strong_convexity**0.5
    )
    stiffness = problem.stiffness()
    # where nothing bounds the Hessian, the rounding of the product is modelled
    # by its size
    applied = torch.where(
        torch.isfinite(stiffness), 2 * stiffness * force, norm(bent)
    )
    return Residuals(
        error=measured + unit * size,
        adjoint=data.dual_norm(gap)
        + unit * (steepness + data.smoothness * force + applied),
        value=value,
        correction=inner(adjoint, gradient),
        slope=steepness,
        size=value.abs() + steepness * norm(x),
        correction_size=force * (norm(gradient) + size),
    )


def smooth_bound(evidence: SmoothEvidence) -> GradientBound:
    """Bound of ``grad L - G``, the smaller one of eqs. N10 and N32; infinite if
    nothing is known of the energy.

    The whole gradient is one group, ``parameters``.
    """
    with torch.no_grad():
        whole = torch.fmin(_from_constants(evidence), _from_pair(evidence))
        return GradientBound({"parameters": inflate(defined(whole))})


def _from_constants(evidence: SmoothEvidence) -> PerSample:
    """Eq. N10."""
    bounds, root = evidence.bounds, evidence.strong_convexity**0.5
    distance, away = (
        evidence.residuals.error / root,
        adjoint_error(evidence) / root,
    )
    return bounds.mixed * away + bounds.mixed_lipschitz * distance * (
        evidence.force + away
    )


def _from_pair(evidence: SmoothEvidence) -> PerSample:
    """Eq. N32: the functionals where ``P* - P`` and ``x* - x`` can be, half
    discs but for what the coupling adds."""
    residuals, root = evidence.residuals, evidence.strong_convexity**0.5
    turned = evidence.coupling.change(evidence.error)
    settled = (
        evidence.loss_smoothness * residuals.error / evidence.strong_convexity
        + residuals.adjoint
    )
    first, second = evidence.pair.mixed, evidence.pair.mixed_turn
    anywhere = torch.hypot(first.flat / root, first.bent)
    adjoint = _on_half_disc(first, root) * per_sample(
        settled, anywhere
    ) + anywhere * per_sample(turned, anywhere)
    adjoint = adjoint + first.whole * per_sample(settled + turned, anywhere)
    primal = _on_half_disc(second, root) + second.whole
    return norm(adjoint) + norm(primal) * residuals.error


def _on_half_disc(functional: FunctionalBound, root: float) -> Tensor:
    """Largest ``flat alpha / mu^{1/2} + bent beta`` with ``alpha^2 + beta^2 <=
    alpha``, ``(batch, groups)``."""
    flat = functional.flat / root
    return 0.5 * (flat + torch.hypot(flat, functional.bent))
