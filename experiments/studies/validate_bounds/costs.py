"""What a certificate costs: operator applications until the certified and until
the true error is small."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from experiments.studies.shared.instances import (
    ADAPTIVE,
    NETWORK,
    Instance,
)
from experiments.studies.shared.reference import Reference
from experiments.studies.validate_bounds.checks import (
    ADJOINT,
    accuracy_for,
    is_denoising,
    true_error,
)
from piggyback.app.runs.folder import Json
from piggyback.certificates.certify import examine
from piggyback.hypergradients.implicit import ImplicitCG
from piggyback.hypergradients.on_demand import OnDemand
from piggyback.hypergradients.piggyback import Piggyback, PiggybackIteration
from piggyback.operators.counting import ApplicationCounter
from piggyback.problems.pair import Accuracy, Sensitivity
from piggyback.problems.posed import pose
from piggyback.solvers.lower import SolverTask, radius_per_element
from piggyback.solvers.pdhg import Steps
from piggyback.solvers.stopping import Schedule

WANTED = 0.01
"""Relative error up to which the cost of certified and of plain gradients is
compared."""
TOLERANCES = [1e-2 * 0.8**power for power in range(40)]
"""What the plain methods may choose from, in grey values, knowing the true
error: no method can know it."""
CERTIFIED: Mapping[str, OnDemand] = {
    "piggyback": OnDemand(Piggyback(), Accuracy(lower=2e-4, adjoint=6e-3)),
    "implicit": OnDemand(),
}
"""The way to a certified ``WANTED``: one accuracy for all problems, corrections
do the rest."""
PLAIN_IMPLICIT = ImplicitCG(
    lower_schedule=Schedule(2000, check_every=1),
    adjoint_schedule=Schedule(1000, check_every=1),
)


@dataclass(frozen=True)
class CertificateCost:
    """Operator applications until the certified and until the true relative
    error is at most ``WANTED``."""

    problem: str
    method: str
    certified_applications: float
    certified_error: float
    certified_true_error: float
    plain_applications: float
    plain_tolerance: float
    plain_true_error: float

    @property
    def ratio(self) -> float:
        """Certified over plain applications."""
        return self.certified_applications / self.plain_applications

    def row(self) -> dict[str, Json]:
        """For the file of results."""
        return {**asdict(self), "ratio": self.ratio}


def contestants(instance: Instance) -> list[str]:
    """The methods whose certificates are priced on this instance: denoising,
    one potential per regularizer."""
    drawn = instance.name.startswith("random")
    usual = instance.own or (drawn and abs(instance.smoothing - 0.01) < 1e-6)
    if not (usual and is_denoising(instance) and instance.image == 0):
        return []
    # piggyback takes thousands of steps with adaptive weights, and networks have
    # no dual variable
    if instance.model in (ADAPTIVE, NETWORK):
        return ["implicit"]
    return list(CERTIFIED)


def certificate_cost(
    instance: Instance, reference: Reference, method: str
) -> CertificateCost:
    """Solved in float32. The plain method is charged its solves and looks only,
    the certified one everything.

    Args:
        instance: regularizer and image.
        reference: its exact solution.
        method: a key of ``CERTIFIED``.

    Returns:
        The row.
    """
    certified = CERTIFIED[method].differentiate(
        *instance.at(torch.float32), WANTED
    )
    if method == "piggyback":
        plain = plain_piggyback(instance, reference)
    else:
        plain = plain_implicit(instance, reference)
    return CertificateCost(
        problem=instance.name,
        method=method,
        certified_applications=certified.applications,
        certified_error=certified.relative_error,
        certified_true_error=true_error(certified.gradient, reference),
        plain_applications=plain.applications,
        plain_tolerance=plain.tolerance,
        plain_true_error=plain.true_error,
    )


@dataclass(frozen=True)
class PlainSolve:
    """The loosest of ``TOLERANCES`` whose true error is at most ``WANTED``, and
    its cost; not a number if none is."""

    tolerance: float = math.nan
    applications: float = math.nan
    true_error: float = math.nan


def plain_implicit(instance: Instance, reference: Reference) -> PlainSolve:
    """One solve after the other, from loose to tight."""
    regularizer, data, loss = instance.at(torch.float32)
    for tolerance in TOLERANCES:
        counter = ApplicationCounter()
        problem = regularizer.problem(data).counted(counter)
        accuracy = accuracy_for(tolerance)
        pair = PLAIN_IMPLICIT.differentiate(problem, loss, accuracy)
        error = pair_error(instance, reference, pair.x, pair.adjoint)
        if error <= WANTED:
            return PlainSolve(tolerance, counter.applications, error)
    return PlainSolve()


def plain_piggyback(instance: Instance, reference: Reference) -> PlainSolve:
    """One run, which each tolerance would stop at its first look (every 10
    steps, as ``Piggyback`` does) below it."""
    schedule = Piggyback().schedule
    counter = ApplicationCounter()
    with torch.no_grad():
        iteration = _piggyback(instance, counter)
        state = iteration.start()
        reached = math.inf
        for taken in range(schedule.max_steps):
            if taken % schedule.check_every == 0:
                # over tolerances of 1 and ADJOINT
                missing = float(iteration.error(state))
                stopped = [
                    tolerance
                    for tolerance in TOLERANCES
                    if missing <= tolerance < reached
                ]
                # only a look that would stop some run is worth its reference
                error = math.inf
                if stopped:
                    pair = iteration.result(state)
                    error = pair_error(instance, reference, *pair)
                if error <= WANTED:
                    return PlainSolve(stopped[0], counter.applications, error)
                reached = min(reached, missing)
                if reached <= TOLERANCES[-1]:
                    break
            state = iteration.step(state)
    return PlainSolve()


def _piggyback(
    instance: Instance, counter: ApplicationCounter
) -> PiggybackIteration:
    """The iteration of ``Piggyback``, to tolerances of 1 and ``ADJOINT``."""
    regularizer, data, loss = instance.at(torch.float32)
    problem = regularizer.problem(data).detached().counted(counter)
    radius = radius_per_element(problem, 1.0)
    lower = SolverTask(problem, data.start, radius)
    steps = Steps.optimal(problem)
    adjoint = torch.zeros_like(data.start)
    return PiggybackIteration(lower, loss, steps, ADJOINT, adjoint)


def pair_error(
    instance: Instance, reference: Reference, x: Tensor, adjoint: Tensor
) -> float:
    """True error of the gradient that is read off a pair, relative."""
    exact, data, loss = instance.at(torch.float64)
    status = torch.zeros(len(x))
    pair = Sensitivity(x, adjoint, status, status).double()
    _, gradient = examine(pose(exact, data, loss), pair)
    return true_error(gradient, reference)
