"""Ways to deblur, each with its number tuned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from experiments.studies.shared.instances import (
    scaled,
)
from piggyback.app.degradations.base import Blur
from piggyback.app.report.baselines import tune, tune_tv, tv_restore, wiener
from piggyback.app.restoration import restore
from piggyback.solvers.lower import radius_per_element, solve_lower
from piggyback.solvers.nonlinear_cg import NonlinearCG
from piggyback.terms.data.base import DataTerm
from regularizers.linear import LinearRegularizer

STRENGTHS = (1e-5, 1.0)

SHARES = (2e-3, 0.2)
"""Where Wiener's strength and the share of a denoiser's weights are looked for.
"""

TV, LEARNED = "TV, tuned", "trained for deblurring"

DeblurringMethod = Callable[[Tensor, Blur], Tensor]
"""Observations ``(batch, ...)`` and their blur to whole images."""


@dataclass(frozen=True)
class TunedMethod:
    """A way to deblur and the number that was tuned for it (0: none)."""

    name: str
    number: float
    deblur: DeblurringMethod


def by_ridge(observed: Tensor, blur: Blur) -> Tensor:
    """What the data term gives without a regularizer."""
    data = blur.data_term(observed)
    return data.solve(-data.gradient(torch.zeros_like(data.start)))


def by_tv(weight: float) -> DeblurringMethod:
    """Total variation with a weight."""
    return lambda observed, blur: tv_restore(blur.data_term(observed), weight)


def by_wiener(strength: float) -> DeblurringMethod:
    """Wiener's filter with a strength."""
    return lambda observed, blur: wiener(observed, blur, strength)


def by_regularizer(regularizer: LinearRegularizer) -> DeblurringMethod:
    """A learned regularizer, solved to an RMS error of 3e-4 grey values."""
    return lambda observed, blur: restore(
        regularizer, blur.data_term(observed), 3e-4
    ).pixels.unsqueeze(0)


def share_of_denoiser(
    regularizer: LinearRegularizer, data: DataTerm, clean: Tensor
) -> float:
    """The factor of all weights with which a regularizer that was trained for
    denoising deblurs training patches best."""

    def restored(factor: float) -> Tensor:
        problem = scaled(regularizer, factor).problem(data).detached()
        # grey values: far below what changes a PSNR
        radius = radius_per_element(problem, 1e-3)
        (x,) = solve_lower(problem, NonlinearCG(), radius).result
        return x

    factor, _ = tune(restored, clean, SHARES)
    return factor


def tuned_methods(
    run: LinearRegularizer,
    denoiser: LinearRegularizer,
    blur: Blur,
    clean: Tensor,
    seed: int,
) -> list[TunedMethod]:
    """Everything that is compared.

    Args:
        run: the regularizer that was trained to deblur.
        denoiser: one that was trained to denoise.
        blur: of the run.
        clean: training patches ``(batch, channels, height, width)`` in grey
            values, which all numbers are tuned on.
        seed: of their noise.

    Returns:
        The methods, the trained one last.
    """
    observed = blur.observe(clean, torch.Generator().manual_seed(seed))
    data = blur.data_term(observed)
    strength, _ = tune(
        lambda value: wiener(observed, blur, value), clean, STRENGTHS
    )
    weight = tune_tv(clean, data).weight
    share = share_of_denoiser(denoiser, data, clean)
    weighted = scaled(denoiser, share)
    return [
        TunedMethod("ridge alone", blur.ridge, by_ridge),
        TunedMethod("Wiener, tuned", strength, by_wiener(strength)),
        TunedMethod(TV, weight, by_tv(weight)),
        TunedMethod(
            "trained for denoising, one weight tuned",
            share,
            by_regularizer(weighted),
        ),
        TunedMethod(LEARNED, 0.0, by_regularizer(run)),
    ]
