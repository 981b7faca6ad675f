"""Images to learn from and to be judged by, with their minimisers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from experiments.studies.shared.instances import (
    BLUR_WEIGHT,
    deblurring,
    denoising,
    scaled,
)
from piggyback.app.images.sources import draw_patches, embedded_photographs
from piggyback.problems.posed import double_copy
from piggyback.problems.saddle import SaddleProblem
from piggyback.solvers.lower import (
    radius_per_element,
    solve_lower,
)
from piggyback.solvers.nonlinear_cg import NonlinearCG
from piggyback.solvers.stopping import Schedule
from piggyback.terms.data.base import DataTerm
from regularizers.linear import LinearRegularizer

Task = Literal["denoise", "deblur"]

TASKS: tuple[Task, ...] = ("denoise", "deblur")

PATIENT = Schedule(max_steps=5000, check_every=1)


@dataclass(frozen=True, eq=False)
class SolvedTask:
    """Problems to learn from (float32) and to be judged by (float64), and their
    minimisers."""

    task: Task
    training: SaddleProblem
    solutions: Tensor
    test: SaddleProblem
    reference: Tensor


def pose(
    task: Task,
    regularizer: LinearRegularizer,
    side: int,
    patches: int,
    images: int,
) -> SolvedTask:
    """Patches of the training photographs to learn from, of the test
    photographs to be judged by."""
    if task == "deblur":
        regularizer = scaled(regularizer, BLUR_WEIGHT)
    training = regularizer.problem(
        observations(task, "train", side, patches)
    ).detached()
    test = (
        double_copy(regularizer)
        .problem(observations(task, "test", side, images).double())
        .detached()
    )
    # far below the tolerances that are asked for
    (reference,) = solve_lower(
        test, NonlinearCG(), radius_per_element(test, 1e-8), schedule=PATIENT
    ).result
    return SolvedTask(
        task, training, solved_in_parts(training, 1e-3), test, reference
    )


def observations(
    task: Task, split: Literal["train", "test"], side: int, count: int
) -> DataTerm:
    """Seeded observations; another seed for each split."""
    seed = int(split == "test")
    clean = draw_patches(
        embedded_photographs(split),
        count,
        side,
        torch.Generator().manual_seed(seed),
        1,
    )
    return (
        deblurring(clean, seed) if task == "deblur" else denoising(clean, seed)
    )


def solved_in_parts(
    problem: SaddleProblem, tolerance: float, size: int = 32
) -> Tensor:
    """The minimisers, so many images at a time."""
    parts = []
    for index in torch.arange(problem.data.start.shape[0]).split(size):
        part = problem.select(index)
        parts.append(
            solve_lower(
                part, NonlinearCG(), radius_per_element(part, tolerance)
            ).result[0]
        )
    return torch.cat(parts)
