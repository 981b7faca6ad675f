"""The bilevel problem as an oracle: parameters in, certified upper loss and
hypergradient out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from piggyback.batched import require_same_device
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
from piggyback.types import PerSample, Primal
from piggyback.values import require_count, require_positive


@dataclass(frozen=True)
class Samples:
    """Clean images and their degraded observations, ``(count, channels, height,
    width)``, grey values in [0, 1].

    ``level`` ``(count,)``: where all of them were multiplied so as to have one
    common noise level, the levels that they had before, in grey values.
    """

    clean: Primal
    degraded: Primal
    level: PerSample | None = None

    def __post_init__(self) -> None:
        if self.clean.shape[0] != self.degraded.shape[0]:
            raise ValueError(
                f"{self.clean.shape[0]} clean images but {self.degraded.shape[0]} degraded ones"
            )
        require_same_device(
            "clean images", self.clean, "the degraded ones are", self.degraded
        )
        for name, images in (
            ("clean", self.clean),
            ("degraded", self.degraded),
        ):
            if not bool(torch.isfinite(images).all()):
                raise ValueError(
                    f"{name} images contain NaN or infinite values"
                )

    def __len__(self) -> int:
        return self.clean.shape[0]

    def select(self, index: Tensor | slice) -> Samples:
        level = None if self.level is None else self.level[index]
        return Samples(self.clean[index], self.degraded[index], level)

    def observed(self, data_term: Callable[[Primal], DataTerm]) -> DataTerm:
        """What ``data_term`` makes of the observations; where they have levels,
        the denoising data term that knows them."""
        if self.level is None:
            return data_term(self.degraded)
        return Denoising(self.degraded, level=self.level)

    def to(self, device: torch.device) -> Samples:
        level = None if self.level is None else self.level.to(device)
        return Samples(self.clean.to(device), self.degraded.to(device), level)

    def parts(self, batch: int) -> list[Samples]:
        """In order, ``batch`` at a time; the last may have fewer."""
        return [
            self.select(slice(first, first + batch))
            for first in range(0, len(self), batch)
        ]


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

Item = TypeVar("Item")
T = TypeVar("T")


def in_order(
    compute: Callable[[Item], T], items: Iterable[Item], workers: int
) -> list[T]:
    """``compute`` of every item on ``workers`` threads; results in the order of
    the items, whatever order they finish in."""
    if workers == 1:
        return [compute(item) for item in items]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(compute, items))


@dataclass(frozen=True)
class BilevelSettings:
    """Tolerances at ``accuracy = 1``, the method, and how many images one
    batched solve sees.

    ``method_of_estimates``, ``adjoint_of_estimates``: method, and relative
    residual of the adjoint, where nothing is certified (a direction needs no
    more). Small batches keep the coefficient arrays in the cache; ``workers``
    threads share the batches (give each one thread of its own:
    ``torch.set_num_threads(1)``). The result depends on neither.
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
    """

    def __init__(
        self,
        regularizer: Regularizer,
        samples: Samples,
        settings: BilevelSettings | None = None,
    ) -> None:
        self.regularizer = regularizer
        self.samples = samples
        self.settings = settings if settings is not None else BilevelSettings()
        self.warm: WarmStart | None = None

    def parameters(self) -> Tensor:
        return parameter_vector(self.regularizer)

    def assign(self, parameters: Tensor) -> None:
        """Write a flat vector into the regularizer's parameters."""
        assign(self.regularizer, parameters)

    def evaluate(self, parameters: Tensor, accuracy: float) -> Evaluation:
        self.assign(parameters)
        tolerance, count = (
            self.settings.accuracy.scaled(accuracy),
            len(self.samples),
        )
        exact = double_copy(self.regularizer)
        parts = self._batches(lambda first: self._part(exact, first, tolerance))
        pairs = [part.pair for part in parts if part.pair is not None]
        self._keep(pairs, parameters.dtype)
        gradient = torch.stack([part.gradient for part in parts]).sum(0) / count
        rounded = gradient.to(parameters)
        bounds = [part.groups for part in parts if part.groups is not None]
        error = float(exact.pull_back(GradientBound.joined(bounds))) / count
        return Evaluation(
            parameters=parameters.detach().clone(),
            value=sum(float(part.loss.value.sum()) for part in parts) / count,
            value_error=sum(float(part.loss.radius.sum()) for part in parts)
            / count,
            gradient=rounded,
            gradient_error=error + float((rounded - gradient).norm()),
            work=sum(part.applications for part in parts),
            converged=all(part.converged for part in parts),
        )

    def estimate(self, parameters: Tensor, accuracy: float) -> Evaluation:
        """Corrected loss and gradient as the working precision gives them,
        without an operator application for certificates.

        ``accuracy`` scales the tolerance of ``x`` only.
        """
        self.assign(parameters)
        tolerance = Accuracy(
            self.settings.accuracy.lower * accuracy,
            self.settings.adjoint_of_estimates,
        )
        parts = self._batches(lambda first: self._rough_part(first, tolerance))
        self._keep([part.sensitivity for part in parts], parameters.dtype)
        count = len(self.samples)
        return Evaluation(
            parameters=parameters.detach().clone(),
            value=sum(part.value for part in parts) / count,
            value_error=math.inf,
            gradient=torch.stack([part.gradient for part in parts]).sum(0)
            / count,
            gradient_error=math.inf,
            work=sum(part.applications for part in parts),
            converged=all(part.converged for part in parts),
        )

    def _batches(self, compute: Callable[[int], T]) -> list[T]:
        """``compute`` of the first index of every batch, in the order of the
        samples."""
        return in_order(
            compute,
            range(0, len(self.samples), self.settings.batch),
            self.settings.workers,
        )

    def _keep(self, pairs: Sequence[Sensitivity], dtype: torch.dtype) -> None:
        """Make the pairs of all batches the next warm start."""
        self.warm = WarmStart(
            torch.cat([p.x for p in pairs]),
            torch.cat([p.adjoint for p in pairs]),
        ).to(dtype)

    def _rough_part(self, first: int, tolerance: Accuracy) -> _RoughPart:
        where, settings = self._where(first), self.settings
        samples, counter = self.samples.select(where), ApplicationCounter()
        problem = self.regularizer.problem(
            samples.observed(settings.data_term)
        ).counted(counter)
        loss = problem.of_image(settings.loss(samples.clean))
        pair = settings.method_of_estimates.differentiate(
            problem, loss, tolerance, self._start(where)
        )
        with torch.enable_grad():
            read_off = problem.surrogate(pair.x, pair.adjoint)
            gradient = flat_gradient(
                read_off.sum(), list(self.regularizer.parameters())
            )
        value = float((loss.value(pair.x) + read_off.detach()).sum())
        return _RoughPart(
            pair, value, gradient, converged(pair), counter.applications
        )

    def _part(
        self, exact: Regularizer, first: int, tolerance: Accuracy
    ) -> Hypergradient:
        where, settings = self._where(first), self.settings
        samples = self.samples.select(where)
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
        return slice(first, first + self.settings.batch)

    def _start(self, where: slice) -> WarmStart | None:
        """The latest pairs of these samples."""
        if self.warm is None:
            return None
        return WarmStart(self.warm.x[where], self.warm.adjoint[where])
