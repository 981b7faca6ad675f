"""Certificates for smooth energies: residuals, and the constants of the energy (docs/theory.md, section N)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from piggyback.batched import ROUNDING_TERMS, inner, norm
from piggyback.certificates.coupling import CouplingRate
from piggyback.certificates.evidence import PairEvidence, Residuals, defined, inflate
from piggyback.certificates.local import GradientBound, adjoint_error
from piggyback.losses import Loss
from piggyback.smooth import SmoothProblem
from piggyback.terms.energies import EnergyBounds
from piggyback.types import PerSample, Primal


@dataclass(frozen=True)
class SmoothEvidence(PairEvidence):
    """The evidence for a smooth energy: ``bounds`` hold on the ball around ``x`` that contains ``x*``; ``force = ||P||``."""

    bounds: EnergyBounds
    force: PerSample


@dataclass(frozen=True)
class Examined:
    """What every certificate of a smooth energy measures of a pair, whatever it knows of the energy.

    ``gaps`` as in ``PairEvidence``; ``bent = D^2 R P``; ``read_off``: the surrogate of eq. 9, differentiable in the parameters.
    """

    residuals: Residuals
    gaps: tuple[Primal, Primal]
    bent: Primal
    read_off: PerSample


def examine_pair(problem: SmoothProblem, loss: Loss, x: Primal, adjoint: Primal) -> Examined:
    """Residuals at the cost of one gradient and one Hessian product; ``problem``, ``x`` and ``adjoint`` in float64."""
    x, adjoint = x.detach(), adjoint.detach()
    read_off = problem.surrogate(x, adjoint)
    with torch.no_grad():
        fixed, slope = problem.detached(), loss.gradient(x)
        gradient, size = fixed.gradient_and_rounding(x)
        bent = fixed.bend(fixed.curvature(x), adjoint)
        gap = slope - (fixed.data.hessian(adjoint) + bent)
        residuals = _residuals(fixed, loss, (x, adjoint), (gradient, gap), slope, size, bent)
        return Examined(residuals, (-gradient, gap), bent, read_off)


def gather_smooth_evidence(
    problem: SmoothProblem, loss: Loss, x: Primal, adjoint: Primal
) -> tuple[SmoothEvidence, PerSample]:
    """The evidence of a pair, at one gradient and one Hessian product, and the surrogate of eq. 9.

    ``problem``, ``x`` and ``adjoint`` in float64.
    """
    pair = examine_pair(problem, loss, x, adjoint)
    with torch.no_grad():
        fixed, force = problem.detached(), norm(adjoint)
        mu = fixed.data.strong_convexity
        bounds = fixed.regularizer.bounds(x, pair.residuals.error / mu**0.5)
        coupling = _couple(bounds, pair.residuals, force, _energy_norm(fixed, adjoint, pair.bent), mu)
        return SmoothEvidence(
            residuals=pair.residuals,
            gaps=pair.gaps,
            strong_convexity=mu,
            loss_smoothness=loss.smoothness,
            coupling=coupling,
            bend=torch.full_like(coupling.rate, torch.inf),
            bounds=bounds,
            force=force,
        ), pair.read_off


def _energy_norm(problem: SmoothProblem, adjoint: Primal, bent: Primal) -> PerSample:
    """At least ``||P||_R``, rounding included, from ``bent = D^2 R P``."""
    energy = inner(adjoint, bent).clamp(min=0)
    lost = ROUNDING_TERMS * torch.finfo(adjoint.dtype).eps * problem.stiffness() * inner(adjoint, adjoint)
    return (energy + lost).sqrt()


def _couple(bounds: EnergyBounds, residuals: Residuals, force: PerSample, energy: PerSample, mu: float) -> CouplingRate:
    """Eq. N9: the smaller of the absolute and of the relative rate."""
    turned = bounds.concordance * residuals.error / mu**0.5
    relative = bounds.concordance * torch.exp(turned) * energy / mu**0.5
    rate = torch.fmin(bounds.third * force / mu, relative)
    whole = bounds.hessian * force / mu**0.5
    return CouplingRate(defined(rate).float(), defined(whole).float(), torch.zeros_like(force).float())


def _residuals(
    problem: SmoothProblem,
    loss: Loss,
    pair: tuple[Primal, Primal],
    gaps: tuple[Primal, Primal],
    slope: Primal,
    size: PerSample,
    bent: Primal,
) -> Residuals:
    (x, adjoint), (gradient, gap), data = pair, gaps, problem.data
    value, steepness, force = loss.value(x), norm(slope), norm(adjoint)
    unit = ROUNDING_TERMS * data.unit_roundoff(x.dtype) / data.strong_convexity**0.5
    stiffness = problem.stiffness()
    # where nothing bounds the Hessian, the rounding of the product is modelled by its size
    applied = torch.where(torch.isfinite(stiffness), 2 * stiffness * force, norm(bent))
    return Residuals(
        error=data.dual_norm(gradient) + unit * size,
        adjoint=data.dual_norm(gap) + unit * (steepness + data.smoothness * force + applied),
        value=value,
        correction=inner(adjoint, gradient),
        slope=steepness,
        size=value.abs() + steepness * norm(x),
        correction_size=force * (norm(gradient) + size),
    )


def smooth_bound(evidence: SmoothEvidence) -> GradientBound:
    """Bound of ``grad L - G`` from the constants of the energy (eq. N10); infinite if they are unknown.

    The whole gradient is one group, ``operator``; the others are empty.
    """
    with torch.no_grad():
        bounds, distance = evidence.bounds, evidence.residuals.error / evidence.strong_convexity**0.5
        moved = adjoint_error(evidence).double() / evidence.strong_convexity**0.5
        whole = bounds.mixed * moved + bounds.mixed_lipschitz * distance * (evidence.force + moved)
        empty = whole.new_zeros(whole.shape[0], 0)
        return GradientBound(inflate(defined(whole).float()), empty, empty, empty, torch.zeros_like(whole))
