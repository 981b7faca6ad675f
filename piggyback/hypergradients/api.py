"""One call for every hypergradient method: the gradient, what it cost, and what
is known of its error."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from piggyback.batched import require_same_device
from piggyback.certificates.certify import (
    Certification,
    CertifiedGradient,
    certify,
    double_copy,
    require_parts,
)
from piggyback.hypergradients.base import DirectMethod, HypergradientMethod
from piggyback.hypergradients.capabilities import Guarantee, Refused
from piggyback.operators.counting import ApplicationCounter
from piggyback.problems.pair import Accuracy, WarmStart
from piggyback.problems.regularizer import Regularizer
from piggyback.problems.saddle import SaddleProblem
from piggyback.solvers.stopping import Status, warn_unless_converged
from piggyback.terms.data.base import DataTerm
from piggyback.terms.losses import Loss
from piggyback.types import Primal
from piggyback.values import require_kind, require_samples


@dataclass(frozen=True)
class Hypergradient:
    """The gradient of ``sum_i l(x_i*)`` (flat, in the order of the parameters,
    zero for frozen ones) as one method sees it.

    ``loss``: the sum of the losses at ``x``; ``status`` ``(batch,)``: the worse
    of the two solves of a sample; ``start``: where to go on after a change of
    the parameters; ``applications``: operator applications, certificate
    included; ``guarantee``: what the method promises of such a gradient;
    ``certificate``: the bounds, for methods that return a pair (None for the
    others).
    """

    gradient: Tensor
    loss: float
    x: Primal
    status: Tensor
    start: WarmStart
    applications: float
    guarantee: Guarantee
    certificate: CertifiedGradient | None

    @property
    def bound(self) -> float | None:
        """Certified distance of ``gradient`` to the exact one (Euclidean norm),
        None where nothing certifies it."""
        return (
            None
            if self.certificate is None
            else self.certificate.gradient_error
        )


def hypergradient(
    method: HypergradientMethod | DirectMethod,
    regularizer: Regularizer,
    data: DataTerm,
    loss: Loss,
    accuracy: Accuracy,
    start: WarmStart | None = None,
    least: Guarantee = Guarantee.DIRECTION,
) -> Hypergradient:
    """The gradient of ``method``, whichever it is; the gradient of a pair is
    certified in float64.

    Warns (``NotConverged``) where a method that promises certified gradients
    did not reach the ``accuracy``; see ``status``. Raises ``Refused`` (a
    ``ValueError``) for a lower level that the method cannot take, or if it
    gives less than ``least``.
    """
    if not isinstance(method, (HypergradientMethod, DirectMethod)):
        require_kind("the method", method, HypergradientMethod)
    require_parts(regularizer, data, loss)
    require_kind("the accuracy", accuracy, Accuracy)
    method.capabilities.require(data, least)
    require_samples(data.start)
    loss.check()
    if start is not None:
        require_same_device("start", start.x, "the data are", data.start)
        require_same_device(
            "adjoint of the start", start.adjoint, "the data are", data.start
        )
    if isinstance(method, DirectMethod):
        return _direct(method, regularizer, data, loss, accuracy, start)
    return _paired(method, regularizer, data, loss, accuracy, start)


def _paired(
    method: HypergradientMethod,
    regularizer: Regularizer,
    data: DataTerm,
    loss: Loss,
    accuracy: Accuracy,
    start: WarmStart | None,
) -> Hypergradient:
    counter, exact = ApplicationCounter(), double_copy(regularizer)
    problem = (
        regularizer.problem(data)
        .with_exact(exact.problem(data.double()))
        .counted(counter)
    )
    pair = method.differentiate(problem, loss, accuracy, start)
    status = torch.maximum(pair.lower_status, pair.adjoint_status)
    # others stop where they do by design, and so do truncated series
    if method.capabilities.guarantee == Guarantee.CERTIFIED:
        cut = pair.adjoint_status == Status.STEP_LIMIT
        ended = torch.maximum(
            pair.lower_status,
            torch.where(cut, int(Status.CONVERGED), pair.adjoint_status),
        )
        warn_unless_converged(
            ended, f"hypergradient by {method.capabilities.name}", stacklevel=4
        )
    part = certify(
        exact, data.double(), loss.double(), pair, Certification(), counter
    )
    return Hypergradient(
        gradient=part.gradient,
        loss=float(loss.double().value(pair.x.double()).sum()),
        x=pair.x,
        status=status,
        start=WarmStart(pair.x, pair.adjoint).to(data.start.dtype),
        applications=counter.applications,
        guarantee=method.capabilities.guarantee,
        certificate=part,
    )


def _direct(
    method: DirectMethod,
    regularizer: Regularizer,
    data: DataTerm,
    loss: Loss,
    accuracy: Accuracy,
    start: WarmStart | None,
) -> Hypergradient:
    counter = ApplicationCounter()
    with torch.enable_grad():
        problem = regularizer.problem(data).counted(counter)
        if not isinstance(problem, SaddleProblem):
            raise Refused(
                f"{method.capabilities.name} needs a SaddleProblem, got a {type(problem).__name__}"
            )
        found = method.differentiate(
            problem, list(regularizer.parameters()), loss, accuracy, start
        )
    return Hypergradient(
        gradient=found.gradient,
        loss=float(loss.value(found.x).sum()),
        x=found.x,
        status=found.status,
        start=found.start,
        applications=counter.applications,
        guarantee=method.capabilities.guarantee,
        certificate=None,
    )
