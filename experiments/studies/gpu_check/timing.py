"""Timing on a device that works ahead of the host."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from experiments.studies.gpu_check.checks import CardSetting


def median_seconds(
    job: Callable[[], object],
    setting: CardSetting,
    repeats: int = 10,
    most: float = 2.0,
) -> float:
    """Median seconds of ``job``, waited for, over at most ``repeats`` runs and
    ``most`` seconds, after one to warm up."""
    job()
    setting.wait()
    times: list[float] = []
    begun = time.perf_counter()
    while len(times) < repeats and (
        len(times) < 2 or time.perf_counter() - begun < most
    ):
        setting.wait()
        start = time.perf_counter()
        job()
        setting.wait()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def peak_bytes(job: Callable[[], object], setting: CardSetting) -> int | None:
    """Most memory that ``job`` held beyond what was held before; None where the
    device does not say."""
    if not setting.on_card:
        return None
    setting.wait()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(setting.device)
    before = torch.cuda.memory_allocated(setting.device)
    job()
    setting.wait()
    return torch.cuda.max_memory_allocated(setting.device) - before


def copy_bandwidth(setting: CardSetting) -> float:
    """Bytes per second that a copy reads and writes."""
    count = 1 << (27 if setting.on_card else 22)
    source = torch.zeros(count, dtype=torch.float32, device=setting.device)
    target = torch.empty_like(source)
    return (
        2
        * 4
        * count
        / median_seconds(
            lambda: target.copy_(source), setting, repeats=20, most=0.5
        )
    )
