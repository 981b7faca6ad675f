"""Our hypergradients beside the usual ways to the same error: one part of
``experiments.studies.benchmark``.

Every gradient is compared with ``experiments.studies.shared.reference``. A
method that has a tolerance or a number of steps gets the cheapest of a ladder
whose *true* error is within the wanted one, which nobody knows in practice.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from rich.console import Console

from experiments.studies.shared.instances import (
    Instance,
    denoising,
    photograph_patches,
    random_regularizer,
    with_potential,
)
from experiments.studies.shared.reference import Reference, solve_reference
from experiments.studies.shared.tables import new_table
from experiments.studies.truth_test.answers import CONE_SMOOTHING
from experiments.studies.truth_test.ways import (
    Delivered,
    by_change,
    by_cone,
    lipschitz,
)
from piggyback.app.console.memory import peak_memory
from piggyback.certificates.certify import examine
from piggyback.hypergradients.base import HypergradientMethod
from piggyback.hypergradients.on_demand import OnDemand
from piggyback.hypergradients.refinement import Refined
from piggyback.operators.counting import ApplicationCounter
from piggyback.problems.pair import Accuracy, flat_gradient
from piggyback.problems.posed import pose
from piggyback.training.bilevel import EACH_STEP
from regularizers.filter_bank.measuring import median_seconds

CERTIFIED, IMPLICIT, REFINED = (
    "ours, certified",
    "ours, implicit CG",
    "ours, refined",
)
UNROLLED, FIXED_TOLERANCE, CONE = (
    "unrolled autograd",
    "gradient descent + CG, fixed tolerance",
    "cvxpylayers",
)
LADDER = (1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5)
"""RMS errors of ``x``, and ten times that as relative residual of the adjoint;
for ``by_change`` relative changes."""
UNROLLED_STEPS = (25, 50, 100, 200, 400)


@dataclass(frozen=True)
class GradientContestant:
    """One method on one problem. ``setting``: the tolerance or number of steps
    that was needed (None: none to choose); ``peak``: bytes of its tensors at
    most; ``bare``: seconds of ``K`` and ``K^T`` alone, as often as the method
    applied them; ``reached``: whether the error is within the wanted one.
    """

    problem: str
    method: str
    setting: float | None
    true_error: float
    bound: float
    seconds: float
    applications: float
    peak: int
    bare: float
    reached: bool


Solve = Callable[[Instance], Delivered]


def implicit(
    method: HypergradientMethod, tolerance: float, instance: Instance
) -> Delivered:
    """A method of ours without certificates, its gradient read off in float64."""
    counter = ApplicationCounter()
    regularizer, data, loss = instance.at(torch.float32)
    exact, double_data, double_loss = instance.at(torch.float64)
    problem = (
        regularizer.problem(data)
        .with_exact(exact.problem(double_data))
        .counted(counter)
    )
    pair = method.differentiate(
        problem, loss, Accuracy(tolerance, min(10 * tolerance, 0.5))
    ).double()
    spent = counter.applications
    _, gradient = examine(pose(exact, double_data, double_loss), pair)
    # the read-off applies K to x and P
    return Delivered(gradient, applications=spent + 1)


def unrolled(steps: int, instance: Instance) -> Delivered:
    """Reverse mode through ``steps`` accelerated gradient steps, each the
    autograd gradient of the energy.

    As users write it; its step length is an estimate from below, and longer
    than the certified one of ``Unrolled``.
    """
    regularizer, data, loss = instance.at(torch.float32)
    problem = regularizer.problem(data)
    with torch.enable_grad():
        steepest = lipschitz(problem.detached())
        mu = problem.data.strong_convexity
        momentum = (steepest**0.5 - mu**0.5) / (steepest**0.5 + mu**0.5)
        x = ahead = problem.data.start.clone().requires_grad_()
        for _ in range(steps):
            (slope,) = torch.autograd.grad(
                problem.energy(ahead).sum(), ahead, create_graph=True
            )
            new = ahead - slope / steepest
            ahead = new + momentum * (new - x)
            x = new
        gradient = flat_gradient(
            loss.value(x).sum(), list(regularizer.parameters())
        )
    # by formula, not by counting: each step is one K and its transpose
    # forwards, and two of each backwards
    return Delivered(gradient.double(), applications=3.0 * steps)


def on_demand(wanted: float, instance: Instance) -> Delivered:
    """Ours, certified."""
    result = OnDemand().differentiate(*instance.at(torch.float32), wanted)
    return Delivered(
        result.gradient, result.relative_error, result.applications
    )


def entries(wanted: float) -> dict[str, list[tuple[float | None, Solve]]]:
    """The ladders, loosest first."""
    return {
        CERTIFIED: [(None, lambda instance: on_demand(wanted, instance))],
        IMPLICIT: [
            (t, lambda instance, t=t: implicit(EACH_STEP, t, instance))
            for t in LADDER
        ],
        REFINED: [
            (
                t,
                lambda instance, t=t: implicit(
                    Refined(EACH_STEP, rounds=1), t, instance
                ),
            )
            for t in LADDER
        ],
        FIXED_TOLERANCE: [
            (t, lambda instance, t=t: by_change(instance, t)) for t in LADDER
        ],
        UNROLLED: [
            (float(n), lambda instance, n=n: unrolled(n, instance))
            for n in UNROLLED_STEPS
        ],
    }


def contest(
    instance: Instance,
    wanted: float,
    repeats: int,
    cone: bool,
    note: Callable[[str], None],
) -> list[GradientContestant]:
    """All methods on one instance."""
    reference = solve_reference(
        instance.regularizer, instance.data, instance.clean
    )
    bare = bare_seconds(instance, repeats)
    asked = entries(wanted)
    if cone:
        asked[CONE] = [(None, by_cone)]
    found = []
    for method, ladder in asked.items():
        note(f"{instance.label}: {method}")
        found.append(
            _contestant(
                instance, reference, method, ladder, wanted, repeats, bare
            )
        )
    return found


def _contestant(
    instance: Instance,
    reference: Reference,
    method: str,
    ladder: Sequence[tuple[float | None, Solve]],
    wanted: float,
    repeats: int,
    bare: float,
) -> GradientContestant:
    """The first rung that is exact enough (else the last), timed and weighed."""
    for setting, solve in ladder:  # noqa: B007 (the last one tried is the one that is kept)
        # the first solve of a rung is timed in case it is the last
        begin = time.perf_counter()
        outcome = solve(instance)
        seconds = time.perf_counter() - begin
        error = float(
            (outcome.gradient - reference.gradient).norm()
            / reference.gradient.norm()
        )
        if error <= wanted:
            break
    # cvxpylayers solves outside of torch, where memory is not seen, and takes
    # seconds
    if method != CONE:
        seconds = median_seconds(
            {method: lambda: solve(instance).gradient},
            repeats,
            instance.clean.device,
        )[method]
    peak = 0 if method == CONE else peak_memory(lambda: solve(instance))
    return GradientContestant(
        problem=instance.label,
        method=method,
        setting=setting,
        true_error=error,
        bound=outcome.bound,
        seconds=seconds,
        applications=outcome.applications,
        peak=peak,
        bare=bare * outcome.applications,
        reached=error <= wanted,
    )


def bare_seconds(instance: Instance, repeats: int) -> float:
    """Seconds of one ``K`` and one ``K^T`` on the image, and nothing else."""
    regularizer, data, _ = instance.at(torch.float32)
    operator = regularizer.problem(data).detached().operator
    x = data.start
    jobs = {"bare": lambda: operator.adjoint(operator.forward(x))}
    return median_seconds(jobs, 4 * repeats, x.device)["bare"]


def image_instance(side: int, filters: int, size: int) -> Instance:
    """A patch with random filters and Charbonnier potentials."""
    clean = photograph_patches(1, side, 1)
    regularizer = with_potential(
        random_regularizer(filters, size, 1), "charbonnier", 0.01
    )
    return Instance(
        f"{side}², {filters} of {size}²",
        False,
        0,
        regularizer,
        denoising(clean, 0),
        clean,
    )


def cone_instances(sides: Sequence[int], filters: int) -> Iterator[Instance]:
    """Growing patches for cvxpylayers, 3x3 filters."""
    for side in sides:
        clean = photograph_patches(1, side, 1)
        regularizer = with_potential(
            random_regularizer(filters, 3, 1, 0.05),
            "charbonnier",
            CONE_SMOOTHING,
        )
        yield Instance(
            f"{side}², {filters} of 3²",
            False,
            0,
            regularizer,
            denoising(clean, 0),
            clean,
        )


def show(found: Sequence[GradientContestant], console: Console) -> None:
    """A table; times and memory also as multiples of ours (implicit CG)."""
    for problem in dict.fromkeys(one.problem for one in found):
        chosen = [one for one in found if one.problem == problem]
        ours = next(one for one in chosen if one.method == IMPLICIT)
        table = new_table(
            f"hypergradient of {problem}",
            (
                "method",
                "setting",
                "true error",
                "bound",
                "applications",
                "ms",
                "× ours",
                "MiB",
                "× ours",
                "time / bare K, Kᵀ",
            ),
            2,
        )
        for one in chosen:
            table.add_row(
                one.method,
                "" if one.setting is None else f"{one.setting:g}",
                f"{one.true_error:.1e}" + ("" if one.reached else " (missed)"),
                _number(one.bound, ".1e"),
                _number(one.applications, ".0f"),
                f"{1e3 * one.seconds:.1f}",
                f"{one.seconds / ours.seconds:.1f}",
                f"{one.peak / 2**20:.1f}" if one.peak else "",
                f"{one.peak / ours.peak:.1f}" if one.peak else "",
                _number(one.seconds / one.bare, ".2f"),
            )
        console.print(table)


def _number(value: float, kind: str) -> str:
    return "" if math.isnan(value) else format(value, kind)
