"""Device, threads and memory allocation of a run."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Literal

import torch

from piggyback.app.errors import UserError

Device = Literal["cpu", "cuda", "auto"]

# M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of glibc's malloc.h
_MMAP_THRESHOLD, _TRIM_THRESHOLD = (
    -3,
    -1,
)


def choose_device(device: Device) -> torch.device:
    """The device asked for; ``auto`` takes a GPU if there is one. Raises
    ``UserError`` for an absent GPU."""
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise UserError("--device cuda: this machine has no usable CUDA device")
    return torch.device(
        "cuda"
        if device == "cuda" or (device == "auto" and available)
        else "cpu"
    )


def available_cores() -> int:
    """Cores this process may use."""
    return (
        len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1
    )


def prepare(threads: int) -> None:
    """Use ``threads`` OpenMP threads, and keep freed memory in the process.

    By default glibc returns every large array to the system at once and pays
    for fresh pages at the next; for arrays of filter responses that costs more
    than the arithmetic. Elsewhere than glibc this does nothing.
    """
    torch.set_num_threads(threads)
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_MMAP_THRESHOLD, 1 << 30)
            mallopt(_TRIM_THRESHOLD, 1 << 30)
