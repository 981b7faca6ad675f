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
    Hypergradient,
    assemble,
    examine,
    require_parts,
)
from piggyback.certificates.evidence import PairEvidence
from piggyback.hypergradients.base import HypergradientMethod
from piggyback.hypergradients.implicit import ImplicitCG
from piggyback.hypergradients.refinement import adjoint_gap, correction
from piggyback.problems.groups import GradientBound
from piggyback.problems.pair import Accuracy, Sensitivity, WarmStart
from piggyback.problems.posed import Posed, pose
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

FIRST_ACCURACY = Accuracy(lower=1e-5, adjoint=0.1)
"""Where refinement starts, unless told."""
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


@dataclass(frozen=True)
class Assessment:
    """The error of a given gradient ``G``, from a refined one ``G+``
    (docs/theory.md, eq. 24).

    The true error lies between ``lower = estimate - gradient_error(G+)`` and
    ``bound = estimate + gradient_error(G+)``.

    Args:
        given: ``G``, flat, summed over the samples.
        estimate: ``||G+ - G||``.
        refined: ``G+`` and its own bound.
        met: whether that bound is the wanted fraction of the estimate; if not,
            ``bound`` holds all the same and says less.
    """

    given: Tensor
    estimate: float
    refined: Hypergradient
    met: bool

    @property
    def bound(self) -> float:
        """Certified upper end of the error."""
        return self.estimate + self.refined.gradient_error

    @property
    def lower(self) -> float:
        """Certified lower end of the error."""
        # an error is not negative, whatever is known of it
        return max(
            0.0,
            self.estimate - self.refined.gradient_error,
        )


@dataclass(frozen=True)
class OnDemand:
    """Certified hypergradients to a wanted accuracy.

    A method brings the pair to ``accuracy``; then rounds of Newton corrections
    (eq. 23) alternate with certificates. Each round shrinks the two parts of
    the bound (eq. 12), what ``x`` is off and what ``P`` is off, by what is
    missing and a ``margin``. After ``rounds`` of them, or when rounds no longer
    help (rounding), the best result comes back with its bound, whether or not
    that is what was wanted.

    Args:
        method: finds the pair to start from.
        accuracy: of that pair.
        certification: which bounds.
        margin: what the wanted bound is multiplied by in corrections.
        rounds: corrections at most.

    Raises:
        ValueError: for a margin that is not positive, or negative rounds.
    """

    method: HypergradientMethod = field(default_factory=ImplicitCG)
    accuracy: Accuracy = FIRST_ACCURACY
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
    ) -> Hypergradient:
        """``G`` with ``||grad L - G|| <= relative_error ||G||`` as a bound, for
        ``L = sum_i l(x_i*)``.

        Args:
            regularizer: its parameters are what the gradient is in.
            data: data term of the batch.
            loss: upper-level loss of the reconstructions.
            relative_error: wanted.
            start: an earlier pair of the same samples.

        Raises:
            ValueError: for a ``relative_error`` that is not positive, and for
                inadmissible input.
        """
        require_positive("the relative error", relative_error)
        require_parts(regularizer, data, loss)
        require_samples(data.start)
        return self.reach(
            pose(regularizer, data, loss),
            start,
            lambda result: relative_error * float(result.gradient.norm()),
        )

    def assess(
        self,
        gradient: Tensor,
        posed: Posed,
        start: WarmStart | None = None,
        fraction: float = 0.25,
    ) -> Assessment:
        """The error of any ``gradient``, against one that is refined until its
        own bound is ``fraction`` of the estimate.

        Then bound over true error is at most ``(1 + fraction)/(1 - fraction)``:
        both sides of eq. 24.

        Args:
            gradient: flat, summed over the samples, wherever it is from.
            posed: the problem that it is a gradient of.
            start: a pair to start from, if one is known.
            fraction: between 0 and 1 (``ValueError``).
        """
        if not 0 < fraction < 1:
            raise ValueError(
                f"the fraction must lie between 0 and 1, got {fraction}"
            )
        # compared in float64, in which the refined one is
        given = checked_gradient(gradient, posed)

        def difference(result: Hypergradient) -> float:
            return float((result.gradient - given).norm())

        refined = self.reach(
            posed, start, lambda result: fraction * difference(result)
        )
        # against the best that was seen, whether or not the goal was reached
        estimate = difference(refined)
        met = refined.gradient_error <= fraction * estimate
        return Assessment(given, estimate, refined, met)

    def reach(
        self,
        posed: Posed,
        start: WarmStart | None,
        goal: Callable[[Hypergradient], float],
    ) -> Hypergradient:
        """A pair whose gradient error is within a goal, or the best that was
        seen.

        Args:
            posed: the problem.
            start: a pair to start from, if one is known.
            goal: from a result to the wanted bound.
        """
        pair = self.method.differentiate(
            posed.problem, posed.loss, self.accuracy, start
        ).double()
        best: Hypergradient | None = None
        failures = 0
        for _ in range(1 + self.rounds):
            evidence, gradient = examine(posed, pair)
            result = assemble(
                posed, pair, evidence, gradient, self.certification
            )
            if _is_progress(result, best):
                failures = 0
            else:
                failures += 1
            # a correction may fail: what is returned is the best, not the last
            if best is None or result.gradient_error < best.gradient_error:
                best = result
            wanted = goal(result)
            # the goal may depend on the result itself, as a relative one does
            if result.gradient_error <= wanted:
                best = result
                break
            # rounding has the last word: more rounds would only cost
            if failures == _PATIENCE:
                break
            assert result.groups is not None
            # aimed below what is wanted: a correction may fall short of its
            # tolerance
            factor = _shrinkage(
                posed.regularizer, result.groups, self.margin * wanted
            )
            # x also enters the bound on its own (T2 and T3 of eq. 13): if (12)
            # did not help, it shrinks with the whole
            ceiling = factor if failures else torch.full_like(factor, torch.inf)
            pair = _corrected(posed, pair, evidence, factor, ceiling)
        assert best is not None
        return replace(best, applications=posed.applications)


def checked_gradient(gradient: Tensor, posed: Posed) -> Tensor:
    """The gradient in float64.

    Args:
        gradient: flat, with a number for each parameter.
        posed: the problem that it is a gradient of.

    Raises:
        ValueError: for any other shape.
    """
    count = sum(parameter.numel() for parameter in posed.parameters)
    if gradient.shape != (count,):
        raise ValueError(
            f"the gradient has shape {tuple(gradient.shape)}, but the "
            f"regularizer has {count} parameters"
        )
    return gradient.detach().double()


def _is_progress(result: Hypergradient, best: Hypergradient | None) -> bool:
    """Whether the bound has fallen enough for another round."""
    if best is None:
        return True
    return result.gradient_error < _PROGRESS * best.gradient_error


def _shrinkage(
    regularizer: Regularizer, groups: GradientBound, wanted: float
) -> PerSample:
    """What the error of each sample has to be multiplied by, so that all of
    them contribute equally and ``wanted`` in all.

    A decade costs every sample the same number of steps, so equal contributions
    are the cheapest.
    """
    # sample by sample: a bound of the sum does not say who contributes to it
    alone = [
        regularizer.pull_back(groups.select(sample))
        for sample in torch.arange(groups.batch).split(1)
    ]
    shares = torch.stack(alone).double()
    # a sample without an error asks for nothing
    tiny = torch.finfo(torch.float64).tiny
    return wanted / groups.batch / shares.clamp(min=tiny)


def _corrected(
    posed: Posed,
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
    problem = posed.problem
    exact = problem.double()
    primal = adjoint_move(evidence).double()
    # half of the room for either part
    share = 0.5 * wanted * (primal + evidence.residuals.adjoint)
    right, gap = evidence.gaps
    tolerance = torch.minimum(
        (share / primal).clamp(min=_FINEST_STEP),
        ceiling.clamp(min=_FINEST_STEP),
    )
    # x first: its correction changes what P is asked for
    if bool((tolerance < 1).any()):
        missing = correction(problem, pair.x, right, tolerance)
        pair = replace(
            pair,
            x=pair.x + missing,
        )
        gap = adjoint_gap(exact, posed.exact_loss, pair)
    size = exact.data.dual_norm(gap)
    least = torch.finfo(size.dtype).tiny
    tolerance = (share / size.clamp(min=least)).clamp(min=_FINEST_SOLVE)
    missing = correction(problem, pair.x, gap, tolerance)
    return replace(pair, adjoint=pair.adjoint + missing)
