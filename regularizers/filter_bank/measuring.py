"""Which kernels are fastest here: all of them, timed side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from regularizers.filter_bank.kernels import (
    ADJOINT_KERNELS,
    FORWARD_KERNELS,
    ChannelsLastConvolution,
    KernelPlan,
    plan_named,
)

Job = Callable[[], Tensor]
"""Work to be timed; what it returns keeps it from being skipped."""
_WARM_UP = 2
"""Rounds that are not counted."""


def kernel_jobs(
    filters: Tensor, image: Tensor
) -> tuple[dict[str, Job], dict[str, Job]]:
    """Every forward and every adjoint kernel as a job, by class name.

    Args:
        filters: ``(filters, channels, k, k)``.
        image: extended, ``(batch, channels, height, width)``.

    Returns:
        The forward jobs and the adjoint ones.
    """
    filters = filters.detach()
    coefficients = ChannelsLastConvolution(filters)(image)
    # kernels are made here: a solver makes them once, too
    forward: dict[str, Job] = {
        kernel.__name__: partial(kernel(filters), image)
        for kernel in FORWARD_KERNELS
    }
    adjoint: dict[str, Job] = {
        kernel.__name__: partial(kernel(filters), coefficients)
        for kernel in ADJOINT_KERNELS
    }
    return forward, adjoint


def median_seconds(
    jobs: Mapping[str, Job], repeats: int, device: torch.device
) -> dict[str, float]:
    """Median seconds of each job over rounds that run every job once, so that a
    slow moment hits all alike.

    Args:
        jobs: by name.
        repeats: rounds that count, after two to warm up.
        device: where the jobs run; waited for around each.
    """
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for attempt in range(repeats + _WARM_UP):
        for name, job in jobs.items():
            seconds = _seconds(job, device)
            if attempt >= _WARM_UP:
                times[name].append(seconds)
    return {name: statistics.median(values) for name, values in times.items()}


def measured_plan(
    filters: Tensor, image: Tensor, repeats: int = 10
) -> KernelPlan:
    """The fastest pair on this device for filters and images of this size.

    Args:
        filters: ``(filters, channels, k, k)``.
        image: extended, ``(batch, channels, height, width)``.
        repeats: rounds of the measurement.
    """
    forward, adjoint = kernel_jobs(filters, image)
    # in the same rounds, so that a slow moment hits both kinds alike
    seconds = median_seconds(forward | adjoint, repeats, image.device)
    return plan_named(
        min(forward, key=seconds.__getitem__),
        min(adjoint, key=seconds.__getitem__),
    )


def _seconds(job: Job, device: torch.device) -> float:
    _wait(device)
    begin = time.perf_counter()
    job()
    _wait(device)
    return time.perf_counter() - begin


def _wait(device: torch.device) -> None:
    """GPUs return before they have computed."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
