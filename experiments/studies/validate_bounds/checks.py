"""One pair of one image: its true error, and everything that is said about it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from experiments.studies.shared.instances import LINEAR, Instance
from experiments.studies.shared.reference import Reference
from piggyback.app.runs.folder import Json
from piggyback.certificates.certify import examine, gradient_bound
from piggyback.certificates.loss import corrected_loss
from piggyback.certificates.worst_case import worst_case_bound
from piggyback.hypergradients.base import HypergradientMethod
from piggyback.hypergradients.implicit import ImplicitCG
from piggyback.hypergradients.on_demand import OnDemand
from piggyback.hypergradients.piggyback import Piggyback
from piggyback.operators.counting import ApplicationCounter
from piggyback.problems.pair import Accuracy, WarmStart
from piggyback.problems.posed import pose
from regularizers.linear import LinearRegularizer

ADJOINT = 30.0
"""Tolerance of the adjoint over that of the image, which is in grey values."""
COARSEST_ADJOINT = 0.5
TRAINING = Accuracy(lower=4e-3, adjoint=0.4)
"""Tolerances of a step of training, at its start."""
METHODS: Mapping[str, HypergradientMethod] = {
    "implicit": ImplicitCG(),
    "piggyback": Piggyback(),
}


@dataclass(frozen=True)
class Solve:
    """One way to come to a pair.

    Args:
        method: a key of ``METHODS``.
        precision: of the solve; certificates are in float64 whatever it is.
        accuracy: RMS error of the image in grey values, and of the adjoint.
    """

    method: str
    precision: torch.dtype
    accuracy: Accuracy


def accuracy_for(tolerance: float) -> Accuracy:
    """Both tolerances tied to the one of the image, in grey values."""
    adjoint = min(ADJOINT * tolerance, COARSEST_ADJOINT)
    return Accuracy(tolerance, adjoint)


@dataclass(frozen=True)
class BoundCheck:
    """One pair of one image.

    ``true_error``, the bounds, ``estimate`` and ``lower``: Euclidean errors of
    the whole gradient over the norm of the exact one. ``local``: the certified
    bound of the assessment, which corrects the pair as far as it must;
    ``plain_local``: the same kind of bound of the pair as it is.
    ``worst_case`` is infinite for networks, for which there is no such bound.
    Losses are absolute. Applications: of the solve, and of the assessment.
    """

    problem: str
    image: int
    potential: str
    own: bool
    smoothing: float
    dtype: str
    method: str
    tolerance: float
    operator_applications: float
    true_error: float
    worst_case: float
    local: float
    estimate: float
    lower: float
    plain_local: float
    assessment_applications: float
    loss_error: float
    corrected_loss_error: float
    corrected_loss_bound: float

    @property
    def violated(self) -> list[str]:
        """The statements that are wrong; a bound that is not a number is."""
        statements = {
            "worst_case": self.worst_case >= self.true_error,
            "local": self.local >= self.true_error,
            "plain_local": self.plain_local >= self.true_error,
            "lower": self.lower <= self.true_error,
            "corrected_loss_bound": self.corrected_loss_bound
            >= self.corrected_loss_error,
        }
        return [name for name, holds in statements.items() if not holds]

    def row(self) -> dict[str, Json]:
        """For the file of results."""
        return {**asdict(self), "violated": self.violated}


# --- what is solved -----------------------------------------------------------


def spread(first: float, last: float, count: int) -> list[float]:
    """``count`` numbers in geometric progression."""
    return [float(value) for value in np.geomspace(first, last, count)]


def solves(instance: Instance, count: int) -> list[Solve]:
    """What is asked of one instance.

    Args:
        instance: regularizer and image.
        count: tolerances per precision; more where the figures look.

    Returns:
        Pairs of the implicit method at all tolerances in both precisions, the
        pair of a training step (float32), and one of piggyback where it is
        quick.
    """
    single = torch.float32
    double = torch.float64
    chosen = [
        Solve("implicit", single, accuracy_for(tolerance))
        for tolerance in spread(1e-2, 1e-5, count)
    ]
    if is_shown(instance):
        fine = spread(1e-2, 1e-7, 4 * count)
    else:
        fine = spread(1e-3, 1e-6, count)
    chosen += [
        Solve("implicit", double, accuracy_for(tolerance)) for tolerance in fine
    ]
    if instance.own and is_denoising(instance):
        chosen.append(Solve("implicit", single, TRAINING))
    return chosen + _by_piggyback(instance)


def _by_piggyback(instance: Instance) -> list[Solve]:
    # its dual variable is one of K: a network has none
    if not isinstance(instance.regularizer, LinearRegularizer):
        return []
    chosen = []
    # with less smoothing it takes thousands of iterations
    moderate = 0.005 < instance.smoothing < 0.05
    if instance.own or (moderate and is_denoising(instance)):
        chosen.append(Solve("piggyback", torch.float32, accuracy_for(1e-3)))
    if instance.name == "start/denoise" and instance.own:
        chosen.append(Solve("piggyback", torch.float64, accuracy_for(1e-2)))
    return chosen


def is_denoising(instance: Instance) -> bool:
    """Whether nothing but noise is to be undone."""
    return instance.name.endswith("/denoise")


def is_shown(instance: Instance) -> bool:
    """Whether the figures over operator applications show this instance."""
    shown = instance.name == f"{LINEAR}/denoise"
    return shown and instance.own and instance.image == 0


# --- what is said about it ----------------------------------------------------


def check(instance: Instance, reference: Reference, solve: Solve) -> BoundCheck:
    """Errors and bounds of one pair.

    Args:
        instance: regularizer and image.
        reference: its exact solution.
        solve: how to come to the pair.

    Returns:
        The row.
    """
    counter = ApplicationCounter()
    regularizer, data, loss = instance.at(solve.precision)
    problem = regularizer.problem(data).counted(counter)
    method = METHODS[solve.method]
    pair = method.differentiate(problem, loss, solve.accuracy)
    # the parameters of training, exactly: what float32 rounds away is part of
    # the error
    posed = pose(regularizer, data, loss)
    exact = posed.regularizer
    evidence, gradient = examine(posed, pair.double())
    start = WarmStart(pair.x, pair.adjoint)
    assessment = OnDemand().assess(gradient, posed, start)
    # infinite bounds hold, and say nothing
    worst = math.inf
    if isinstance(regularizer, LinearRegularizer):
        worst = float(exact.pull_back(worst_case_bound(evidence)))
    plain = float(exact.pull_back(gradient_bound(evidence)))
    interval = corrected_loss(evidence)
    size = float(reference.gradient.norm())
    return BoundCheck(
        problem=instance.name,
        image=instance.image,
        potential=instance.potential,
        own=instance.own,
        smoothing=instance.smoothing,
        dtype=str(solve.precision).removeprefix("torch."),
        method=solve.method,
        tolerance=solve.accuracy.lower,
        operator_applications=counter.applications,
        true_error=true_error(gradient, reference),
        worst_case=worst / size,
        local=assessment.bound / size,
        estimate=assessment.estimate / size,
        lower=assessment.lower / size,
        plain_local=plain / size,
        assessment_applications=assessment.refined.applications,
        loss_error=abs(float(evidence.residuals.value) - reference.loss),
        corrected_loss_error=abs(float(interval.value) - reference.loss),
        corrected_loss_bound=float(interval.radius),
    )


def true_error(gradient: Tensor, reference: Reference) -> float:
    """Relative to the exact gradient."""
    away = (gradient - reference.gradient).norm()
    return float(away / reference.gradient.norm())
