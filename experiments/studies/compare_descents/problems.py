"""Problems to learn on, and the descents that are compared on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from experiments.studies.compare_descents.controls import (
    WORST_CASE,
    Adaptive,
    FixedTolerance,
    PlainLevel,
    WatchedDescent,
)
from experiments.studies.compare_descents.steepest import FixedSteepest, Maid
from experiments.studies.shared.instances import (
    NOISE,
    photograph_patches,
    scaled,
    starting_regularizer,
    with_potential,
)
from piggyback.app.images.sources import add_noise
from piggyback.problems.pair import Accuracy
from piggyback.training.bilevel import BilevelSettings
from piggyback.training.samples import Samples
from regularizers.linear import LinearRegularizer

OURS, MAID, HINDSIGHT = "adaptive", "MAID", "our steps, fixed 1e-2 / 1e-1"

FIXED = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
"""RMS error of ``x`` over the noise level, and relative residual of the
adjoint."""

LITERATURE = (MAID, *(f"fixed {tolerance:.0e}" for tolerance in FIXED))
"""Steepest descent with the line search of the literature; the other methods
take our quasi-Newton steps in our metric."""

ILL_SMOOTHING, ILL_WEIGHT = 0.001, 2.0
"""Smoothing, in grey values, and factor of the weights of the ill-conditioned
problem."""


@dataclass(frozen=True)
class DescentProblem:
    """A regularizer to start from (a fresh one per method) and what it is
    trained on."""

    name: str
    regularizer: Callable[[], LinearRegularizer]
    samples: Samples


def problems(side: int, filters: int, size: int) -> list[DescentProblem]:
    """One image, eight images, and one image with sharp potentials of double
    weight."""

    def start() -> LinearRegularizer:
        return starting_regularizer(filters, size, 1)

    def sharp() -> LinearRegularizer:
        return scaled(
            with_potential(start(), "charbonnier", ILL_SMOOTHING), ILL_WEIGHT
        )

    # one image has no averaging to hide an uncertain gradient behind
    one = samples(1, side)
    eight = samples(8, side)
    return [
        DescentProblem("1 image", start, one),
        DescentProblem("8 images", start, eight),
        DescentProblem("ill-conditioned", sharp, one),
    ]


def samples(count: int, side: int) -> Samples:
    """Seeded noisy patches of the embedded photographs."""
    clean = photograph_patches(count, side, 1)
    return Samples(
        clean, add_noise(clean, NOISE, torch.Generator().manual_seed(5))
    )


def methods(problem: DescentProblem) -> dict[str, WatchedDescent]:
    """Everything that is compared, each with a regularizer of its own."""

    def level() -> PlainLevel:
        return PlainLevel(problem.regularizer(), problem.samples)

    def ours_fixed(lower: float, adjoint: float) -> WatchedDescent:
        return FixedTolerance(
            level(),
            Accuracy(lower * NOISE, adjoint),
            problem.regularizer().metric(),
        )

    chosen: dict[str, WatchedDescent] = {
        OURS: Adaptive(
            problem.regularizer(), problem.samples, BilevelSettings()
        ),
        "worst-case bounds": Adaptive(
            problem.regularizer(), problem.samples, WORST_CASE
        ),
        MAID: Maid(level()),
    }
    for tolerance in FIXED:
        chosen[f"fixed {tolerance:.0e}"] = FixedSteepest(
            level(), Accuracy(tolerance * NOISE, tolerance)
        )
    for tolerance in FIXED:
        chosen[f"our steps, fixed {tolerance:.0e}"] = ours_fixed(
            tolerance, tolerance
        )
    chosen[HINDSIGHT] = ours_fixed(1e-2, 1e-1)
    return chosen
