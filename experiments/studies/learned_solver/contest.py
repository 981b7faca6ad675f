"""The default solver, and what each learned part makes of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from experiments.studies.learned_solver.learning import LearnedParts
from experiments.studies.learned_solver.limit import ExactMetric, exact_metric
from experiments.studies.learned_solver.problems import (
    PATIENT,
    SolvedTask,
)
from piggyback.operators.counting import ApplicationCounter
from piggyback.solvers.lower import (
    LowerSolver,
    certified_distance,
    radius_per_element,
    solve_lower,
)
from piggyback.solvers.nonlinear_cg import NonlinearCG
from piggyback.terms.data.base import DataTerm


@dataclass(frozen=True)
class SolverRow:
    """One solver on the test images of a task.

    ``operator_applications`` per image; ``seconds`` for all of them, the
    learned start included; ``certified_rms``: largest certified RMS distance to
    the minimiser; ``difference_rms``: largest RMS difference to a solve that is
    far more exact.
    """

    task: str
    solver: str
    tolerance: float
    operator_applications: float
    seconds: float
    certified_rms: float
    difference_rms: float
    converged: bool


def run(
    case: SolvedTask,
    name: str,
    solver: LowerSolver,
    begin: Callable[[DataTerm], Tensor] | None,
    tolerance: float,
) -> SolverRow:
    """Solve the test images and look at what came out; the faster of two times."""
    radius = radius_per_element(case.test, tolerance)
    seconds = []
    # the first run of a shape plans its transforms and is slower
    for _ in range(2):
        counter = ApplicationCounter()
        since = time.perf_counter()
        start = None if begin is None else begin(case.test.data)
        outcome = solve_lower(
            case.test.counted(counter), solver, radius, start, PATIENT
        )
        seconds.append(time.perf_counter() - since)
    (x,) = outcome.result
    root = x[0].numel() ** 0.5
    return SolverRow(
        task=case.task,
        solver=name,
        tolerance=tolerance,
        operator_applications=counter.applications / x.shape[0],
        seconds=min(seconds),
        certified_rms=float(certified_distance(case.test, x).max()) / root,
        difference_rms=float((x - case.reference).flatten(1).norm(dim=1).max())
        / root,
        converged=outcome.converged,
    )


def compare(
    case: SolvedTask,
    learned: LearnedParts,
    tolerances: Sequence[float],
    limit: bool = False,
) -> list[SolverRow]:
    """The default solver, cold, and what each learned part makes of it; with
    ``limit`` also with the best of all metrics."""
    rows: list[tuple[str, LowerSolver, Callable[[DataTerm], Tensor] | None]] = [
        ("default", NonlinearCG(), None),
        ("learned steps", learned.relaxed, None),
        ("learned steps, metric", learned.warped, None),
        ("learned start, one filter", NonlinearCG(), learned.linear),
        ("learned start", NonlinearCG(), learned.start),
        ("learned start, steps", learned.relaxed, learned.start),
        ("learned start, steps, metric", learned.warped, learned.start),
    ]
    if limit:
        # what a learned metric could gain at most
        newton = ExactMetric(exact_metric(case.test, case.reference))
        rows += [
            ("exact metric", newton, None),
            ("learned start, exact metric", newton, learned.start),
        ]
    return [
        run(case, name, solver, begin, tolerance)
        for tolerance in tolerances
        for name, solver, begin in rows
    ]
