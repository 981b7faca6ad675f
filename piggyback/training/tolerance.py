"""Tolerances of stochastic descent: as loose as the noise of a mini-batch
allows, by certificate (docs/theory.md, 7.1)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from piggyback.certificates.certify import examine
from piggyback.hypergradients.on_demand import OnDemand
from piggyback.hypergradients.refinement import adjoint_gap, correction
from piggyback.problems.pair import (
    Accuracy,
    Sensitivity,
    WarmStart,
    flat_gradient,
)
from piggyback.problems.posed import Posed, pose
from piggyback.problems.regularizer import Regularizer
from piggyback.terms.data.base import DataTerm
from piggyback.training.descent import clamped
from piggyback.training.samples import Samples, in_order
from piggyback.training.stochastic import StochasticSettings


@dataclass(frozen=True)
class GradientQuality:
    """What is known of the gradient of one mini-batch; all norms are Euclidean,
    of means over its samples.

    Args:
        refined: a gradient of the mini-batch within ``bound - error`` of the
            exact one, flat.
        difference: what the computed one lacks to it.
        bound: certified distance of the computed gradient to the exact one of
            the same mini-batch (infinite if nothing certifies it).
        error: estimate of that distance, the norm of ``difference``.
        error_lower: what the tolerance of ``x`` contributes to it, an estimate.
        error_adjoint: what the tolerance of ``P`` contributes, likewise.
        noise: estimate of the standard deviation that the choice of the samples
            gives to the mean.
        size: norm of ``refined``.
        loss: mean at the computed reconstructions.
        applications: operator applications of the computed gradient.
        extra: those of its assessment.
    """

    refined: Tensor
    difference: Tensor
    bound: float
    error: float
    error_lower: float
    error_adjoint: float
    noise: float
    size: float
    loss: float
    applications: float
    extra: float

    @property
    def relative_bound(self) -> float:
        """The bound over the size of the gradient: below 1 the computed
        gradient certainly points the right way."""
        # of a zero gradient nothing is known
        return self.bound / self.size if self.size > 0 else math.inf

    @property
    def relative_noise(self) -> float:
        """The noise over the size of the gradient."""
        return self.noise / self.size if self.size > 0 else math.inf


@dataclass(frozen=True)
class _Part:
    """Sums over the samples of one solve: the computed gradient, with an exact
    adjoint at the same ``x``, and refined."""

    computed: Tensor
    at_exact_adjoint: Tensor
    refined: Tensor
    uncertainty: float
    each: Tensor
    loss: float
    applications: float
    extra: float


ADJOINT_REFINED = 0.1
"""To how much of its residual the adjoint is refined to tell the two tolerances
apart: a magnitude is all that is wanted."""
LOOSEST_CERTIFICATE = OnDemand(rounds=2)
"""Refines until the certificate is a quarter of the error that it is about, or
gives up after three looks."""


def assess(
    regularizer: Regularizer,
    samples: Samples,
    settings: StochasticSettings,
    on_demand: OnDemand = LOOSEST_CERTIFICATE,
) -> GradientQuality:
    """The quality of the mean gradient that a step computes; costs about three
    times that gradient (docs/theory.md, 7.1).

    Args:
        regularizer: its parameters are left alone.
        samples: the mini-batch.
        settings: of the step (but for the number of samples).
        on_demand: refines the gradient that the other is compared with.

    Raises:
        ValueError: for fewer than two samples (no noise to be seen).
    """
    count = len(samples)
    if count < 2:
        raise ValueError(
            f"the noise of a mini-batch shows from two samples on, got {count}"
        )
    parts = samples.parts(settings.batch)

    def assess_part(part: Samples) -> _Part:
        return _assess_part(regularizer, part, settings, on_demand)

    found = in_order(assess_part, parts, settings.workers)
    computed = _total(part.computed for part in found) / count
    # with the exact adjoint of the computed x: from computed to middle only P
    # has changed, from middle to refined only x (and P with it)
    middle = _total(part.at_exact_adjoint for part in found) / count
    refined = _total(part.refined for part in found) / count
    error = float((refined - computed).norm())
    uncertain = sum(part.uncertainty for part in found) / count
    return GradientQuality(
        refined=refined,
        difference=refined - computed,
        # eq. 24: the refined gradient has a bound of its own
        bound=error + uncertain,
        error=error,
        error_lower=float((refined - middle).norm()),
        error_adjoint=float((middle - computed).norm()),
        noise=_noise(torch.cat([part.each for part in found])),
        size=float(refined.norm()),
        loss=sum(part.loss for part in found) / count,
        applications=sum(part.applications for part in found),
        extra=sum(part.extra for part in found),
    )


def _noise(each: Tensor) -> float:
    """Standard deviation of the mean of gradients, one per row."""
    count = len(each)
    deviation = each - each.mean(0)
    # one less than there are: their mean is one of their own
    spread = deviation.square().sum() / (count - 1)
    return float((spread / count).sqrt())


def _total(parts: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(parts)).sum(0)


def _assess_part(
    regularizer: Regularizer,
    samples: Samples,
    settings: StochasticSettings,
    on_demand: OnDemand,
) -> _Part:
    data = samples.observed(settings.data_term)
    posed = pose(
        regularizer,
        data,
        settings.loss(samples.clean),
    )
    leaves = list(regularizer.parameters())
    # as a step does it, in the working precision
    pair = settings.method.differentiate(
        posed.problem, posed.loss, settings.accuracy
    )
    surrogate = posed.problem.surrogate(
        pair.x,
        pair.adjoint,
    ).sum()
    computed = flat_gradient(surrogate, leaves)
    # what comes after it is the price of the assessment
    spent = posed.applications
    close = _with_exact_adjoint(posed, pair)
    _, at_exact_adjoint = examine(posed, close)
    # the better adjoint saves the refinement its first solve
    start = WarmStart(close.x, close.adjoint).to(data.start.dtype)
    refined = on_demand.assess(at_exact_adjoint, posed, start).refined
    return _Part(
        computed=computed.double(),
        at_exact_adjoint=at_exact_adjoint,
        refined=refined.gradient,
        uncertainty=refined.gradient_error,
        each=_each_gradient(regularizer, data, pair, leaves),
        loss=float(posed.loss.value(pair.x).sum()),
        applications=spent,
        extra=posed.applications - spent,
    )


def _with_exact_adjoint(posed: Posed, pair: Sensitivity) -> Sensitivity:
    """The pair with an adjoint that is nearly exact for its ``x``."""
    # x stays as it is: only what the tolerance of P does is to be seen
    pair = pair.double()
    gap = adjoint_gap(
        posed.problem.double(),
        posed.exact_loss,
        pair,
    )
    missing = correction(
        posed.problem,
        pair.x,
        gap,
        ADJOINT_REFINED,
    )
    return replace(
        pair,
        adjoint=pair.adjoint + missing,
    )


def _each_gradient(
    regularizer: Regularizer,
    data: DataTerm,
    pair: Sensitivity,
    leaves: Sequence[Tensor],
) -> Tensor:
    """The gradient of every sample, ``(batch, parameters)``, in the working
    precision: its spread is the noise."""
    rows = []
    every = torch.arange(
        pair.x.shape[0],
        device=pair.x.device,
    )
    for index in every.split(1):
        # a problem of its own: one backward pass would only give the sum
        alone = regularizer.problem(data.select(index))
        surrogate = alone.surrogate(
            pair.x[index],
            pair.adjoint[index],
        )
        rows.append(flat_gradient(surrogate.sum(), leaves))
    return torch.stack(rows).double()


@dataclass(frozen=True)
class ToleranceRule:
    """Tolerances at which the error of a mini-batch gradient is a share of its
    noise, half from ``x``, half from ``P`` (22a).

    A decade of either tolerance costs nearly the same number of steps, and the
    two errors add up like independent ones: equal parts are the cheapest.

    Args:
        share: error over noise; noise averages out over the run, a bias would
            not: well below 1.
        work: part of all operator applications that assessments may take.
        change: the most that one assessment changes a tolerance by, a factor.
        coarsest: limits both tolerances from above.
        finest: limits both from below.
    """

    share: float = 0.5
    work: float = 0.08
    change: float = 10.0
    coarsest: Accuracy = Accuracy(lower=0.05, adjoint=0.8)
    finest: Accuracy = Accuracy(lower=1e-5, adjoint=1e-3)

    def next(
        self, accuracy: Accuracy, quality: GradientQuality, settled: bool = True
    ) -> Accuracy:
        """The tolerances for the next mini-batches.

        Args:
            accuracy: of the mini-batch that was assessed.
            quality: what that found.
            settled: whether the tolerances have been close to what is wanted.
        """
        wanted = self._wanted(quality)
        # one mini-batch is a small sample of what errors do: half a step, in
        # logarithms, once there is nothing more to be found out quickly
        power = 0.5 if settled else 1.0
        lower = self._factor(wanted, quality.error_lower) ** power
        adjoint = self._factor(wanted, quality.error_adjoint) ** power
        finest = self.finest
        coarsest = self.coarsest
        return Accuracy(
            lower=clamped(
                accuracy.lower * lower,
                finest.lower,
                coarsest.lower,
            ),
            adjoint=clamped(
                accuracy.adjoint * adjoint,
                finest.adjoint,
                coarsest.adjoint,
            ),
        )

    def _wanted(self, quality: GradientQuality) -> float:
        """What either error should be: their squares add up."""
        return self.share * quality.noise / math.sqrt(2)

    def _factor(self, wanted: float, found: float) -> float:
        # errors are proportional to tolerances, near enough
        factor = wanted / found if found > 0 else math.inf
        return clamped(
            factor,
            1 / self.change,
            self.change,
        )

    def close(self, quality: GradientQuality) -> bool:
        """Whether both errors are within a factor of two of what is wanted:
        nothing has to be found out quickly any more.

        Args:
            quality: of the latest mini-batch that was assessed.
        """
        wanted = self._wanted(quality)
        errors = (quality.error_lower, quality.error_adjoint)
        return all(
            wanted <= 2 * error and error <= 2 * wanted for error in errors
        )

    def due(self, assessed: float, spent: float, price: float) -> bool:
        """Whether there is room for an assessment.

        Args:
            assessed: operator applications of the earlier ones.
            spent: of all there was, these included.
            price: of the next one.
        """
        # both with the next one: its price counts as spent, too
        return assessed + price <= self.work * (spent + price)
