"""What one step of each solver costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from experiments.studies.benchmark.solvers import GRADIENT, OURS
from experiments.studies.shared.instances import (
    denoising,
    photograph_patches,
    trained_regularizer,
)
from piggyback.problems.saddle import SaddleProblem
from piggyback.solvers.accelerated import AcceleratedGradient
from piggyback.solvers.linear import ConjugateGradient, LinearSystem
from piggyback.solvers.loop import Iteration
from piggyback.solvers.lower import SolverTask
from piggyback.solvers.nonlinear_cg import NonlinearCG
from piggyback.solvers.pdhg import PDHG
from piggyback.terms.data.denoising import Denoising
from regularizers.filter_bank.measuring import median_seconds


@dataclass(frozen=True)
class StepCost:
    """Seconds of one step of a solver, and of one ``K`` and one ``K^T`` on the
    same images alone."""

    images: str
    solver: str
    seconds: float
    bare: float


def step_costs(repeats: int, device: torch.device) -> list[StepCost]:
    """Steps of our solvers in float32, ten into the solve, on patches as in
    training and on one larger image."""
    found = []
    # as in training, and as in a restoration
    for batch, side in ((8, 48), (1, 128)):
        regularizer = trained_regularizer(None).to(device)
        patches = photograph_patches(batch, side, 1)
        clean = patches.to(device)
        data = Denoising(denoising(patches, 0).observed.to(device))
        problem = regularizer.problem(data).detached()
        level = SolverTask(
            problem, data.start, torch.full((batch,), GRADIENT, device=device)
        )
        system = LinearSystem(
            problem, problem.curvature(clean), clean, level.radius
        )
        iterations = {
            OURS: NonlinearCG().bind(level),
            "linear CG": ConjugateGradient(system),
            "accelerated gradient": AcceleratedGradient().bind(level),
            "PDHG": PDHG().bind(level),
        }
        with torch.no_grad():
            jobs = {
                name: _step(iteration) for name, iteration in iterations.items()
            }
            # in the same round-robin: a slow moment of the machine hits all
            # alike
            jobs["bare"] = partial(_pair, problem, clean)
            seconds = median_seconds(jobs, 4 * repeats, device)
        images = f"{batch} x {side}², {regularizer.config.filters} filters of {regularizer.config.size}²"
        found += [
            StepCost(images, name, seconds[name], seconds["bare"])
            for name in iterations
        ]
    return found


def _step(iteration: Iteration) -> Callable[[], Tensor]:
    """The tenth step, which renews no preconditioner, again and again."""
    state = iteration.start()
    # past the start, whose steps renew more than later ones
    for _ in range(9):
        state = iteration.step(state)
    return lambda: iteration.result(iteration.step(state))[0]


def _pair(problem: SaddleProblem, x: Tensor) -> Tensor:
    return problem.operator.adjoint(problem.operator.forward(x))
