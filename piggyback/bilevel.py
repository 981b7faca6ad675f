"""The bilevel problem as an oracle: parameters in, certified upper loss and hypergradient out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from piggyback.certified import Certification, CertifiedGradient, certify, concatenate_bounds, double_copy
from piggyback.hypergradient.base import Accuracy, HypergradientMethod, WarmStart
from piggyback.hypergradient.implicit import ImplicitCG
from piggyback.losses import Loss, SquaredError
from piggyback.operators import ApplicationCounter
from piggyback.oracle import Evaluation, Oracle
from piggyback.regularizer import Regularizer
from piggyback.terms.quadratic import DataTerm, Denoising
from piggyback.types import Primal


@dataclass(frozen=True)
class Samples:
    """Clean images and their degraded observations, ``(count, channels, height, width)``, grey values in [0, 1]."""

    clean: Primal
    degraded: Primal

    def __post_init__(self) -> None:
        if self.clean.shape[0] != self.degraded.shape[0]:
            raise ValueError(f"{self.clean.shape[0]} clean images but {self.degraded.shape[0]} degraded ones")
        for name, images in (("clean", self.clean), ("degraded", self.degraded)):
            if not bool(torch.isfinite(images).all()):
                raise ValueError(f"{name} images contain NaN or infinite values")

    def __len__(self) -> int:
        return self.clean.shape[0]

    def select(self, index: Tensor | slice) -> Samples:
        return Samples(self.clean[index], self.degraded[index])


@dataclass(frozen=True)
class BilevelSettings:
    """Tolerances at ``accuracy = 1``, the method, and how many images one batched solve sees.

    Small batches keep the coefficient arrays in the cache; the result does not depend on ``batch``.
    """

    accuracy: Accuracy = Accuracy(lower=1e-3, adjoint=1e-2)
    method: HypergradientMethod = field(default_factory=ImplicitCG)
    certification: Certification = field(default_factory=Certification)
    data_term: Callable[[Primal], DataTerm] = Denoising
    loss: Callable[[Primal], Loss] = SquaredError
    batch: int = 8


class BilevelOracle(Oracle):
    """``L(theta) = mean_i l(x_i*(theta))`` over a fixed set of samples, with warm starts per image.

    Certificates and gradients are evaluated in float64, so that the bound is not blurred by float32 rounding; the
    solves run in the dtype of the regularizer.  ``warm`` holds the latest pair of every image (None before the first).
    """

    def __init__(self, regularizer: Regularizer, samples: Samples, settings: BilevelSettings | None = None) -> None:
        self.regularizer = regularizer
        self.samples = samples
        self.settings = settings if settings is not None else BilevelSettings()
        self.counter = ApplicationCounter()
        self.warm: WarmStart | None = None

    def parameters(self) -> Tensor:
        return torch.nn.utils.parameters_to_vector(self.regularizer.parameters()).detach().clone()

    def evaluate(self, parameters: Tensor, accuracy: float) -> Evaluation:
        torch.nn.utils.vector_to_parameters(parameters, self.regularizer.parameters())
        begin = self.counter.applications
        tolerance = self.settings.accuracy.scaled(accuracy)
        exact = double_copy(self.regularizer)
        parts = [
            self._chunk(exact, slice(first, first + self.settings.batch), tolerance)
            for first in range(0, len(self.samples), self.settings.batch)
        ]
        self.warm = WarmStart(
            torch.cat([part.sensitivity.x for part in parts]), torch.cat([part.sensitivity.adjoint for part in parts])
        )
        count = len(self.samples)
        bound = concatenate_bounds([part.bound for part in parts])
        gradient = torch.stack([part.gradient for part in parts]).sum(0) / count
        return Evaluation(
            parameters=parameters.detach().clone(),
            value=sum(float(part.loss.value.sum()) for part in parts) / count,
            value_error=sum(float(part.loss.radius.sum()) for part in parts) / count,
            gradient=gradient.to(parameters),
            gradient_error=float(exact.pull_back(bound)) + float(torch.finfo(parameters.dtype).eps * gradient.norm()),
            work=self.counter.applications - begin,
            converged=all(part.converged for part in parts),
        )

    def _chunk(self, exact: Regularizer, where: slice, tolerance: Accuracy) -> CertifiedGradient:
        samples, settings = self.samples.select(where), self.settings
        loss = settings.loss(samples.clean)
        problem = self.regularizer.problem(settings.data_term(samples.degraded)).counted(self.counter)
        start = None if self.warm is None else WarmStart(self.warm.x[where], self.warm.adjoint[where])
        sensitivity = settings.method.differentiate(problem, loss, tolerance, start)
        return certify(exact, problem.data.double(), loss.double(), sensitivity, settings.certification, self.counter)
