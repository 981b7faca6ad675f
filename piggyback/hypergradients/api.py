"""One call for every hypergradient method: the gradient, what it cost, and what
is known of its error."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from piggyback.batched import require_same_device
from piggyback.certificates.certify import (
    Hypergradient,
    certify,
    require_parts,
)
from piggyback.certificates.loss import LossInterval
from piggyback.hypergradients.base import DirectMethod, HypergradientMethod
from piggyback.hypergradients.capabilities import Guarantee, Refused
from piggyback.hypergradients.on_demand import (
    FIRST_ACCURACY,
    Assessment,
    OnDemand,
)
from piggyback.operators.counting import ApplicationCounter
from piggyback.problems.pair import Accuracy, WarmStart
from piggyback.problems.posed import pose
from piggyback.problems.regularizer import Regularizer
from piggyback.problems.saddle import SaddleProblem
from piggyback.solvers.stopping import (
    NotConverged,
    Status,
    warn_unless_converged,
)
from piggyback.terms.data.base import DataTerm
from piggyback.terms.losses import Loss
from piggyback.values import require_kind, require_samples


def hypergradient(
    method: HypergradientMethod | DirectMethod,
    regularizer: Regularizer,
    data: DataTerm,
    loss: Loss,
    accuracy: Accuracy | None = None,
    start: WarmStart | None = None,
    relative_error: float | None = None,
) -> Hypergradient:
    """The gradient of ``sum_i l(x_i*)`` in the regularizer's parameters, with a
    certified bound of its error.

    The bound is computed in float64 and holds whatever the method did. Without
    ``relative_error`` the method stops at ``accuracy`` and the bound says what
    that was worth; with it, Newton corrections (docs/theory.md, eq. 23) follow
    until the bound is that part of the gradient.

    Args:
        method: how the pair ``(x, P)`` is found, as ``ImplicitCG()`` or
            ``Piggyback()``; a ``DirectMethod`` has no pair, and its gradient
            no bound (infinite): see ``assess``.
        regularizer: its parameters are what the gradient is in.
        data: data term of the batch; images ``(batch, channels, height,
            width)``, grey values in [0, 1].
        loss: upper-level loss of the reconstructions.
        accuracy: tolerances of the two solves; may be left out where
            ``relative_error`` is given.
        start: an earlier pair of the same samples.
        relative_error: wanted bound over the norm of the gradient, as 0.01.

    Returns:
        Sums over the batch, and what is known per sample.

    Raises:
        Refused: (a ``ValueError``) for a lower level that the method cannot
            take, and for a ``relative_error`` of a direct method.
        ValueError: for inadmissible or non-finite input, which it names.

    Warns:
        NotConverged: where a certifying method did not reach ``accuracy``, or
            the bound not ``relative_error``.
    """
    if not isinstance(method, (HypergradientMethod, DirectMethod)):
        require_kind("the method", method, HypergradientMethod)
    require_parts(regularizer, data, loss)
    # a default would be taken for a promise about the result
    if accuracy is None and relative_error is None:
        raise ValueError(
            "give an accuracy, as Accuracy(lower=1e-4, adjoint=0.01), or a "
            "relative_error, as 0.01"
        )
    wanted = FIRST_ACCURACY if accuracy is None else accuracy
    require_kind("the accuracy", wanted, Accuracy)
    # by the declaration alone: a refusal must not cost a solve
    method.capabilities.require(data, Guarantee.DIRECTION)
    require_samples(data.start)
    loss.check()
    if start is not None:
        _check_start(start, data)
    # direct methods have no adjoint, which corrections and certificates start
    # from
    if isinstance(method, DirectMethod):
        if relative_error is not None:
            raise Refused(
                f"{method.capabilities.name} returns no pair (x, P) that a "
                "relative_error could be certified with: give an accuracy, and "
                "assess its gradient"
            )
        return _direct(method, regularizer, data, loss, wanted, start)
    if relative_error is not None:
        return _refined(
            OnDemand(method, wanted),
            regularizer,
            data,
            loss,
            relative_error,
            start,
        )
    return _paired(method, regularizer, data, loss, wanted, start)


def assess(
    gradient: Tensor,
    regularizer: Regularizer,
    data: DataTerm,
    loss: Loss,
    fraction: float = 0.25,
    start: WarmStart | None = None,
) -> Assessment:
    """How far any given gradient is from the exact one: an estimate with two
    certified sides (docs/theory.md, eq. 24).

    A second gradient is refined until its own bound is ``fraction`` of the
    difference, so the bound is at most ``(1 + fraction)/(1 - fraction)`` times
    the true error.

    Args:
        gradient: flat, in the order of the parameters, *summed* over the
            samples, wherever it is from.
        regularizer: see ``hypergradient``; likewise ``data`` and ``loss``.
        data: the data term that ``gradient`` belongs to.
        loss: the loss that it is the gradient of.
        fraction: between 0 and 1.
        start: a pair to start from, as ``found.start`` of an earlier result.

    Raises:
        ValueError: for a gradient of the wrong size, other fractions, and
            inadmissible input.
    """
    require_parts(regularizer, data, loss)
    require_samples(data.start)
    loss.check()
    if start is not None:
        _check_start(start, data)
    # a regularizer of its own in float64: the gradient that is assessed may be
    # from
    # anywhere, and says nothing about how it was computed
    posed = pose(regularizer, data, loss)
    return OnDemand().assess(gradient, posed, start, fraction)


def _check_start(start: WarmStart, data: DataTerm) -> None:
    require_same_device("start", start.x, "the data are", data.start)
    # either part may have been made elsewhere
    require_same_device(
        "adjoint of the start", start.adjoint, "the data are", data.start
    )


def _refined(
    on_demand: OnDemand,
    regularizer: Regularizer,
    data: DataTerm,
    loss: Loss,
    relative_error: float,
    start: WarmStart | None,
) -> Hypergradient:
    """Refined to the relative error; warns where it stays above."""
    found = on_demand.differentiate(
        regularizer, data, loss, relative_error, start
    )
    # negated, so that an infinite or undefined bound is told of as well
    if not found.relative_error <= relative_error:
        name = on_demand.method.capabilities.name
        warnings.warn(
            f"hypergradient by {name}: the certified relative error is "
            f"{found.relative_error:.2g}, not {relative_error:g}",
            NotConverged,
            stacklevel=3,
        )
    return found


def _paired(
    method: HypergradientMethod,
    regularizer: Regularizer,
    data: DataTerm,
    loss: Loss,
    accuracy: Accuracy,
    start: WarmStart | None,
) -> Hypergradient:
    posed = pose(regularizer, data, loss)
    pair = method.differentiate(
        posed.problem,
        posed.loss,
        accuracy,
        start,
    )
    # others stop where they do by design, and so do truncated series
    if method.capabilities.guarantee == Guarantee.CERTIFIED:
        # a series that ends after its terms has done what was asked
        cut = pair.adjoint_status == Status.STEP_LIMIT
        adjoint = torch.where(
            cut,
            int(Status.CONVERGED),
            pair.adjoint_status,
        )
        warn_unless_converged(
            torch.maximum(pair.lower_status, adjoint),
            f"hypergradient by {method.capabilities.name}",
            stacklevel=4,
        )
    return certify(posed, pair)


def _direct(
    method: DirectMethod,
    regularizer: Regularizer,
    data: DataTerm,
    loss: Loss,
    accuracy: Accuracy,
    start: WarmStart | None,
) -> Hypergradient:
    counter = ApplicationCounter()
    # in working precision throughout: nothing is certified, so that a problem
    # in
    # float64 would be built for nothing
    with torch.enable_grad():
        problem = regularizer.problem(data).counted(counter)
        if not isinstance(problem, SaddleProblem):
            raise Refused(
                f"{method.capabilities.name} needs a SaddleProblem, got a {type(problem).__name__}"
            )
        # the parameters themselves are differentiated, not a copy in float64
        found = method.differentiate(
            problem, list(regularizer.parameters()), loss, accuracy, start
        )
    value = loss.value(found.x).detach()
    # infinite bounds are true ones
    return Hypergradient(
        gradient=found.gradient,
        gradient_error=math.inf,
        groups=None,
        loss=LossInterval(
            value,
            torch.full_like(value, math.inf),
        ),
        x=found.x,
        status=found.status,
        start=found.start,
        applications=counter.applications,
        pair=None,
    )
