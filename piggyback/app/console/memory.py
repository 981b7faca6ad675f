"""How much memory the tensors of a computation take at most, to the byte and
whatever the allocator does; how much there is."""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# how torch says that it ran out of memory, in errors without a class of their
# own
_NO_MEMORY = ("can't allocate memory", "out of memory", "not enough memory")
_LONGEST_REASON = 200


def out_of_memory(error: BaseException) -> str | None:
    """What a user is told of exhausted memory, in one line.

    Args:
        error: Any exception.

    Returns:
        The message, or None if the error is about something else.
    """
    reason = " ".join(str(error).split())[:_LONGEST_REASON]
    if not isinstance(error, MemoryError):
        if not any(words in str(error) for words in _NO_MEMORY):
            return None
    return (
        f"not enough memory ({reason or 'no details'}): ask for fewer or "
        "smaller things at once"
    )


class PeakMemory(TorchDispatchMode):
    """Bytes of all tensors that operations returned while it was active:
    ``live`` now, ``peak`` at most.

    A storage counts once, from the operation that returns it until nothing (an
    autograd graph neither) refers to it. What an operation needs inside and
    frees again is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.live += self._sizes[key]
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.live -= self._sizes.pop(key)


def peak_memory(job: Callable[[], object]) -> int:
    """Bytes that the tensors of ``job`` take at most."""
    with PeakMemory() as memory:
        job()
    return memory.peak


def available_memory(device: torch.device) -> float:
    """Bytes that can be had now on ``device``; infinite where the system does
    not say.

    On the CPU what Linux calls available, within the limit of the container, or
    else all there is.
    """
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    found = [_number_in(path, word) for path, word in _SOURCES]
    if hasattr(os, "sysconf"):
        with suppress(ValueError, OSError):
            found.append(
                float(os.sysconf("SC_PHYS_PAGES")) * os.sysconf("SC_PAGE_SIZE")
            )
    return min(found)


# files, and the word that begins the line with the number
_SOURCES = (
    (Path("/proc/meminfo"), "MemAvailable:"),
    (Path("/sys/fs/cgroup/memory.max"), ""),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), ""),
)


def _number_in(path: Path, word: str) -> float:
    """The first number, in bytes, of the line that begins with ``word``;
    infinite if there is none."""
    with suppress(OSError, ValueError):
        for line in path.read_text().splitlines():
            cells = line.removeprefix(word).split()
            if line.startswith(word) and cells and cells[0].isdecimal():
                return float(cells[0]) * (1024 if cells[-1] == "kB" else 1)
    return math.inf
