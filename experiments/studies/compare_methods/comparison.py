"""Every hypergradient method on the same problems, against exact gradients:
error, bound, cost, time and memory."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from experiments.studies.compare_methods.digits import (
    LogisticLoss,
    PixelPenalty,
    data_term,
    exact_gradient,
    two_digits,
)
from experiments.studies.shared.instances import (
    BLUR_WEIGHT,
    Instance,
    deblurring,
    denoising,
    photograph_patches,
    scaled,
    starting_regularizer,
)
from experiments.studies.shared.reference import solve_reference
from piggyback.app.console.memory import peak_memory
from piggyback.certificates.certify import Hypergradient, split_like
from piggyback.hypergradients.api import hypergradient
from piggyback.hypergradients.base import DirectMethod, HypergradientMethod
from piggyback.hypergradients.capabilities import Guarantee
from piggyback.hypergradients.implicit import (
    ImplicitCG,
    ImplicitMINRES,
    Neumann,
)
from piggyback.hypergradients.literature.bda import BDA
from piggyback.hypergradients.literature.bome import BOME
from piggyback.hypergradients.literature.iaptt import IAPTT
from piggyback.hypergradients.literature.one_step import JacobianFree, OneStep
from piggyback.hypergradients.literature.unrolled import Truncated, Unrolled
from piggyback.hypergradients.literature.value_function import (
    BVFIM,
    ValueFunction,
)
from piggyback.hypergradients.piggyback import Piggyback
from piggyback.problems.pair import Accuracy, WarmStart
from piggyback.problems.regularizer import Regularizer
from piggyback.solvers.lower import radius_per_element, solve_lower
from piggyback.solvers.nonlinear_cg import NonlinearCG
from piggyback.solvers.stopping import Schedule
from piggyback.terms.data.base import DataTerm
from piggyback.terms.losses import Loss

Method = HypergradientMethod | DirectMethod
LOOSE = Accuracy(1e-1, 1e-1)
"""At which the memory is gauged: what a method keeps depends on its number of
steps or on nothing (``Memory``)."""


@dataclass(frozen=True, eq=False)
class MethodProblem:
    """A bilevel problem in float64 with one sample; ``exact``: its gradient
    (flat), from formulas of its own."""

    name: str
    regularizer: Regularizer
    data: DataTerm
    loss: Loss
    exact: Tensor


@dataclass(frozen=True)
class MethodRow:
    """One method on one problem.

    ``relative_error = ||G - grad L|| / ||grad L||``; ``bound``: what is
    certified of it, over ``||grad L||`` too (None: nothing); ``peak_mb``: peak
    of the tensors alive during the call, in 10^6 bytes; ``converged``: whether
    its solves reached the accuracy.
    """

    problem: str
    method: str
    guarantee: str
    gradient_norm: float
    relative_error: float
    bound: float | None
    cosine: float
    operator_applications: float
    seconds: float
    peak_mb: float
    converged: bool


@dataclass(frozen=True)
class MethodTrainingRow:
    """The exact upper loss after ``step`` upper steps, and the operator
    applications spent until then."""

    problem: str
    method: str
    step: int
    operator_applications: float
    upper_loss: float


def methods(steps: int) -> Mapping[str, Method]:
    """One instance of each, by name; the unrolled ones take ``steps`` steps."""
    chosen: tuple[Method, ...] = (
        Piggyback(Schedule(max_steps=20000, check_every=10)),
        ImplicitCG(),
        ImplicitMINRES(),
        Neumann(adjoint_schedule=Schedule(max_steps=steps)),
        Unrolled(steps),
        Truncated(20),
        OneStep(),
        JacobianFree(),
        ValueFunction(),
        BOME(rounds=20),
        BVFIM(),
        BDA(steps),
        IAPTT(20),
    )
    return {method.capabilities.name: method for method in chosen}


def settings(
    side: int, filters: int, size: int, examples: int
) -> Iterator[MethodProblem]:
    """Denoising, deblurring, and logistic regression on digits."""
    clean = photograph_patches(1, side, 1)
    regularizer = starting_regularizer(filters, size, 1)
    weaker = scaled(regularizer, BLUR_WEIGHT)
    for instance in (
        Instance("denoise", True, 0, regularizer, denoising(clean, 0), clean),
        Instance("deblur", True, 0, weaker, deblurring(clean, 0), clean),
    ):
        exact = solve_reference(
            instance.regularizer, instance.data, instance.clean
        ).gradient
        yield MethodProblem(instance.name, *instance.at(torch.float64), exact)
    training, validation = two_digits(3, 8, examples)
    penalty = PixelPenalty(training)
    loss = LogisticLoss(validation)
    yield MethodProblem(
        "digits",
        penalty,
        data_term(training),
        loss,
        exact_gradient(penalty, training, loss),
    )


def measure(
    setting: MethodProblem, name: str, method: Method, accuracy: Accuracy
) -> MethodRow:
    """Once for the time, once, at a loose accuracy that takes fewer steps of
    the same memory, for the peak."""
    # the memory is counted in a run of its own: to count it costs time
    begin = time.perf_counter()
    found = hypergradient(
        method, setting.regularizer, setting.data, setting.loss, accuracy
    )
    seconds = time.perf_counter() - begin
    peak = peak_memory(
        lambda: hypergradient(
            method, setting.regularizer, setting.data, setting.loss, LOOSE
        )
    )
    return row(
        setting, name, method.capabilities.guarantee, found, seconds, peak / 1e6
    )


def row(
    setting: MethodProblem,
    name: str,
    guarantee: Guarantee,
    found: Hypergradient,
    seconds: float,
    peak_mb: float,
) -> MethodRow:
    """What is known of a gradient."""
    exact = setting.exact
    gradient = found.gradient.double()
    size = float(exact.norm())
    cosine = torch.nn.functional.cosine_similarity(gradient, exact, dim=0)
    return MethodRow(
        problem=setting.name,
        method=name,
        guarantee=guarantee.name.lower(),
        gradient_norm=float(gradient.norm()),
        relative_error=float((gradient - exact).norm()) / size,
        bound=None if found.pair is None else found.gradient_error / size,
        cosine=float(cosine),
        operator_applications=found.applications,
        seconds=seconds,
        peak_mb=peak_mb,
        converged=found.converged,
    )


def train(
    setting: MethodProblem,
    name: str,
    method: Method,
    accuracy: Accuracy,
    steps: int,
    rate: float,
) -> Iterator[MethodTrainingRow]:
    """Adam on the gradients of ``method``, warm started; the losses on the way
    are solved for exactly and not counted."""
    regularizer = copy.deepcopy(setting.regularizer)
    optimizer = torch.optim.Adam(regularizer.parameters(), lr=rate)
    start: WarmStart | None = None
    spent = 0.0
    yield MethodTrainingRow(
        setting.name, name, 0, spent, upper_loss(regularizer, setting)
    )
    for step in range(1, steps + 1):
        found = hypergradient(
            method, regularizer, setting.data, setting.loss, accuracy, start
        )
        # warm starts, as training has them
        start = found.start
        spent += found.applications
        leaves = list(regularizer.parameters())
        parts = split_like(found.gradient, leaves)
        for leaf, part in zip(leaves, parts, strict=True):
            leaf.grad = part
        optimizer.step()
        yield MethodTrainingRow(
            setting.name,
            name,
            step,
            spent,
            upper_loss(regularizer, setting, found.x),
        )


def upper_loss(
    regularizer: Regularizer,
    setting: MethodProblem,
    start: Tensor | None = None,
) -> float:
    """``l(x*)`` to about six digits at least, from ``start`` where given."""
    problem = regularizer.problem(setting.data).detached()
    radius = radius_per_element(problem, 1e-7)
    (x,) = solve_lower(problem, NonlinearCG(), radius, start).result
    return float(setting.loss.value(x).sum())
