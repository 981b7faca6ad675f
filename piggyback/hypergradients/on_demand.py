"""Gradients of the accuracy that is asked for, and errors of given gradients:
certificates drive the corrections."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from piggyback.certificates.bounds import adjoint_move
from piggyback.certificates.certify import (
    Certification,
    CertifiedGradient,
    assemble,
    double_copy,
    examine,
    require_parts,
)
from piggyback.certificates.evidence import PairEvidence
from piggyback.hypergradients.base import HypergradientMethod
from piggyback.hypergradients.implicit import ImplicitCG
from piggyback.hypergradients.refinement import adjoint_gap, correction
from piggyback.operators.counting import ApplicationCounter
from piggyback.problems.base import LowerProblem
from piggyback.problems.pair import Accuracy, Sensitivity, WarmStart
from piggyback.problems.regularizer import Regularizer
from piggyback.terms.data.base import DataTerm
from piggyback.terms.losses import Loss
from piggyback.types import PerSample
from piggyback.values import (
    require_count,
    require_kind,
    require_positive,
    require_samples,
)


@dataclass(frozen=True)
class Assessment:
    """The error of a given gradient ``G``, from a refined one ``G+``
    (docs/theory.md, eq. 24).

    ``given``: ``G`` (flat, summed over the samples); ``estimate = ||G+ - G||``;
    the true error lies between ``lower = estimate - gradient_error(G+)`` and
    ``bound = estimate + gradient_error(G+)``. ``met``: whether the bound of
    ``G+`` is the wanted ``fraction`` of the estimate; if not, ``bound`` holds
    all the same and says less.
    """

    given: Tensor
    estimate: float
    refined: CertifiedGradient
    met: bool

    @property
    def bound(self) -> float:
        return self.estimate + self.refined.gradient_error

    @property
    def lower(self) -> float:
        return max(0.0, self.estimate - self.refined.gradient_error)


@dataclass(frozen=True)
class OnDemand:
    """Certified hypergradients to a wanted accuracy.

    ``method`` brings the pair to ``accuracy``; then rounds of Newton
    corrections (eq. 23) alternate with certificates. Each round shrinks the two
    parts of the bound (eq. 12), what ``x`` is off and what ``P`` is off, by
    what is missing and a ``margin``. After ``rounds`` of them, or when rounds
    no longer help (rounding), the best result comes back with its bound,
    whether or not that is what was wanted.
    """

    method: HypergradientMethod = field(default_factory=ImplicitCG)
    accuracy: Accuracy = Accuracy(lower=1e-5, adjoint=0.1)
    certification: Certification = field(default_factory=Certification)
    margin: float = 1.0
    rounds: int = 8

    def __post_init__(self) -> None:
        require_kind("the method", self.method, HypergradientMethod)
        require_positive("the margin", self.margin)
        require_count("the number of rounds", self.rounds, least=0)

    def differentiate(
        self,
        regularizer: Regularizer,
        data: DataTerm,
        loss: Loss,
        relative_error: float = 0.01,
        start: WarmStart | None = None,
    ) -> CertifiedGradient:
        """``G`` with ``||grad L - G|| <= relative_error ||G||`` as a bound, for
        ``L = sum_i l(x_i*)`` (flat).

        Raises ``ValueError`` for a ``relative_error`` that is not positive.
        """
        require_positive("the relative error", relative_error)
        require_parts(regularizer, data, loss)
        require_samples(data.start)
        return self._reach(
            regularizer,
            data,
            loss,
            start,
            ApplicationCounter(),
            lambda result: relative_error * float(result.gradient.norm()),
        )

    def assess(
        self,
        regularizer: Regularizer,
        data: DataTerm,
        loss: Loss,
        pair: Sensitivity,
        fraction: float = 0.25,
    ) -> Assessment:
        """The error of the gradient read off ``pair``, refined until the bound
        of ``G+`` is ``fraction`` of the estimate.

        Then bound over true error is at most ``(1 + fraction)/(1 - fraction)``:
        both sides of eq. 24. Raises ``ValueError`` unless ``0 < fraction < 1``.
        """
        if not 0 < fraction < 1:
            raise ValueError(
                f"the fraction must lie between 0 and 1, got {fraction}"
            )
        require_parts(regularizer, data, loss)
        require_samples(data.start)
        counter, exact = ApplicationCounter(), double_copy(regularizer)
        _, given = examine(
            exact, data.double(), loss.double(), pair.double(), counter
        )
        refined = self._reach(
            regularizer,
            data,
            loss,
            WarmStart(pair.x, pair.adjoint).to(data.start.dtype),
            counter,
            lambda result: fraction * float((result.gradient - given).norm()),
        )
        estimate = float((refined.gradient - given).norm())
        return Assessment(
            given,
            estimate,
            refined,
            refined.gradient_error <= fraction * estimate,
        )

    def _reach(
        self,
        regularizer: Regularizer,
        data: DataTerm,
        loss: Loss,
        start: WarmStart | None,
        counter: ApplicationCounter,
        goal: Callable[[CertifiedGradient], float],
    ) -> CertifiedGradient:
        """A pair whose gradient error is within the ``goal``, or the best that
        was seen."""
        exact, exact_data, exact_loss = (
            double_copy(regularizer),
            data.double(),
            loss.double(),
        )
        problem = (
            regularizer.problem(data)
            .with_exact(exact.problem(exact_data))
            .counted(counter)
        )
        pair = self.method.differentiate(
            problem, loss, self.accuracy, start
        ).double()
        best: CertifiedGradient | None = None
        failures = 0
        for _ in range(1 + self.rounds):
            evidence, gradient = examine(
                exact, exact_data, exact_loss, pair, counter
            )
            result = assemble(
                exact, pair, evidence, gradient, self.certification, counter
            )
            failures = (
                0
                if best is None
                or result.gradient_error < _PROGRESS * best.gradient_error
                else failures + 1
            )
            if best is None or result.gradient_error < best.gradient_error:
                best = result
            wanted = goal(result)
            if result.gradient_error <= wanted:
                best = result
                break
            if failures == _PATIENCE:
                break
            factor = _shrinkage(exact, result, self.margin * wanted)
            # x also enters the bound on its own (T2 and T3 of eq. 13): if (12)
            # did not help, it shrinks with the whole
            ceiling = factor if failures else torch.full_like(factor, torch.inf)
            pair = _corrected(
                problem, exact_loss, pair, evidence, factor, ceiling
            )
        assert best is not None
        return replace(best, applications=counter.applications)


def _shrinkage(
    exact: Regularizer, result: CertifiedGradient, wanted: float
) -> PerSample:
    """What the error of each sample has to be multiplied by, so that all of
    them contribute equally and ``wanted`` in all.

    A decade costs every sample the same number of steps, so equal contributions
    are the cheapest.
    """
    batch = result.bound.operator.shape[0]
    samples = torch.arange(batch, device=result.bound.operator.device).split(1)
    shares = torch.stack(
        [exact.pull_back(result.bound.select(sample)) for sample in samples]
    )
    return (
        wanted
        / batch
        / shares.double().clamp(min=torch.finfo(torch.float64).tiny)
    )


def _corrected(
    problem: LowerProblem,
    loss: Loss,
    pair: Sensitivity,
    evidence: PairEvidence,
    wanted: PerSample,
    ceiling: PerSample,
) -> Sensitivity:
    """``x`` and ``P`` corrected so far that their parts of the bound (12) fit
    into ``wanted`` times its size.

    The error of ``x`` shrinks by the factor ``ceiling`` at least. Both
    ``(batch,)``.
    """
    exact = problem.double()
    primal = adjoint_move(evidence).double()
    share = 0.5 * wanted * (primal + evidence.residuals.adjoint)
    gap = evidence.gaps[1]
    tolerance = torch.minimum(
        (share / primal).clamp(min=_FINEST_STEP),
        ceiling.clamp(min=_FINEST_STEP),
    )
    if bool((tolerance < 1).any()):
        pair = replace(
            pair,
            x=pair.x + correction(problem, pair.x, evidence.gaps[0], tolerance),
        )
        gap = adjoint_gap(exact, loss, pair)
    size = exact.data.dual_norm(gap)
    tolerance = (share / size.clamp(min=torch.finfo(size.dtype).tiny)).clamp(
        min=_FINEST_SOLVE
    )
    return replace(
        pair, adjoint=pair.adjoint + correction(problem, pair.x, gap, tolerance)
    )


_PROGRESS = 0.8
"""Factor that the bound must fall by in a round."""
_PATIENCE = 2
"""Rounds in a row without progress after which rounding is blamed."""
_FINEST_STEP = 1e-3
"""The most that one Newton correction of ``x`` is asked for: beyond it the next
linearisation has the say."""
_FINEST_SOLVE = 3e-5
"""The most that one correction of ``P`` is asked for: the system is linear, so
only single precision has the say."""
