"""Restore one image with a trained regularizer, and say how far the result may
be from the exact minimiser."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from piggyback.operators.counting import ApplicationCounter
from piggyback.problems.regularizer import Regularizer
from piggyback.solvers.lower import (
    certified_energy,
    radius_per_element,
    solve_lower,
)
from piggyback.solvers.stopping import Schedule
from piggyback.solvers.suited import SuitedSolver
from piggyback.terms.data.base import DataTerm

TOLERANCE = 2e-3
"""Certified RMS error of a reconstruction unless another is asked for: half a
grey level of 255, which costs 0.005 dB at most in practice."""


@dataclass(frozen=True, eq=False)
class Restored:
    """``pixels`` ``(channels, height, width)``, not clipped.

    ``error_bound``: certified ``||x - x*||`` (Euclidean); ``data_bound``:
    certified ``||B (x - x*)||``, the same where ``B`` is the identity.

    ``operator_applications``: pairs of one ``K`` and one ``K^T``, certification
    included; ``seconds`` likewise.
    """

    pixels: Tensor
    error_bound: float
    data_bound: float
    converged: bool
    operator_applications: float
    seconds: float


def restore(
    regularizer: Regularizer, data: DataTerm, tolerance: float
) -> Restored:
    """The image that belongs to ``data`` (one sample), to a root-mean-square
    error of ``tolerance`` grey values."""
    counter, begin = ApplicationCounter(), time.perf_counter()
    problem = regularizer.problem(data).detached().counted(counter)
    radius = radius_per_element(problem, tolerance)
    outcome = solve_lower(
        problem, SuitedSolver(), radius, schedule=Schedule(check_every=2)
    )
    (x,) = outcome.result
    energy = float(certified_energy(problem, x))
    return Restored(
        pixels=problem.image(x)[0].to(torch.float32),
        error_bound=energy / data.strong_convexity**0.5,
        data_bound=energy,
        converged=outcome.converged,
        operator_applications=counter.applications,
        seconds=time.perf_counter() - begin,
    )
