"""From a computed pair to a gradient with bounds: the step that every certified
evaluation shares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import singledispatch
from typing import TypeVar

import torch
from torch import Tensor

from piggyback.certificates.bounds import GradientBound, local_bound
from piggyback.certificates.evidence import (
    Evidence,
    PairEvidence,
    gather_evidence,
    kind_of_sums,
)
from piggyback.certificates.loss import LossInterval, corrected_loss
from piggyback.certificates.smooth import (
    SmoothEvidence,
    gather_smooth_evidence,
    smooth_bound,
)
from piggyback.copies import doubled, snapshot, twin
from piggyback.operators.counting import ApplicationCounter
from piggyback.problems.base import LowerProblem
from piggyback.problems.pair import Sensitivity, flat_gradient
from piggyback.problems.regularizer import Regularizer
from piggyback.problems.saddle import SaddleProblem
from piggyback.problems.smooth import SmoothProblem
from piggyback.solvers.stopping import Status
from piggyback.terms.data.base import DataTerm
from piggyback.terms.losses import Loss
from piggyback.types import PerSample, Primal
from piggyback.values import require_kind


@singledispatch
def evidence_of(
    problem: LowerProblem, loss: Loss, x: Primal, adjoint: Primal
) -> tuple[PairEvidence, PerSample]:
    """The evidence of a pair and its surrogate (eq. 9), whatever the kind of
    problem.

    A new kind of problem with a certificate of its own registers it:
    ``evidence_of.register(Kind, gather)``.
    """
    raise TypeError(f"no certificate is known for a {type(problem).__name__}")


evidence_of.register(SaddleProblem, gather_evidence)
evidence_of.register(SmoothProblem, gather_smooth_evidence)


def evidence_at(
    problem: LowerProblem, loss: Loss, pair: Sensitivity
) -> tuple[PairEvidence, PerSample]:
    """``evidence_of`` a pair, with sums in the precision that its numbers need;
    all in float64 (synchronises)."""
    if isinstance(problem, SaddleProblem):
        problem = replace(
            problem, sums=kind_of_sums(problem, loss, pair.x, pair.adjoint)
        )
    return evidence_of(problem, loss, pair.x, pair.adjoint)


@singledispatch
def gradient_bound(evidence: PairEvidence) -> GradientBound:
    """The default bound of each kind of evidence: eq. 13 for ``f(K x)``, eq.
    N10 for a smooth energy; others register theirs."""
    raise TypeError(f"no gradient bound is known for {type(evidence).__name__}")


gradient_bound.register(Evidence, local_bound)
gradient_bound.register(SmoothEvidence, smooth_bound)


def require_parts(regularizer: Regularizer, data: DataTerm, loss: Loss) -> None:
    """Raise ``ValueError`` for what is no regularizer, data term or loss:
    errors deep inside would not name it."""
    require_kind("the regularizer", regularizer, Regularizer)
    require_kind("the data term", data, DataTerm)
    require_kind("the loss", loss, Loss)


Copied = TypeVar("Copied", bound=Regularizer)


@dataclass(frozen=True)
class Certification:
    """How pairs are certified: which gradient bound and which loss interval."""

    gradient: Callable[[PairEvidence], GradientBound] = gradient_bound
    loss: Callable[[PairEvidence], LossInterval] = corrected_loss


@dataclass(frozen=True)
class CertifiedGradient:
    """A pair, its certificates, and the gradient *sum* over its samples (flat,
    in the order of the parameters).

    ``gradient_error`` bounds the Euclidean distance of ``gradient`` to the
    exact sum; ``bound`` says it per sample and group. ``applications``:
    operator applications spent so far.
    """

    sensitivity: Sensitivity
    loss: LossInterval
    bound: GradientBound
    gradient: Tensor
    gradient_error: float
    converged: bool
    applications: float

    @property
    def relative_error(self) -> float:
        """The bound over the norm of the computed gradient (infinite for a zero
        gradient)."""
        size = float(self.gradient.norm())
        return self.gradient_error / size if size > 0 else float("inf")


def examine(
    exact: Regularizer,
    data: DataTerm,
    loss: Loss,
    pair: Sensitivity,
    counter: ApplicationCounter,
) -> tuple[PairEvidence, Tensor]:
    """The evidence of a pair, and the gradient read off it (flat, summed over
    the samples); all in float64."""
    parameters = list(exact.parameters())
    with torch.enable_grad():
        evidence, read_off = evidence_at(
            exact.problem(data).counted(counter), loss, pair
        )
        return evidence, flat_gradient(read_off.sum(), parameters)


def certify(
    exact: Regularizer,
    data: DataTerm,
    loss: Loss,
    sensitivity: Sensitivity,
    certification: Certification,
    counter: ApplicationCounter,
) -> CertifiedGradient:
    """Read gradient, loss interval and bounds off a pair, in float64
    (docs/theory.md, section 5).

    ``exact`` is the regularizer in float64; ``data`` and ``loss`` are in
    float64 too.
    """
    pair = sensitivity.double()
    evidence, gradient = examine(exact, data, loss, pair, counter)
    return assemble(exact, pair, evidence, gradient, certification, counter)


def assemble(
    exact: Regularizer,
    pair: Sensitivity,
    evidence: PairEvidence,
    gradient: Tensor,
    certification: Certification,
    counter: ApplicationCounter,
) -> CertifiedGradient:
    """The certificates of an examined pair."""
    with torch.no_grad():
        bound = certification.gradient(evidence)
        return CertifiedGradient(
            pair,
            certification.loss(evidence),
            bound,
            gradient,
            float(exact.pull_back(bound)) * pair.x.shape[0],
            converged(pair),
            counter.applications,
        )


def converged(pair: Sensitivity) -> bool:
    """Whether both solves of every sample reached their tolerances
    (synchronises)."""
    return bool(
        (
            (pair.lower_status == Status.CONVERGED)
            & (pair.adjoint_status == Status.CONVERGED)
        ).all()
    )


def double_copy(regularizer: Copied) -> Copied:
    """The regularizer with the same parameter values in float64, as leaves;
    frozen ones stay frozen."""
    copied = twin(regularizer, lambda v: snapshot(doubled(v)))
    for parameter, original in zip(
        copied.parameters(), regularizer.parameters(), strict=True
    ):
        parameter.requires_grad_(original.requires_grad)
    return copied


def concatenate_bounds(bounds: list[GradientBound]) -> GradientBound:
    """Bounds of all samples from those of batches."""
    return GradientBound(
        torch.cat([bound.operator for bound in bounds]),
        torch.cat([bound.weight for bound in bounds]),
        torch.cat([bound.smoothing for bound in bounds]),
        torch.cat([bound.shift for bound in bounds]),
        torch.cat([bound.emphasis for bound in bounds]),
    )


def split_like(vector: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """A flat vector cut into tensors of the shapes and dtypes of
    ``parameters``."""
    parts = vector.split([p.numel() for p in parameters])
    return [
        part.view_as(p).to(p) for part, p in zip(parts, parameters, strict=True)
    ]


def parameter_vector(regularizer: Regularizer) -> Tensor:
    """A flat copy of the parameters, outside any graph."""
    return (
        torch.nn.utils.parameters_to_vector(regularizer.parameters())
        .detach()
        .clone()
    )


def assign(regularizer: Regularizer, vector: Tensor) -> None:
    """Write a flat vector into the parameters."""
    leaves = list(regularizer.parameters())
    with torch.no_grad():
        for leaf, part in zip(leaves, split_like(vector, leaves), strict=True):
            leaf.copy_(part)
