"""Restore one photograph with a trained regularizer, and say how far the result may be from the exact minimiser."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from piggyback.operators import ApplicationCounter
from piggyback.regularizer import Regularizer
from piggyback.solvers.lower import certified_distance, radius_per_element, solve_lower
from piggyback.solvers.suited import SuitedSolver
from piggyback.terms.quadratic import Denoising


@dataclass(frozen=True, eq=False)
class Restored:
    """``pixels`` ``(channels, height, width)``, not clipped; ``error_bound``: certified ``||x - x*||`` (Euclidean).

    ``operator_applications``: pairs of one ``K`` and one ``K^T``, certification included; ``seconds`` likewise.
    """

    pixels: Tensor
    error_bound: float
    converged: bool
    operator_applications: float
    seconds: float


def restore(regularizer: Regularizer, noisy: Tensor, tolerance: float) -> Restored:
    """Denoise one image ``(channels, height, width)`` to a root-mean-square error of ``tolerance`` grey values."""
    counter, begin = ApplicationCounter(), time.perf_counter()
    problem = regularizer.problem(Denoising(noisy.unsqueeze(0))).detached().counted(counter)
    outcome = solve_lower(problem, SuitedSolver(), radius_per_element(problem, tolerance))
    (x,) = outcome.result
    distance = certified_distance(problem, x)
    return Restored(
        pixels=x[0].to(torch.float32),
        error_bound=float(distance),
        converged=outcome.converged,
        operator_applications=counter.applications,
        seconds=time.perf_counter() - begin,
    )
