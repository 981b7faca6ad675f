"""Certificates for smooth energies: residuals, and the constants of the energy
(docs/theory.md, section N)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from piggyback.batched import ROUNDING_TERMS, inner, norm, per_sample
from piggyback.certificates.bounds import adjoint_error
from piggyback.certificates.coupling import CouplingRate
from piggyback.certificates.evidence import PairEvidence
from piggyback.certificates.residuals import Measured, Residuals, with_rounding
from piggyback.certificates.rounding import defined, inflate, rounding_unit
from piggyback.problems.groups import GradientBound
from piggyback.problems.smooth import SmoothProblem
from piggyback.terms.energies import EnergyBounds, FunctionalBound, PairBounds
from piggyback.terms.losses import Loss
from piggyback.types import PerSample, Primal


@dataclass(frozen=True)
class SmoothEvidence(PairEvidence):
    """The evidence for a smooth energy.

    Args:
        bounds: of the energy, on the ball around ``x`` that contains ``x*``.
        pair: of what the pair sees of it, on the same ball.
        force: ``||P||``, ``(batch,)``.
    """

    bounds: EnergyBounds
    pair: PairBounds
    force: PerSample


@dataclass(frozen=True)
class Examined:
    """What every certificate of a smooth energy measures of a pair, whatever it
    knows of the energy.

    Args:
        residuals: with the rounding that needs no knowledge of the energy.
        measured: what they were computed from.
        product: ``D^2 R(x) P``.
        read_off: the surrogate of eq. 9, ``(batch,)``, differentiable in the
            parameters.
    """

    residuals: Residuals
    measured: Measured
    product: Primal
    read_off: PerSample

    @property
    def gaps(self) -> tuple[Primal, Primal]:
        """As in ``PairEvidence``."""
        return self.measured.right_sides


def examine_pair(
    problem: SmoothProblem, loss: Loss, x: Primal, adjoint: Primal
) -> Examined:
    """Residuals at the cost of one gradient and one Hessian product.

    Args:
        problem: in float64.
        loss: upper-level loss of the primal variable.
        x: approximate solution in float64, ``(batch, ...)``.
        adjoint: approximate ``P``, likewise.
    """
    x = x.detach()
    adjoint = adjoint.detach()
    read_off = problem.surrogate(x, adjoint)
    with torch.no_grad():
        fixed = problem.detached()
        measured, product = _measured(fixed, loss, x, adjoint)
        residuals = with_rounding(
            fixed.data,
            loss,
            x,
            adjoint,
            measured,
        )
    return Examined(residuals, measured, product, read_off)


def _measured(
    problem: SmoothProblem, loss: Loss, x: Primal, adjoint: Primal
) -> tuple[Measured, Primal]:
    """The residuals and their sizes, and ``D^2 R P``, which certificates need
    again."""
    data = problem.data
    slope = loss.gradient(x)
    gradient, size = problem.gradient_and_rounding(x)
    product = problem.regularizer_hessian(
        problem.curvature(x),
        adjoint,
    )
    gap = problem.adjoint_residual_from(product, adjoint, slope)
    steepness = norm(slope)
    force = norm(adjoint)
    stiffness = problem.stiffness()
    # where nothing bounds the Hessian, the rounding of the product is modelled
    # by its size
    applied = torch.where(
        torch.isfinite(stiffness), 2 * stiffness * force, norm(product)
    )
    measured = Measured(
        gradient=gradient,
        gap=gap,
        distance=data.dual_norm(gradient),
        slope=steepness,
        force=force,
        gradient_size=size,
        gap_size=steepness + data.smoothness * force + applied,
    )
    return measured, product


def gather_smooth_evidence(
    problem: SmoothProblem, loss: Loss, x: Primal, adjoint: Primal
) -> tuple[SmoothEvidence, PerSample]:
    """The evidence of a pair, at one gradient and one Hessian product, and the
    surrogate of eq. 9.

    Args:
        problem: in float64.
        loss: upper-level loss of the primal variable.
        x: approximate solution in float64, ``(batch, ...)``.
        adjoint: approximate ``P``, likewise.

    Returns:
        The evidence, and a value ``(batch,)`` whose autograd gradient is the
        hypergradient that the certificates bound.
    """
    found = examine_pair(problem, loss, x, adjoint)
    with torch.no_grad():
        fixed = problem.detached()
        mu = fixed.data.strong_convexity
        # the ball comes from the coarse allowance: it only has to contain x*
        radius = found.residuals.error / mu**0.5
        bounds = fixed.regularizer.bounds(x, radius)
        pair = fixed.regularizer.pair_bounds(x, adjoint, radius, mu)
        lost = _finer_rounding(
            fixed,
            x,
            bounds,
            pair.rounding,
            radius,
        )
        finer = found.measured.distance + lost
        # fmin: where the finer allowance is not defined, the coarse one holds
        error = torch.fmin(found.residuals.error, finer)
        force = norm(adjoint)
        energy = _energy_norm(fixed, adjoint, found.product)
        evidence = SmoothEvidence(
            residuals=replace(found.residuals, error=error),
            gaps=found.gaps,
            strong_convexity=mu,
            loss_smoothness=loss.smoothness,
            coupling=_couple(bounds, pair, error, force, energy, mu),
            hessian_variation=_hessian_variation(
                bounds,
                pair,
                error / mu**0.5,
            ),
            bounds=bounds,
            pair=pair,
            force=force,
        )
    return evidence, found.read_off


def _energy_norm(
    problem: SmoothProblem, adjoint: Primal, product: Primal
) -> PerSample:
    """At least ``||P||_R``, rounding included, from ``product = D^2 R P``."""
    # the square is not negative; as computed it may be
    energy = inner(adjoint, product).clamp(min=0)
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
    of_data = data.smoothness * (norm(x) + norm(data.start))
    flat = of_data + norm(lost.flat)
    summed = flat / data.strong_convexity**0.5
    # along R the allowance is measured at x, and x* has another Hessian
    turned = torch.exp(0.5 * bounds.concordance * radius)
    along = 2 * turned * norm(lost.bent)
    return defined(
        rounding_unit(data, x.dtype) * (summed + norm(lost.whole) + along)
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
    absolute = bounds.third * force / mu
    relative = bounds.concordance * turned * energy / mu**0.5
    local = turned.sqrt() * torch.fmin(
        0.5 * pair.turn,
        pair.shared_turn,
    )
    # each may be infinite, or undefined, where the others are not
    rate = torch.fmin(
        torch.fmin(absolute, relative),
        local,
    )
    whole = bounds.hessian * force / mu**0.5
    return CouplingRate(
        rate=inflate(defined(rate)),
        whole=inflate(defined(whole)),
        # the Hessian of a smooth energy does not jump
        rest=torch.zeros_like(force),
    )


def _hessian_variation(
    bounds: EnergyBounds, pair: PairBounds, radius: PerSample
) -> PerSample:
    """The constant of eq. 16b: ``D^2 R`` at ``x`` and its mean differ by half
    the turn, but for its growth (eq. N31)."""
    grown = 0.5 * torch.exp(0.5 * bounds.concordance * radius)
    # never more than the whole turn, however fast it may grow
    share = torch.fmin(
        grown,
        torch.ones_like(radius),
    )
    return inflate(defined(share * pair.turn))


def smooth_bound(evidence: SmoothEvidence) -> GradientBound:
    """Bound of ``grad L - G``, the smaller one of eqs. N10 and N32.

    Args:
        evidence: of the pair that ``G`` was read off.

    Returns:
        One group, ``parameters``, ``(batch,)``: the whole gradient; infinite if
        nothing is known of the energy.
    """
    with torch.no_grad():
        constants = _from_constants(evidence)
        whole = torch.fmin(constants, _from_pair(evidence))
        return GradientBound({"parameters": inflate(defined(whole))})


def _from_constants(evidence: SmoothEvidence) -> PerSample:
    """Eq. N10."""
    bounds = evidence.bounds
    root = evidence.strong_convexity**0.5
    distance = evidence.residuals.error / root
    away = adjoint_error(evidence) / root
    # the mixed derivative at x meets what P lacks, its change the whole P*
    of_adjoint = bounds.mixed * away
    of_solution = bounds.mixed_lipschitz * distance * (evidence.force + away)
    return of_adjoint + of_solution


def _from_pair(evidence: SmoothEvidence) -> PerSample:
    """Eq. N32: the functionals where ``P* - P`` and ``x* - x`` can be, half
    discs but for what the coupling adds."""
    residuals = evidence.residuals
    root = evidence.strong_convexity**0.5
    # P* - P in two parts: what it would be with the Hessian at x ...
    moved = (
        evidence.loss_smoothness * residuals.error / evidence.strong_convexity
    )
    settled = moved + residuals.adjoint
    # ... and what the change of the Hessian adds in any direction, so that
    # nothing is known of it but its length
    turned = evidence.coupling.change(evidence.error)
    first = evidence.pair.mixed
    anywhere = torch.hypot(
        first.flat / root,
        first.bent,
    )
    adjoint = _on_half_disc(first, root) * per_sample(
        settled, anywhere
    ) + anywhere * per_sample(turned, anywhere)
    adjoint = adjoint + first.whole * per_sample(settled + turned, anywhere)
    second = evidence.pair.mixed_turn
    primal = _on_half_disc(second, root) + second.whole
    return norm(adjoint) + norm(primal) * residuals.error


def _on_half_disc(functional: FunctionalBound, root: float) -> Tensor:
    """Largest ``flat alpha / mu^{1/2} + bent beta`` with ``alpha^2 + beta^2 <=
    alpha``, ``(batch, groups)``."""
    # the disc has its centre at 1/2 on the flat axis, and the radius 1/2
    flat = functional.flat / root
    return 0.5 * (flat + torch.hypot(flat, functional.bent))
