"""The toy of the method tests: 40 unknowns, a smoothed l1 potential, and a
condition number that is asked for."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from piggyback.certificates.certify import Hypergradient, examine
from piggyback.hypergradients.api import hypergradient
from piggyback.hypergradients.base import DirectMethod, HypergradientMethod
from piggyback.hypergradients.on_demand import Assessment, OnDemand
from piggyback.problems.pair import Accuracy, Sensitivity, WarmStart
from piggyback.problems.posed import Posed
from tests.support.oracles import chained, truth
from tests.support.problems import Case, LogRegularizer, dense_case

TIGHT = Accuracy(1e-13, 1e-13)


@cache
def toy(condition: float) -> Case:
    """``L/mu = condition`` for the constants that the solvers use."""
    plain = dense_case(
        "toy", "", "charbonnier", size=40, rows=60, condition=2.0, seed=5
    )
    problem = plain.problem()
    scale = (
        condition * problem.data.strong_convexity - problem.data.smoothness
    ) / float(problem.stiffness())
    return plain.moved(weight=plain.weight * scale)


def constants(case: Case) -> tuple[float, float]:
    """``mu`` and ``L``."""
    problem = case.problem()
    return problem.data.strong_convexity, problem.data.smoothness + float(
        problem.stiffness()
    )


def exact(case: Case) -> Tensor:
    """The exact gradient in the parameters of ``LogRegularizer``, flat."""
    return chained(case, truth(case).gradient)


def at_solution(case: Case) -> WarmStart:
    """``x*``, and no idea of ``P``."""
    x = truth(case).x.view_as(case.target)
    return WarmStart(x, torch.zeros_like(x))


def ask(
    method: HypergradientMethod | DirectMethod,
    case: Case,
    accuracy: Accuracy = TIGHT,
    start: WarmStart | None = None,
) -> Hypergradient:
    return hypergradient(
        method, LogRegularizer(case), case.data, case.loss, accuracy, start
    )


def assess_pair(
    on_demand: OnDemand,
    posed: Posed,
    pair: Sensitivity,
    fraction: float = 0.25,
) -> Assessment:
    """The assessment of the gradient read off a pair, started from it."""
    _, gradient = examine(posed, pair.double())
    start = WarmStart(pair.x, pair.adjoint)
    return on_demand.assess(
        gradient, posed, start.to(posed.problem.data.start.dtype), fraction
    )


def error(found: Hypergradient, case: Case) -> float:
    """Relative error of a gradient."""
    reference = exact(case)
    return float((found.gradient - reference).norm() / reference.norm())
