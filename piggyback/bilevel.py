"""The bilevel problem as an oracle: parameters in, certified upper loss and hypergradient out."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from torch import Tensor

from piggyback.certified import Certification, CertifiedGradient, certify, concatenate_bounds, double_copy, split_like
from piggyback.hypergradient.base import Accuracy, HypergradientMethod, WarmStart
from piggyback.hypergradient.refinement import Refined
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

    Small batches keep the coefficient arrays in the cache; ``workers`` threads share the batches (give each one thread of
    its own: ``torch.set_num_threads(1)``).  The result depends on neither.
    """

    accuracy: Accuracy = Accuracy(lower=3e-4, adjoint=0.3)
    method: HypergradientMethod = field(default_factory=Refined)
    certification: Certification = field(default_factory=Certification)
    data_term: Callable[[Primal], DataTerm] = Denoising
    loss: Callable[[Primal], Loss] = SquaredError
    batch: int = 8
    workers: int = 1


class BilevelOracle(Oracle):
    """``L(theta) = mean_i l(x_i*(theta))`` over a fixed set of samples, with warm starts per image.

    Certificates and gradients are evaluated in float64, so that the bound is not blurred by float32 rounding; the
    solves run in the dtype of the regularizer.  ``warm`` holds the latest pair of every image (None before the first).
    """

    def __init__(self, regularizer: Regularizer, samples: Samples, settings: BilevelSettings | None = None) -> None:
        self.regularizer = regularizer
        self.samples = samples
        self.settings = settings if settings is not None else BilevelSettings()
        self.warm: WarmStart | None = None

    def parameters(self) -> Tensor:
        return torch.nn.utils.parameters_to_vector(self.regularizer.parameters()).detach().clone()

    def assign(self, parameters: Tensor) -> None:
        """Write a flat vector into the regularizer's parameters."""
        leaves = list(self.regularizer.parameters())
        with torch.no_grad():
            for leaf, part in zip(leaves, split_like(parameters, leaves), strict=True):
                leaf.copy_(part)

    def evaluate(self, parameters: Tensor, accuracy: float) -> Evaluation:
        self.assign(parameters)
        tolerance, count = self.settings.accuracy.scaled(accuracy), len(self.samples)
        exact = double_copy(self.regularizer)
        firsts = range(0, count, self.settings.batch)
        if self.settings.workers == 1:
            parts = [self._part(exact, first, tolerance) for first in firsts]
        else:  # the results are combined in the order of the samples, whatever order they finish in
            with ThreadPoolExecutor(self.settings.workers) as pool:
                parts = list(pool.map(lambda first: self._part(exact, first, tolerance), firsts))
        pairs = [part.sensitivity for part in parts]
        self.warm = WarmStart(torch.cat([p.x for p in pairs]), torch.cat([p.adjoint for p in pairs])).to(
            parameters.dtype
        )
        gradient = torch.stack([part.gradient for part in parts]).sum(0) / count
        rounded = gradient.to(parameters)
        bound = exact.pull_back(concatenate_bounds([part.bound for part in parts]))
        return Evaluation(
            parameters=parameters.detach().clone(),
            value=sum(float(part.loss.value.sum()) for part in parts) / count,
            value_error=sum(float(part.loss.radius.sum()) for part in parts) / count,
            gradient=rounded,
            gradient_error=float(bound) + float((rounded - gradient).norm()),
            work=sum(part.applications for part in parts),
            converged=all(part.converged for part in parts),
        )

    def _part(self, exact: Regularizer, first: int, tolerance: Accuracy) -> CertifiedGradient:
        where, counter = slice(first, first + self.settings.batch), ApplicationCounter()
        samples, settings = self.samples.select(where), self.settings
        loss = settings.loss(samples.clean)
        data = settings.data_term(samples.degraded)
        problem = self.regularizer.problem(data).with_exact(exact.problem(data.double())).counted(counter)
        start = None if self.warm is None else WarmStart(self.warm.x[where], self.warm.adjoint[where])
        pair = settings.method.differentiate(problem, loss, tolerance, start)
        return certify(exact, data.double(), loss.double(), pair, settings.certification, counter)
