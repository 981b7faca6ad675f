"""What all certificates start from: the residuals of a computed pair and the
curvature around it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from piggyback.batched import ROUNDING_TERMS, inner, norm, per_sample
from piggyback.certificates.coupling import Coupling, CouplingRate, couple
from piggyback.operators.base import LinearOperator
from piggyback.problems.saddle import SaddleProblem
from piggyback.terms.data.base import DataTerm
from piggyback.terms.losses import Loss
from piggyback.terms.potentials import CurvatureBounds, Potential
from piggyback.types import Dual, PerFilter, PerSample, Primal


@dataclass(frozen=True)
class Residuals:
    """The pair and its residuals, in the dtype of the problem (docs/theory.md,
    eq. 10).

    ``error`` bounds ``||x - x*||_H``; ``adjoint`` bounds ``||grad l(x) - A
    P||_{H^{-1}}``; both include rounding. ``value = l(x)``, ``correction = <P,
    grad h(x)>``, ``slope = ||grad l(x)||``. ``size`` and ``correction_size``:
    sums of the absolute values of the numbers that ``value`` and ``correction``
    were computed from, which their rounding is measured against (cancellation
    makes it large beside the results).
    """

    error: PerSample
    adjoint: PerSample
    value: PerSample
    correction: PerSample
    slope: PerSample
    size: PerSample
    correction_size: PerSample


@dataclass(frozen=True)
class PairEvidence:
    """What the certificates of every kind of lower level look at.

    ``residuals`` carry the digits, and so do ``gaps = (-grad h(x), grad l(x) -
    A(x) P)``, the right-hand sides of the Newton corrections (eq. 23).
    ``loss_smoothness``: ``||grad l(x') - grad l(x)||_{H^{-1}}`` is at most this
    over ``strong_convexity`` times ``||x' - x||_H`` (``L_l`` always is such a
    number). ``coupling`` bounds what the change of curvature between ``x`` and
    ``x*`` does to the adjoint. ``bend``: ``|<P, (R'' - R_mean) d>| <= bend <d,
    R_mean d>`` with ``d = x* - x``, ``R''`` the Hessian of ``R`` at ``x`` and
    ``R_mean`` its mean between (eq. 16a); infinite if nothing is known.
    """

    residuals: Residuals
    gaps: tuple[Primal, Primal]
    strong_convexity: float
    loss_smoothness: float
    coupling: CouplingRate
    bend: PerSample

    @property
    def error(self) -> PerSample:
        """``||x - x*||_H``, bounded, in the precision of the sums."""
        return self.residuals.error.to(self.coupling.rate.dtype)

    @property
    def adjoint_residual(self) -> PerSample:
        """``||grad l(x) - A P||_{H^{-1}}``, bounded, in the precision of the
        sums."""
        return self.residuals.adjoint.to(self.coupling.rate.dtype)

    @property
    def distance(self) -> PerSample:
        """Certified ``||x - x*||``."""
        return inflate(self.residuals.error / self.strong_convexity**0.5)


@dataclass(frozen=True)
class Evidence(PairEvidence):
    """The evidence for ``R(x) = f(K x)``.

    Beyond ``residuals`` and ``gaps`` everything feeds sums of non-negative
    terms only, for which single precision (and a final inflation by its
    rounding) is enough, unless their squares leave its range: ``x``, ``P``, ``z
    = K x - shift`` (and ``potential`` without it), ``image = K P``, ``y =
    f'(z)``, ``u = D K P``, ``bounds`` valid for every ``z'`` that the segment
    from ``x`` to ``x*`` can reach, and ``coupling``, which sums up the bounds.
    ``inverse_root = (lower + s)^{-1/2}`` with ``K^T diag(s) K <= mu I``:
    however flat the potential, the data term curves a little (eq. 10b). ``x``
    and ``adjoint`` keep all their digits: their grey value may hide their
    texture.
    """

    coupling: Coupling
    operator: LinearOperator
    potential: Potential
    x: Primal
    adjoint: Primal
    z: Dual
    image: Dual
    y: Dual
    u: Dual
    bounds: CurvatureBounds
    inverse_root: Dual


def saddle_evidence(evidence: PairEvidence, certificate: str) -> Evidence:
    """The same evidence, for a ``certificate`` that needs ``R(x) = f(K x)``;
    raises ``TypeError`` for other problems."""
    if not isinstance(evidence, Evidence):
        raise TypeError(
            f"{certificate} needs the evidence of a SaddleProblem, got {type(evidence).__name__}"
        )
    return evidence


def defined(bound: Tensor) -> Tensor:
    """Infinity where an infinite constant met a zero factor, or a bound
    overflowed."""
    return bound.nan_to_num(nan=torch.inf, posinf=torch.inf)


def inflate(bound: Tensor) -> Tensor:
    """Widen a computed bound by the rounding, and the underflow, of the few
    thousand positive terms it was summed from."""
    kind = torch.finfo(bound.dtype)
    return bound * (1 + ROUNDING_TERMS * kind.eps) + ROUNDING_TERMS * kind.tiny


def gather_evidence(
    problem: SaddleProblem, loss: Loss, x: Primal, adjoint: Primal
) -> tuple[Evidence, PerSample]:
    """The evidence of a pair, at one ``K`` and one ``K^T`` on each of ``x`` and
    ``P``, and the surrogate of eq. 9.

    The autograd gradient of the second value is the hypergradient that the
    certificates bound; the two share ``K``. Residuals are evaluated in the
    dtype of ``problem``, ``x`` and ``adjoint``: float64 makes the rounding
    allowance negligible; in float32 it is honest and wide.
    """
    x, adjoint = x.detach(), adjoint.detach()
    read_off = problem.read_off(x, adjoint)
    with torch.no_grad():
        z, image, y = (
            read_off.z.detach(),
            read_off.image.detach(),
            read_off.y.detach(),
        )
        fixed = problem.detached()
        u = fixed.potential.curvature(z) * image
        slope = loss.gradient(x)
        gradient, gap = fixed.residuals((x, adjoint), (y, u), slope)
        measured = fixed.data.dual_norm(gradient)
        residuals = _residuals(
            fixed, loss, (x, adjoint), y, slope, (gradient, gap), measured
        )
        # the shift is taken out before the digits are: z - shift may be small
        # where z is not
        z = z - fixed.potential.shift
        mu = fixed.data.strong_convexity
        kind, summed = problem.sums, fixed.magnitude(x, y, y.new_zeros(()))
        operator, potential = _in_kind(fixed, kind)
        z, image, y, u = (v.to(kind) for v in (z, image, y, u))
        radius = _row_norms(fixed.data, operator, z) * per_sample(
            residuals.error.to(kind), z
        )
        bounds = potential.bounds(z, radius)
        inverse_root = (bounds.lower + _lent(potential, operator, mu)).rsqrt_()
        finer = measured + _rounding(fixed, x, summed, bounds, inverse_root)
        residuals = replace(residuals, error=torch.fmin(residuals.error, finer))
        evidence = Evidence(
            residuals=residuals,
            gaps=(-gradient, gap),
            operator=operator,
            potential=potential,
            strong_convexity=mu,
            loss_smoothness=loss.smoothness,
            x=x,
            adjoint=adjoint,
            z=z,
            image=image,
            y=y,
            u=u,
            bounds=bounds,
            inverse_root=inverse_root,
            coupling=couple(operator, bounds, radius, image, mu, inverse_root),
            bend=_bend(potential, radius, image),
        )
    return evidence, read_off.value


_SMALLEST, _LARGEST = 1e-12, 1e12
"""Squares of numbers in between, and of their products with ordinary constants,
are in the range of single precision."""


def kind_of_sums(
    problem: SaddleProblem, loss: Loss, x: Primal, adjoint: Primal
) -> torch.dtype:
    """Single precision if the numbers that certificates square suit it (zero
    does), else double (synchronises).

    The largest entries of ``x``, ``P`` and the slope of the loss in every
    sample, and the constants that make the rest of them.
    """
    if x.numel() == 0:
        return torch.float32
    with torch.no_grad():
        potential, reach = (
            problem.potential,
            problem.operator.norm_bound().reshape(1),
        )
        arrays = (x, adjoint, loss.gradient(x))
        peaks = [array.abs().flatten(1).amax(1).double() for array in arrays]
        peaks += [
            v.detach().double().flatten()
            for v in (potential.weight, potential.max_curvature(), reach)
        ]
        values = torch.cat(peaks)
        return torch.float32 if bool(_suits(values).all()) else torch.float64


def _suits(values: Tensor) -> Tensor:
    return (values == 0) | ((values >= _SMALLEST) & (values <= _LARGEST))


def _in_kind(
    problem: SaddleProblem, kind: torch.dtype
) -> tuple[LinearOperator, Potential]:
    """Operator and potential (without its shift) for the sums."""
    if kind == torch.float32:
        return problem.operator.single(), problem.potential.centred().single()
    return problem.operator.double(), problem.potential.centred().double()


def _row_norms(data: DataTerm, operator: LinearOperator, z: Dual) -> Tensor:
    """At least ``||k_i||_{H^{-1}}`` for each row (eq. 11)."""
    plain = operator.row_norms(z) / data.strong_convexity**0.5
    inverse = data.inverse_kernel()
    exact = None if inverse is None else operator.dual_row_norms(z, inverse)
    return plain if exact is None else torch.minimum(plain, exact)


def _residuals(
    problem: SaddleProblem,
    loss: Loss,
    pair: tuple[Primal, Primal],
    y: Dual,
    slope: Primal,
    gaps: tuple[Primal, Primal],
    measured: PerSample,
) -> Residuals:
    """``measured``: ``||grad h(x)||_{H^{-1}}`` as computed."""
    (x, adjoint), (gradient, gap), data = pair, gaps, problem.data
    value = loss.value(x)
    steepness, force, stiffness = (
        norm(slope),
        norm(adjoint),
        problem.stiffness(),
    )
    lost = problem.magnitude(x, y, stiffness)
    adjoint_lost = steepness + (data.smoothness + 2 * stiffness) * force
    unit = (
        ROUNDING_TERMS
        * data.unit_roundoff(x.dtype)
        / data.strong_convexity**0.5
    )
    return Residuals(
        error=measured + unit * lost,
        adjoint=data.dual_norm(gap) + unit * adjoint_lost,
        value=value,
        correction=inner(adjoint, gradient),
        slope=steepness,
        size=value.abs() + steepness * norm(x),
        correction_size=force * (norm(gradient) + lost),
    )


def _lent(
    potential: Potential, operator: LinearOperator, modulus: float
) -> PerFilter:
    """Curvatures ``s`` with ``K^T diag(s) K <= modulus I`` (eq. 10b): what the
    data term has to give to flat coefficients.

    Half of them alike, half in proportion to the largest curvatures of the
    potential: a stiff coefficient has a large slope where it is flat, and needs
    more.
    """
    largest = potential.max_curvature()
    alike = torch.ones_like(largest) / operator.norm_bound().square()
    stiff = largest / operator.norm_bound(largest).square()
    together = alike + stiff
    return together * (modulus / operator.norm_bound(together).square())


def _rounding(
    problem: SaddleProblem,
    x: Primal,
    summed: PerSample,
    bounds: CurvatureBounds,
    inverse_root: Dual,
) -> PerSample:
    """What rounding adds to ``||grad h(x)||_{H^{-1}}`` in a bound of ``||x -
    x*||_H``, knowing the curvature (eq. 10c).

    ``summed``: the ``magnitude`` of all but ``K x``; ``bounds`` hold on
    intervals around ``K x`` wider than its rounding.
    """
    data, operator = problem.data, problem.operator
    moved = inflate(
        norm(bounds.upper * inverse_root * operator.row_norms(bounds.upper))
    ).to(x.dtype)
    return (
        ROUNDING_TERMS
        * data.unit_roundoff(x.dtype)
        * (summed / data.strong_convexity**0.5 + 2 * moved * norm(x))
    )


_LEAST = 1e-2
"""Below it the factor of ``_bend`` is a half up to one per cent, and single
precision would lose its digits."""


def _bend(potential: Potential, radius: Dual, image: Dual) -> PerSample:
    """``max_i |K P|_i M_i phi(M_i radius_i)`` with ``M = |f'''|/f''`` and
    ``phi(x) = (x / (1 - e^-x) - 1) / x`` (eq. 16a)."""
    rate = potential.concordance()
    x = (rate * radius).clamp(min=_LEAST)
    factor = (x / -torch.expm1(-x) - 1) / x
    return (image.abs() * (rate * factor)).flatten(1).amax(1)
