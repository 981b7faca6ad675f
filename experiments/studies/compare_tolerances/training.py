"""One run: what drives it, and what is seen of it."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from experiments.studies.compare_tolerances.plans import (
    AUTO,
    AUTO_RATE_GIVEN,
    START,
    fixed_names,
    name_of,
)
from experiments.studies.compare_tolerances.rows import (
    GradientLook,
    TrainingPoint,
    TrainingRun,
)
from experiments.studies.compare_tolerances.tasks import TrainingTask
from piggyback.app.options.plan import Source
from piggyback.certificates.certify import assign
from piggyback.problems.pair import Accuracy
from piggyback.solvers.lower import radius_per_element, solve_lower
from piggyback.solvers.suited import SuitedSolver
from piggyback.terms.losses import SquaredError
from piggyback.training.bilevel import EACH_STEP, BilevelOracle, BilevelSettings
from piggyback.training.driven import Control, DrivenDescent
from piggyback.training.rate import RateRace
from piggyback.training.samples import Samples
from piggyback.training.stochastic import (
    StochasticDescent,
    StochasticSettings,
    parameter_groups,
)
from piggyback.training.tolerance import GradientQuality, assess

MINIBATCH, BATCH, HELD_OUT, PROBE = 8, 4, 16, 8

LONGER = 1.5
"""Steps of ``auto`` over those of the others, so that it is seen when it
reaches what they reach."""

EXACT = 3e-4
"""RMS error of ``x`` that held-out losses are computed to."""

POINTS, LOOKS = 12, 3
"""Points of a curve, and moments at which bias and noise are measured, on
``BATCHES_PER_LOOK`` mini-batches each."""

BATCHES_PER_LOOK = 4


@dataclass(frozen=True)
class TrainingBench:
    """What all runs of a task share: where mini-batches come from, held-out
    patches, patches that step sizes are raced on, steps, and threads."""

    train: Source
    held_out: Samples
    probe: Samples
    steps: int
    workers: int

    @staticmethod
    def of(
        task: TrainingTask,
        train: Source,
        others: Source,
        steps: int,
        workers: int,
    ) -> TrainingBench:
        """With fresh patches, the same in every study.

        Args:
            task: whose degradation is put onto the patches.
            train: photographs to learn from.
            others: photographs to be judged by.
            steps: of a run.
            workers: threads.

        Returns:
            The bench.
        """
        own = replace(train, degradation=task.degradation)
        apart = replace(others, degradation=task.degradation)
        held_out = apart.draw(HELD_OUT, torch.Generator().manual_seed(4))
        probe = own.draw(PROBE, torch.Generator().manual_seed(5))
        return TrainingBench(own, held_out, probe, steps, workers)


def run(
    task: TrainingTask,
    method: str,
    bench: TrainingBench,
    accuracy: Accuracy,
    rate: float,
) -> TrainingRun:
    """Train once.

    Args:
        task: what is learned.
        method: what drives tolerances and rate; one of ``plans``.
        bench: what the runs share.
        accuracy: tolerances to start from.
        rate: step size to start from.

    Returns:
        What was seen on the way.
    """
    is_fixed = method in fixed_names()
    driven = begun(task, bench, accuracy, rate, is_fixed)
    # the start, which all runs of a task share
    points = [_point(task, bench, driven)]
    looks = []
    if not is_fixed and method != AUTO_RATE_GIVEN:
        _race(task, bench, driven)
    # see LONGER
    steps = round(bench.steps * (LONGER if method == AUTO else 1.0))
    every = max(bench.steps // POINTS, 1)
    is_looked_at = method in (AUTO, name_of(START))
    for step in range(driven.descent.taken + 1, steps + 1):
        if is_fixed:
            _plain_step(driven)
        else:
            driven.step()
        if step % every == 0 or step == steps:
            points.append(_point(task, bench, driven))
        if is_looked_at and step in _moments(bench.steps):
            looks.append(_look(bench, driven, step))
    control = driven.control
    whole = control.stepped + control.assessed
    return TrainingRun(
        task=task.name,
        method=method,
        rate=control.rate,
        share=control.assessed / whole if whole else 0.0,
        points=points,
        looks=looks,
    )


def begun(
    task: TrainingTask,
    bench: TrainingBench,
    accuracy: Accuracy,
    rate: float,
    is_fixed: bool,
) -> DrivenDescent:
    """A run before its first step; ``is_fixed``: nothing drives it."""
    regularizer = task.start()
    # every run of a task sees the same mini-batches
    generator = torch.Generator().manual_seed(1)
    settings = StochasticSettings(
        accuracy,
        EACH_STEP,
        task.degradation.data_term,
        SquaredError,
        MINIBATCH,
        BATCH,
        bench.workers,
    )
    groups = parameter_groups(regularizer, rate)
    descent = StochasticDescent(
        regularizer,
        lambda count: bench.train.draw(count, generator),
        torch.optim.Adam(groups, betas=(0.9, 0.99)),
        settings,
    )
    control = Control(accuracy.lower, accuracy.adjoint, rate)
    return DrivenDescent(descent, control, fixed=is_fixed)


def _race(
    task: TrainingTask, bench: TrainingBench, driven: DrivenDescent
) -> None:
    """Step sizes are raced against each other on patches of their own."""
    settings = BilevelSettings(
        data_term=task.degradation.data_term, batch=BATCH, workers=bench.workers
    )
    contestant = copy.deepcopy(driven.descent.regularizer)
    oracle = BilevelOracle(contestant, bench.probe, settings)
    driven.race(
        RateRace(laps=max(3, bench.steps // 10)),
        lambda parameters: oracle.evaluate(parameters, 1.0),
    )


def _plain_step(driven: DrivenDescent) -> None:
    """A step that nobody assesses: fixed tolerances are to be judged by what
    they cost alone."""
    taken = driven.descent.step()
    driven.control = replace(
        driven.control, stepped=driven.control.stepped + taken.applications
    )


def _moments(steps: int) -> list[int]:
    return [max(1, round(steps * (look + 1) / LOOKS)) for look in range(LOOKS)]


def _point(
    task: TrainingTask, bench: TrainingBench, driven: DrivenDescent
) -> TrainingPoint:
    control = driven.control
    descent = driven.descent
    loss = held_out_loss(
        task, bench.held_out, descent.regularizer, descent.average
    )
    return TrainingPoint(
        steps=descent.taken,
        pairs=control.stepped + control.assessed,
        loss=loss,
        lower=control.lower,
        adjoint=control.adjoint,
        error=control.error,
        noise=control.noise,
    )


def held_out_loss(
    task: TrainingTask,
    samples: Samples,
    regularizer: torch.nn.Module,
    parameters: Tensor,
) -> float:
    """Mean of half the squared error per patch, at minimisers to ``EXACT``."""
    # the average of the iterates is judged, the run itself goes on
    averaged = copy.deepcopy(regularizer)
    assign(averaged, parameters)  # type: ignore[arg-type]
    observed = observation(task, samples)
    problem = averaged.problem(task.degradation.data_term(observed)).detached()  # type: ignore[operator]
    radius = radius_per_element(problem, EXACT)
    (x,) = solve_lower(problem, SuitedSolver(), radius).result
    away = problem.image(x) - samples.clean
    return 0.5 * float(away.square().flatten(1).sum(1).mean())


def observation(task: TrainingTask, samples: Samples) -> Tensor:
    """Of the held-out patches, the same for all runs of a task."""
    return task.degradation.observe(
        samples.clean, torch.Generator().manual_seed(2)
    )


def _look(
    bench: TrainingBench, driven: DrivenDescent, step: int
) -> GradientLook:
    """Errors at the tolerances of now, on mini-batches of their own."""
    generator = torch.Generator().manual_seed(3)
    descent = driven.descent
    found: list[GradientQuality] = [
        assess(
            descent.regularizer,
            bench.train.draw(MINIBATCH, generator),
            descent.settings,
        )
        for _ in range(BATCHES_PER_LOOK)
    ]
    errors = torch.stack([quality.difference for quality in found])
    gradients = torch.stack([quality.refined for quality in found])
    size = float(gradients.mean(0).norm())
    # what does not average out over mini-batches, and what does
    bias = float(errors.mean(0).norm())
    spread = float((errors - errors.mean(0)).square().sum(1).mean().sqrt())
    noise = sum(quality.noise for quality in found) / len(found)
    return GradientLook(step, bias / size, spread / size, noise / size)
