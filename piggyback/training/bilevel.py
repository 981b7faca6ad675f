"""The bilevel problem as an oracle: parameters in, certified upper loss and
hypergradient out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from piggyback.certificates.certify import (
    Certification,
    Hypergradient,
    assign,
    certify,
    converged,
    parameter_vector,
)
from piggyback.hypergradients.base import HypergradientMethod
from piggyback.hypergradients.implicit import ImplicitCG
from piggyback.operators.counting import ApplicationCounter
from piggyback.problems.groups import GradientBound
from piggyback.problems.pair import (
    Accuracy,
    Sensitivity,
    WarmStart,
    flat_gradient,
)
from piggyback.problems.posed import double_copy, pose
from piggyback.problems.regularizer import Regularizer
from piggyback.solvers.stopping import Schedule
from piggyback.terms.data.base import DataTerm
from piggyback.terms.data.denoising import Denoising
from piggyback.terms.losses import Loss, SquaredError
from piggyback.training.oracle import Evaluation, Oracle
from piggyback.training.samples import Samples, in_order
from piggyback.types import Primal
from piggyback.values import require_count, require_positive

EACH_STEP = ImplicitCG(
    lower_schedule=Schedule(check_every=1),
    adjoint_schedule=Schedule(check_every=1),
)
"""Looks at the residuals after every step: warm starts need few, and each is
worth more than a look."""
_AT_LEAST = Schedule(check_every=1, min_steps=2)
AT_LEAST_TWO = ImplicitCG(lower_schedule=_AT_LEAST, adjoint_schedule=_AT_LEAST)
"""Two steps of either solver even where the warm start would do: otherwise
estimates do not notice that the point has moved."""

T = TypeVar("T")


@dataclass(frozen=True)
class BilevelSettings:
    """Tolerances at ``accuracy = 1``, the method, and how many images one
    batched solve sees.

    Args:
        accuracy: of the solves that are certified.
        method: how they find the pair.
        method_of_estimates: the same where nothing is certified.
        adjoint_of_estimates: relative residual of their adjoint (a direction
            needs no more).
        certification: which bounds.
        data_term: from observations ``(batch, channels, height, width)``, grey
            values in [0, 1], to the data term.
        loss: from clean images to the upper-level loss.
        batch: images per solve; small ones keep the coefficient arrays in the
            cache. The result does not depend on it.
        workers: threads that share the batches (give each one thread of its
            own: ``torch.set_num_threads(1)``). Nor on this.

    Raises:
        ValueError: for numbers that are not positive.
    """

    accuracy: Accuracy = Accuracy(lower=1e-3, adjoint=0.1)
    method: HypergradientMethod = EACH_STEP
    method_of_estimates: HypergradientMethod = AT_LEAST_TWO
    adjoint_of_estimates: float = 0.2
    certification: Certification = field(default_factory=Certification)
    data_term: Callable[[Primal], DataTerm] = Denoising
    loss: Callable[[Primal], Loss] = SquaredError
    batch: int = 8
    workers: int = 1

    def __post_init__(self) -> None:
        require_positive("adjoint_of_estimates", self.adjoint_of_estimates)
        require_count("batch", self.batch)
        require_count("workers", self.workers)


@dataclass(frozen=True)
class _RoughPart:
    """One batch of an estimate: the pair, the sums of corrected losses and
    gradients, and the work."""

    sensitivity: Sensitivity
    value: float
    gradient: Tensor
    converged: bool
    applications: float


class BilevelOracle(Oracle):
    """``L(theta) = mean_i l(x_i*(theta))`` over a fixed set of samples, with
    warm starts per image.

    Certificates and gradients are evaluated in float64, so that the bound is
    not blurred by float32 rounding; the solves run in the dtype of the
    regularizer. ``warm`` holds the latest pair of every image (None before the
    first).

    Args:
        regularizer: evaluations write into its parameters.
        samples: clean and degraded images, grey values in [0, 1].
        settings: None: the default ones.
    """

    def __init__(
        self,
        regularizer: Regularizer,
        samples: Samples,
        settings: BilevelSettings | None = None,
    ) -> None:
        self.regularizer = regularizer
        self.samples = samples
        # made here: a default in the signature would be one object for all
        self.settings = settings if settings is not None else BilevelSettings()
        self.warm: WarmStart | None = None

    def parameters(self) -> Tensor:
        return parameter_vector(self.regularizer)

    def assign(self, parameters: Tensor) -> None:
        """Write a flat vector into the regularizer's parameters.

        Args:
            parameters: in their order.
        """
        assign(self.regularizer, parameters)

    def evaluate(self, parameters: Tensor, accuracy: float) -> Evaluation:
        self.assign(parameters)
        tolerance = self.settings.accuracy.scaled(accuracy)
        # one copy for all batches; their gradients are in its parameters
        exact = double_copy(self.regularizer)
        parts = self._batches(lambda first: self._part(exact, first, tolerance))
        pairs = [part.pair for part in parts if part.pair is not None]
        self._keep(pairs, parameters.dtype)
        count = len(self.samples)
        gradient = torch.stack([part.gradient for part in parts]).sum(0) / count
        # descents work in the dtype of the parameters: what the gradient loses
        # on the way there is an error, too
        rounded = gradient.to(parameters)
        lost = float((rounded - gradient).norm())
        # pulled back once, all samples together: the bound of a sum is less
        # than the sum of the bounds of batches
        bounds = [part.groups for part in parts if part.groups is not None]
        error = float(exact.pull_back(GradientBound.joined(bounds))) / count
        value = sum(float(part.loss.value.sum()) for part in parts)
        radius = sum(float(part.loss.radius.sum()) for part in parts)
        return Evaluation(
            parameters=parameters.detach().clone(),
            value=value / count,
            value_error=radius / count,
            gradient=rounded,
            gradient_error=error + lost,
            work=sum(part.applications for part in parts),
            converged=all(part.converged for part in parts),
        )

    def estimate(self, parameters: Tensor, accuracy: float) -> Evaluation:
        """Corrected loss and gradient as the working precision gives them,
        without an operator application for certificates.

        Args:
            parameters: flat.
            accuracy: scales the tolerance of ``x`` only.
        """
        self.assign(parameters)
        tolerance = Accuracy(
            lower=self.settings.accuracy.lower * accuracy,
            # a coarser adjoint would save little: its solve is the shorter one
            adjoint=self.settings.adjoint_of_estimates,
        )
        parts = self._batches(lambda first: self._rough_part(first, tolerance))
        self._keep(
            [part.sensitivity for part in parts],
            parameters.dtype,
        )
        count = len(self.samples)
        gradient = torch.stack([part.gradient for part in parts]).sum(0)
        return Evaluation(
            parameters=parameters.detach().clone(),
            value=sum(part.value for part in parts) / count,
            value_error=math.inf,
            gradient=gradient / count,
            gradient_error=math.inf,
            work=sum(part.applications for part in parts),
            converged=all(part.converged for part in parts),
        )

    def _batches(self, compute: Callable[[int], T]) -> list[T]:
        """``compute`` of the first index of every batch, in the order of the
        samples."""
        first = range(
            0,
            len(self.samples),
            self.settings.batch,
        )
        return in_order(compute, first, self.settings.workers)

    def _keep(self, pairs: Sequence[Sensitivity], dtype: torch.dtype) -> None:
        """Make the pairs of all batches the next warm start."""
        x = torch.cat([pair.x for pair in pairs])
        adjoint = torch.cat([pair.adjoint for pair in pairs])
        # certified pairs are in float64, solvers in the working precision
        self.warm = WarmStart(x, adjoint).to(dtype)

    def _rough_part(self, first: int, tolerance: Accuracy) -> _RoughPart:
        settings = self.settings
        where = self._where(first)
        samples = self.samples.select(where)
        counter = ApplicationCounter()
        data = samples.observed(settings.data_term)
        problem = self.regularizer.problem(data).counted(counter)
        loss = problem.of_image(settings.loss(samples.clean))
        pair = settings.method_of_estimates.differentiate(
            problem, loss, tolerance, self._start(where)
        )
        # also where the caller records no graph
        with torch.enable_grad():
            read_off = problem.surrogate(
                pair.x,
                pair.adjoint,
            )
            leaves = list(self.regularizer.parameters())
            gradient = flat_gradient(read_off.sum(), leaves)
        # the surrogate is -<P, grad h(x)>, the correction of eq. 16
        corrected = loss.value(pair.x) + read_off.detach()
        return _RoughPart(
            sensitivity=pair,
            value=float(corrected.sum()),
            gradient=gradient,
            converged=converged(pair),
            applications=counter.applications,
        )

    def _part(
        self, exact: Regularizer, first: int, tolerance: Accuracy
    ) -> Hypergradient:
        settings = self.settings
        where = self._where(first)
        samples = self.samples.select(where)
        # the copy in float64 is shared: gradients of all batches are in its
        # leaves
        posed = pose(
            self.regularizer,
            samples.observed(settings.data_term),
            settings.loss(samples.clean),
            exact,
        )
        pair = settings.method.differentiate(
            posed.problem, posed.loss, tolerance, self._start(where)
        )
        return certify(posed, pair, settings.certification)

    def _where(self, first: int) -> slice:
        """The samples of the batch that begins with ``first``."""
        return slice(
            first,
            first + self.settings.batch,
        )

    def _start(self, where: slice) -> WarmStart | None:
        """The latest pairs of these samples."""
        # the data's own start, in the first evaluation
        if self.warm is None:
            return None
        return WarmStart(
            self.warm.x[where],
            self.warm.adjoint[where],
        )
