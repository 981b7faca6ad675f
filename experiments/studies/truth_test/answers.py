"""What is asked of whom, and what came back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from experiments.studies.shared.instances import (
    LINEAR,
    Instance,
    as_trained,
    denoising,
    photograph_patches,
    random_regularizer,
    tasks,
    trained_models,
    with_potential,
)
from experiments.studies.shared.reference import Reference
from experiments.studies.truth_test.ways import Way
from regularizers.linear import LinearRegularizer

SMOOTHINGS = (0.01, 0.001)
"""Of the random regularizers, in grey values."""
CONE_SMOOTHING = 1e-3
CONE_WEIGHTS = (1.0, 0.05)
"""Of the small instances, in grey values."""


@dataclass(frozen=True)
class Answer:
    """``true_error`` and the certified ``bound`` (not a number where nothing is
    promised), relative to the exact gradient.

    ``warned``: whether the method itself said that something was wrong.
    """

    label: str
    problem: str
    potential: str
    smoothing: float
    method: str
    operator_applications: float
    seconds: float
    true_error: float
    bound: float
    warned: bool


def answer(
    instance: Instance, reference: Reference, method: str, solve: Way
) -> Answer:
    """One method on one instance.

    Args:
        instance: regularizer and image.
        reference: its exact solution.
        method: what the way is called.
        solve: the way.

    Returns:
        The row.
    """
    begin = time.perf_counter()
    delivered = solve(instance)
    seconds = time.perf_counter() - begin
    away = (delivered.gradient - reference.gradient).norm()
    return Answer(
        label=instance.label,
        problem=instance.name,
        potential=instance.potential,
        smoothing=instance.smoothing,
        method=method,
        operator_applications=delivered.applications,
        seconds=seconds,
        true_error=float(away / reference.gradient.norm()),
        bound=delivered.bound,
        warned=delivered.warned,
    )


def images(
    run: Path | None, side: int, filters: int, size: int
) -> Iterator[Instance]:
    """The linear model as trained and random regularizers with Charbonnier
    potentials, on both tasks; the default model and a network, as trained, on
    denoising.

    Args:
        run: run folder of a trained model, which takes the place of the shipped
            one of its kind; None for the shipped ones.
        side: of the patch, in pixels.
        filters: of the random regularizers.
        size: of their filters, in pixels per side.

    Raises:
        UserError: for a folder without a model, or a patch that is too small.
    """
    models = trained_models(run)
    trained = models.pop(LINEAR)
    assert isinstance(trained, LinearRegularizer)
    channels = trained.config.channels
    clean = photograph_patches(1, side, channels)
    yield from tasks(LINEAR, True, trained, clean)
    for smoothing in SMOOTHINGS:
        base = random_regularizer(filters, size, channels)
        drawn = with_potential(base, "charbonnier", smoothing)
        yield from tasks("random", False, drawn, clean)
    yield from as_trained(models, 1, side)


def small_instances(side: int, filters: int) -> Iterator[Instance]:
    """Few pixels and 3x3 filters, which cvxpylayers can take."""
    clean = photograph_patches(1, side, 1)
    for weight in CONE_WEIGHTS:
        for penalty in ("huber", "charbonnier"):
            base = random_regularizer(filters, 3, 1, weight)
            regularizer = with_potential(base, penalty, CONE_SMOOTHING)
            yield Instance(
                name=f"small, λ = {weight:g}",
                own=False,
                image=0,
                regularizer=regularizer,
                data=denoising(clean, 0),
                clean=clean,
            )
