"""Mixed-precision refinement of a pair: residuals in float64, corrections in
the dtype of the problem (eq. 23)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from piggyback.batched import per_sample
from piggyback.hypergradients.base import HypergradientMethod
from piggyback.hypergradients.capabilities import (
    Capabilities,
    Guarantee,
    Memory,
    Smoothness,
)
from piggyback.hypergradients.implicit import ImplicitCG
from piggyback.problems.base import LowerProblem
from piggyback.problems.pair import Accuracy, Sensitivity, WarmStart
from piggyback.solvers.linear import (
    ConjugateGradient,
    LinearSystem,
    relative_radius,
)
from piggyback.solvers.loop import iterate
from piggyback.solvers.stopping import Schedule
from piggyback.terms.losses import Loss
from piggyback.types import PerSample, Primal
from piggyback.values import require_count, require_kind, require_positive

CORRECTION = Schedule(max_steps=300, check_every=1, patience=30)
"""How long a correction may take: it is asked for a few digits only, and any
result is certified as it is."""


@dataclass(frozen=True)
class Refined(HypergradientMethod):
    """``method``, then ``rounds`` of Newton corrections of ``x`` and one of
    ``P``, each to the relative ``tolerance`` of CG.

    ``x`` comes first and goes further, because its error enters the certificate
    of ``P`` multiplied by the coupling rate (eq. 12), and because ``P`` can
    only be corrected for the ``x`` it is asked at. A correction costs one
    residual in float64 and a few CG steps in the dtype of the problem. The pair
    comes back in float64, since single precision could not hold it.

    Args:
        method: finds the pair to start from.
        rounds: corrections of ``x``.
        tolerance: of every correction, relative.
        schedule: how long a correction may take.

    Raises:
        ValueError: for a negative number of rounds, or a tolerance that is not
            positive.
    """

    capabilities = Capabilities(
        name="refined",
        formula="a pair of another method, then Newton corrections with residuals in float64",
        smoothness=Smoothness.CURVATURE,
        hessian_products=True,
        strong_convexity=True,
        memory=Memory.CONSTANT,
        guarantee=Guarantee.CERTIFIED,
        # two digits per round, until float64 itself has no more
        error="to the tolerance, certified, beyond single precision",
        cost="the method + one per CG step",
    )

    method: HypergradientMethod = field(default_factory=ImplicitCG)
    rounds: int = 2
    tolerance: float = 0.1
    schedule: Schedule = CORRECTION

    def __post_init__(self) -> None:
        require_kind("the method", self.method, HypergradientMethod)
        require_count("rounds", self.rounds, least=0)
        require_positive("the tolerance of corrections", self.tolerance)

    def differentiate(
        self,
        problem: LowerProblem,
        loss: Loss,
        accuracy: Accuracy,
        start: WarmStart | None = None,
    ) -> Sensitivity:
        # whatever it reached: corrections go on from there
        pair = self.method.differentiate(
            problem, loss, accuracy, start
        ).double()
        exact = problem.double()
        for _ in range(self.rounds):
            with torch.no_grad():
                gap = -exact.gradient(pair.x)
            missing = self._correction(problem, pair, gap)
            pair = replace(
                pair,
                x=pair.x + missing,
            )
        # of the corrected x, which is why P comes last
        gap = adjoint_gap(exact, loss.double(), pair)
        missing = self._correction(problem, pair, gap)
        return replace(pair, adjoint=pair.adjoint + missing)

    def _correction(
        self, problem: LowerProblem, pair: Sensitivity, gap: Primal
    ) -> Primal:
        return correction(
            problem,
            pair.x,
            gap,
            self.tolerance,
            self.schedule,
        )


def adjoint_gap(exact: LowerProblem, loss: Loss, pair: Sensitivity) -> Primal:
    """``grad l(x) - A(x) P``, the right-hand side of a correction of ``P`` (eq.
    23).

    Args:
        exact: in float64; likewise ``loss`` and ``pair``.
        loss: of the primal variable.
        pair: ``(x, P)``.
    """
    with torch.no_grad():
        slope = loss.gradient(pair.x)
        return exact.adjoint_residual(pair.x, pair.adjoint, slope)


def correction(
    problem: LowerProblem,
    x: Primal,
    gap: Primal,
    tolerance: float | PerSample,
    schedule: Schedule = CORRECTION,
) -> Primal:
    """``d`` with ``||gap - A(x) d|| <= tolerance ||gap||`` in the norm of
    ``H^{-1}``: solved in the dtype of ``problem``.

    Args:
        problem: in working precision.
        x: in float64, ``(batch, ...)``.
        gap: likewise.
        tolerance: for all samples, or ``(batch,)``; those where it is 1 or more
            are left as they are (``d = 0``).
        schedule: how long it may take.

    Returns:
        The correction in float64.
    """
    problem = problem.detached()
    with torch.no_grad():
        # rounding of the right-hand side is relative: a digit of the correction
        # at worst, not of the pair
        right = gap.to(problem.data.start.dtype)
        curvature = problem.curvature(x.to(right.dtype))
        # relative to what is missing, however little that is
        radius = relative_radius(problem.data, right, tolerance)
        # residuals get smaller from round to round: their squares would leave
        # the range of single precision
        system, unit = LinearSystem(
            problem, curvature, right, radius
        ).in_units()
        (found,) = iterate(ConjugateGradient(system), schedule).result
        return (found * per_sample(unit, right)).to(gap.dtype)
