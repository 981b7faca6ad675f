"""From a computed pair to a gradient with bounds: the step that every certified
evaluation shares."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import singledispatch

import torch
from torch import Tensor

from piggyback.certificates.bounds import local_bound
from piggyback.certificates.evidence import PairEvidence
from piggyback.certificates.loss import LossInterval, corrected_loss
from piggyback.certificates.saddle import (
    Evidence,
    gather_evidence,
    kind_of_sums,
)
from piggyback.certificates.smooth import (
    SmoothEvidence,
    gather_smooth_evidence,
    smooth_bound,
)
from piggyback.problems.base import LowerProblem
from piggyback.problems.groups import GradientBound
from piggyback.problems.pair import Sensitivity, WarmStart, flat_gradient
from piggyback.problems.posed import Posed
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

    Args:
        problem: in float64.
        loss: of the primal variable, in float64.
        x: approximate solution, ``(batch, ...)``.
        adjoint: approximate ``P``, likewise.

    Returns:
        The evidence, and the surrogate ``(batch,)``, differentiable in the
        parameters.

    Raises:
        TypeError: for a kind of problem that nobody registered.
    """
    raise TypeError(f"no certificate is known for a {type(problem).__name__}")


evidence_of.register(SaddleProblem, gather_evidence)
evidence_of.register(SmoothProblem, gather_smooth_evidence)


def evidence_at(
    problem: LowerProblem, loss: Loss, pair: Sensitivity
) -> tuple[PairEvidence, PerSample]:
    """``evidence_of`` a pair, with sums in the precision that its numbers need
    (synchronises).

    Args:
        problem: in float64.
        loss: of the primal variable, in float64.
        pair: in float64.

    Returns:
        As ``evidence_of``.

    Raises:
        TypeError: for a kind of problem that nobody registered.
    """
    if isinstance(problem, SaddleProblem):
        # the bounds are mostly coefficient arrays: in single precision they
        # cost half of what they do in double
        kind = kind_of_sums(
            problem,
            loss,
            pair.x,
            pair.adjoint,
        )
        problem = replace(problem, sums=kind)
    return evidence_of(problem, loss, pair.x, pair.adjoint)


@singledispatch
def gradient_bound(evidence: PairEvidence) -> GradientBound:
    """The default bound of each kind of evidence: eq. 13 for ``f(K x)``, eq.
    N10 for a smooth energy; others register theirs.

    Args:
        evidence: of the pair that the gradient is read off.

    Raises:
        TypeError: for a kind of evidence that nobody registered.
    """
    raise TypeError(f"no gradient bound is known for {type(evidence).__name__}")


gradient_bound.register(Evidence, local_bound)
gradient_bound.register(SmoothEvidence, smooth_bound)


def require_parts(regularizer: Regularizer, data: DataTerm, loss: Loss) -> None:
    """Refuse what errors deep inside would not name.

    Args:
        regularizer: from the caller; likewise ``data`` and ``loss``.
        data: from the caller.
        loss: from the caller.

    Raises:
        ValueError: for what is no regularizer, data term or loss.
    """
    require_kind("the regularizer", regularizer, Regularizer)
    require_kind("the data term", data, DataTerm)
    require_kind("the loss", loss, Loss)


@dataclass(frozen=True)
class Certification:
    """How pairs are certified.

    Args:
        gradient: from evidence to bounds per parameter group.
        loss: from evidence to the interval of ``l(x*)``.
    """

    gradient: Callable[[PairEvidence], GradientBound] = gradient_bound
    loss: Callable[[PairEvidence], LossInterval] = corrected_loss


@dataclass(frozen=True)
class Hypergradient:
    """The gradient of ``L = sum_i l(x_i*)`` and what is known of its error.

    Everything here is a *sum* over the samples of the batch, or per sample.

    Args:
        gradient: flat, in the order of the regularizer's parameters; zero for
            frozen ones.
        gradient_error: certified Euclidean distance of ``gradient`` to the
            exact sum; infinite where nothing certifies it.
        groups: the same per sample and parameter group (None without a pair).
        loss: ``l(x_i*)``, ``(batch,)``, with its certified radius.
        x: the reconstructions that the gradient was computed at.
        status: ``Status`` codes ``(batch,)``, the worse of the two solves.
        start: where to go on after a change of the parameters.
        applications: operator applications, certificates included.
        pair: what the certificates are of, in float64 (None for methods that
            have no adjoint).
    """

    gradient: Tensor
    gradient_error: float
    groups: GradientBound | None
    loss: LossInterval
    x: Primal
    status: Tensor
    start: WarmStart
    applications: float
    pair: Sensitivity | None

    @property
    def relative_error(self) -> float:
        """The bound over the norm of the computed gradient (infinite for a zero
        gradient); 1 and above certifies nothing about the direction."""
        size = float(self.gradient.norm())
        return self.gradient_error / size if size > 0 else math.inf

    @property
    def converged(self) -> bool:
        """Whether both solves of every sample reached their tolerances
        (synchronises)."""
        return bool((self.status == Status.CONVERGED).all())


def examine(posed: Posed, pair: Sensitivity) -> tuple[PairEvidence, Tensor]:
    """The evidence of a pair, and the gradient read off it (eq. 9).

    Args:
        posed: the problem that the pair is about.
        pair: in float64.

    Returns:
        The evidence, and the gradient in float64: flat, in the order of the
        parameters, summed over the samples.
    """
    with torch.enable_grad():
        evidence, read_off = evidence_at(
            posed.exact,
            posed.exact_loss,
            pair,
        )
        # the problem is examined again after corrections of the pair
        gradient = flat_gradient(
            read_off.sum(), posed.parameters, keep_graph=True
        )
    return evidence, gradient


def certify(
    posed: Posed,
    pair: Sensitivity,
    certification: Certification | None = None,
) -> Hypergradient:
    """Gradient, loss interval and bounds of a pair, in float64 (docs/theory.md,
    section 5).

    Args:
        posed: the problem that the pair is about.
        pair: whatever it is, the certificates hold for it.
        certification: other bounds than the default ones.
    """
    chosen = Certification() if certification is None else certification
    pair = pair.double()
    evidence, gradient = examine(posed, pair)
    return assemble(posed, pair, evidence, gradient, chosen)


def assemble(
    posed: Posed,
    pair: Sensitivity,
    evidence: PairEvidence,
    gradient: Tensor,
    certification: Certification,
) -> Hypergradient:
    """The certificates of an examined pair.

    Args:
        posed: the problem that the pair is about.
        pair: in float64.
        evidence: what ``examine`` found, likewise ``gradient``.
        gradient: flat, summed over the samples.
        certification: which bounds.
    """
    with torch.no_grad():
        groups = certification.gradient(evidence)
        loss = certification.loss(evidence)
        error = float(posed.regularizer.pull_back(groups))
    # solvers go on in the working precision, and the caller sees its own dtype;
    # the certificates are about the pair in float64
    start = WarmStart(pair.x, pair.adjoint).to(posed.problem.data.start.dtype)
    return Hypergradient(
        gradient=gradient,
        gradient_error=error,
        groups=groups,
        loss=loss,
        x=start.x,
        status=torch.maximum(pair.lower_status, pair.adjoint_status),
        start=start,
        applications=posed.applications,
        pair=pair,
    )


def converged(pair: Sensitivity) -> bool:
    """Whether both solves of every sample reached their tolerances
    (synchronises).

    Args:
        pair: as a method returned it.
    """
    lower = pair.lower_status == Status.CONVERGED
    adjoint = pair.adjoint_status == Status.CONVERGED
    # joined on the device: one answer is read back
    return bool((lower & adjoint).all())


def split_like(vector: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """A flat vector cut into tensors of the shapes and dtypes of
    ``parameters``.

    Args:
        vector: as many numbers as the parameters have together.
        parameters: of any shapes.
    """
    parts = vector.split([p.numel() for p in parameters])
    return [
        part.view_as(p).to(p) for part, p in zip(parts, parameters, strict=True)
    ]


def parameter_vector(regularizer: Regularizer) -> Tensor:
    """A flat copy of the parameters, outside any graph.

    Args:
        regularizer: left alone.
    """
    vector = torch.nn.utils.parameters_to_vector(regularizer.parameters())
    # of a single parameter the vector is a view
    return vector.detach().clone()


def assign(regularizer: Regularizer, vector: Tensor) -> None:
    """Write a flat vector into the parameters.

    Args:
        regularizer: its parameters are overwritten.
        vector: in their order.
    """
    leaves = list(regularizer.parameters())
    with torch.no_grad():
        for leaf, part in zip(
            leaves,
            split_like(vector, leaves),
            strict=True,
        ):
            leaf.copy_(part)
