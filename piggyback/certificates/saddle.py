"""The evidence for ``R(x) = f(K x)``: residuals of a pair, and the curvature
around it (docs/theory.md, eqs. 10-11)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from piggyback.batched import norm, per_sample
from piggyback.certificates.coupling import Coupling, couple
from piggyback.certificates.evidence import PairEvidence
from piggyback.certificates.residuals import (
    Measured,
    Residuals,
    with_rounding,
)
from piggyback.certificates.rounding import inflate, rounding_unit
from piggyback.operators.base import LinearOperator
from piggyback.problems.saddle import SaddleProblem, Surrogate
from piggyback.terms.data.base import DataTerm
from piggyback.terms.losses import Loss
from piggyback.terms.potentials import CurvatureBounds, Potential
from piggyback.types import Dual, PerFilter, PerSample, Primal


@dataclass(frozen=True)
class Evidence(PairEvidence):
    """The evidence for ``R(x) = f(K x)``.

    Beyond ``residuals`` and ``gaps`` everything feeds sums of non-negative
    terms only, for which single precision (and a final inflation by its
    rounding) is enough, unless their squares leave its range.

    Args:
        coupling: sums up ``bounds`` (eqs. 12, 12a).
        operator: ``K``.
        potential: ``f`` without its shift.
        x: the solution; keeps all its digits, for its grey value may hide its
            texture.
        adjoint: ``P``, likewise.
        z: ``K x - shift``.
        image: ``K P``.
        y: ``f'(K x)``.
        u: ``D(K x) K P``.
        bounds: of the curvature, valid for every ``z'`` that the segment from
            ``x`` to ``x*`` can reach.
        inverse_root: ``(lower + s)^{-1/2}`` with ``K^T diag(s) K <= mu I``:
            however flat the potential, the data term curves a little (eq.
            10b).
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
    """The same evidence, for a certificate that needs ``R(x) = f(K x)``.

    Args:
        evidence: of any kind of problem.
        certificate: its name, for the message.

    Raises:
        TypeError: for the evidence of other problems.
    """
    if not isinstance(evidence, Evidence):
        raise TypeError(
            f"{certificate} needs the evidence of a SaddleProblem, got {type(evidence).__name__}"
        )
    return evidence


@dataclass(frozen=True)
class _Duals:
    """``z = K x - shift`` and the dual variables of a pair."""

    z: Dual
    image: Dual
    y: Dual
    u: Dual

    def to(self, kind: torch.dtype) -> _Duals:
        return _Duals(
            z=self.z.to(kind),
            image=self.image.to(kind),
            y=self.y.to(kind),
            u=self.u.to(kind),
        )


@dataclass(frozen=True)
class _Surroundings:
    """The curvature where ``K x*`` can be, in the precision of the sums."""

    operator: LinearOperator
    potential: Potential
    radius: Dual
    bounds: CurvatureBounds
    inverse_root: Dual


def gather_evidence(
    problem: SaddleProblem, loss: Loss, x: Primal, adjoint: Primal
) -> tuple[Evidence, PerSample]:
    """The evidence of a pair, at one ``K`` and one ``K^T`` on each of ``x`` and
    ``P``, and the surrogate of eq. 9.

    Residuals are evaluated in the dtype of ``problem``, ``x`` and ``adjoint``:
    float64 makes the rounding allowance negligible; in float32 it is honest and
    wide.

    Args:
        problem: ``(batch,)`` lower-level problems.
        loss: upper-level loss of the primal variable.
        x: approximate solution, ``(batch, ...)``, grey values in [0, 1].
        adjoint: approximate ``P``, likewise.

    Returns:
        The evidence, and a value ``(batch,)`` whose autograd gradient is the
        hypergradient that the certificates bound; the two share ``K``.
    """
    x = x.detach()
    adjoint = adjoint.detach()
    read_off = problem.read_off(x, adjoint)
    with torch.no_grad():
        fixed = problem.detached()
        duals = _duals(fixed, read_off)
        measured = _measured(fixed, loss, x, adjoint, duals)
        residuals = with_rounding(
            fixed.data,
            loss,
            x,
            adjoint,
            measured,
        )
        around = _surroundings(
            fixed,
            duals,
            residuals.error,
            problem.sums,
        )
        residuals = _with_local_rounding(
            residuals, measured, fixed, x, duals.y, around
        )
        evidence = _assembled(
            fixed, loss, (x, adjoint), duals, measured, residuals, around
        )
    return evidence, read_off.value


def _assembled(
    problem: SaddleProblem,
    loss: Loss,
    pair: tuple[Primal, Primal],
    duals: _Duals,
    measured: Measured,
    residuals: Residuals,
    around: _Surroundings,
) -> Evidence:
    modulus = problem.data.strong_convexity
    rounded = duals.to(problem.sums)
    coupling = couple(
        around.operator,
        around.bounds,
        around.radius,
        rounded.image,
        modulus,
        around.inverse_root,
    )
    variation = _hessian_variation(
        around.potential, around.radius, rounded.image
    )
    return Evidence(
        residuals=residuals,
        gaps=measured.right_sides,
        operator=around.operator,
        potential=around.potential,
        strong_convexity=modulus,
        loss_smoothness=loss.smoothness,
        x=pair[0],
        adjoint=pair[1],
        z=rounded.z,
        image=rounded.image,
        y=rounded.y,
        u=rounded.u,
        bounds=around.bounds,
        inverse_root=around.inverse_root,
        coupling=coupling,
        hessian_variation=variation,
    )


def _duals(problem: SaddleProblem, read_off: Surrogate) -> _Duals:
    """In the dtype of the problem, from what the surrogate has computed."""
    z = read_off.z.detach()
    image = read_off.image.detach()
    return _Duals(
        # the shift is taken out before the digits are: z - shift may be small
        # where z is not
        z=z - problem.potential.shift,
        image=image,
        y=read_off.y.detach(),
        u=problem.potential.curvature(z) * image,
    )


def _measured(
    problem: SaddleProblem,
    loss: Loss,
    x: Primal,
    adjoint: Primal,
    duals: _Duals,
) -> Measured:
    """The residuals at one ``K^T`` on both duals, and their sizes."""
    data = problem.data
    slope = loss.gradient(x)
    gradient, gap = problem.residuals_from(
        x, adjoint, (duals.y, duals.u), slope
    )
    steepness = norm(slope)
    force = norm(adjoint)
    stiffness = problem.stiffness()
    # K^T D K P loses digits twice: of K P, and of the curvature at a rounded K
    # x
    bent = data.smoothness + 2 * stiffness
    return Measured(
        gradient=gradient,
        gap=gap,
        distance=data.dual_norm(gradient),
        slope=steepness,
        force=force,
        gradient_size=problem.magnitude(x, duals.y, stiffness),
        gap_size=steepness + bent * force,
    )


_SMALLEST = 1e-12
"""Squares of numbers from here to ``_LARGEST``, and of their products with
ordinary constants, are in the range of single precision."""
_LARGEST = 1e12


def kind_of_sums(
    problem: SaddleProblem, loss: Loss, x: Primal, adjoint: Primal
) -> torch.dtype:
    """The precision in which certificates add non-negative terms
    (synchronises).

    Args:
        problem: its constants matter, and
        loss: its slope at ``x``, and
        x: the largest entries of the solution and
        adjoint: of the adjoint in every sample.

    Returns:
        Single precision if the numbers that certificates square suit it (zero
        does), else double.
    """
    if x.numel() == 0:
        return torch.float32
    with torch.no_grad():
        constants = (
            problem.potential.weight,
            problem.potential.max_curvature(),
            problem.operator.norm_bound().reshape(1),
        )
        arrays = (x, adjoint, loss.gradient(x))
        peaks = [array.abs().flatten(1).amax(1).double() for array in arrays]
        peaks += [v.detach().double().flatten() for v in constants]
        # joined on the device: one answer is read back
        values = torch.cat(peaks)
        return torch.float32 if bool(_suits(values).all()) else torch.float64


def _suits(values: Tensor) -> Tensor:
    inside = (values >= _SMALLEST) & (values <= _LARGEST)
    return (values == 0) | inside


def _surroundings(
    problem: SaddleProblem, duals: _Duals, error: PerSample, kind: torch.dtype
) -> _Surroundings:
    """The curvature within the certified ``error`` of ``x`` (eqs. 10b, 11)."""
    operator, potential = _in_kind(problem, kind)
    z = duals.z.to(kind)
    reach = _row_norms(problem.data, operator, z)
    # |K(x' - x)|_i <= ||k_i||_{H^{-1}} ||x' - x||_H, on the whole segment
    radius = reach * per_sample(error.to(kind), z)
    bounds = potential.bounds(z, radius)
    lent = _lent(potential, operator, problem.data.strong_convexity)
    inverse_root = (bounds.lower + lent).rsqrt_()
    return _Surroundings(operator, potential, radius, bounds, inverse_root)


def _in_kind(
    problem: SaddleProblem, kind: torch.dtype
) -> tuple[LinearOperator, Potential]:
    """Operator and potential (without its shift) for the sums."""
    # centred first: the shift is in z already
    potential = problem.potential.centred()
    if kind == torch.float32:
        return problem.operator.single(), potential.single()
    return problem.operator.double(), potential.double()


def _row_norms(data: DataTerm, operator: LinearOperator, z: Dual) -> Tensor:
    """At least ``||k_i||_{H^{-1}}`` for each row (eq. 11)."""
    plain = operator.row_norms(z) / data.strong_convexity**0.5
    inverse = data.inverse_kernel()
    # known for data terms whose H^{-1} is a convolution, and operators that are
    exact = None if inverse is None else operator.dual_row_norms(z, inverse)
    return plain if exact is None else torch.minimum(plain, exact)


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
    # each half alone would use the modulus up: the sum is scaled back
    return together * (modulus / operator.norm_bound(together).square())


def _with_local_rounding(
    residuals: Residuals,
    measured: Measured,
    problem: SaddleProblem,
    x: Primal,
    y: Dual,
    around: _Surroundings,
) -> Residuals:
    """The residuals with the smaller of two rounding allowances for ``x``.

    The intervals come from the coarse one: they only have to contain ``x*``.
    """
    # K x is left out here: its rounding is weighed by the curvature that is
    # there, not by the largest one
    summed = problem.magnitude(
        x,
        y,
        y.new_zeros(()),
    )
    finer = measured.distance + _rounding(
        problem, x, summed, around.bounds, around.inverse_root
    )
    # fmin: where the finer one is not defined, the coarse one holds
    return replace(
        residuals,
        error=torch.fmin(residuals.error, finer),
    )


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
    data = problem.data
    rows = problem.operator.row_norms(bounds.upper)
    moved = inflate(norm(bounds.upper * inverse_root * rows)).to(x.dtype)
    flat = summed / data.strong_convexity**0.5
    return rounding_unit(data, x.dtype) * (flat + 2 * moved * norm(x))


_LEAST = 1e-2
"""Below it the factor of ``_hessian_variation`` is a half up to one per cent,
and single precision would lose its digits."""


def _hessian_variation(
    potential: Potential, radius: Dual, image: Dual
) -> PerSample:
    """``max_i |K P|_i M_i phi(M_i radius_i)`` with ``M = |f'''|/f''`` and
    ``phi(x) = (x / (1 - e^-x) - 1) / x`` (eq. 16a)."""
    rate = potential.concordance()
    x = (rate * radius).clamp(min=_LEAST)
    factor = (x / -torch.expm1(-x) - 1) / x
    return (image.abs() * (rate * factor)).flatten(1).amax(1)
