"""How much memory a computation holds at its peak, on any device: the tensors that are alive, counted as they come and go."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory(TorchDispatchMode):
    """``with PeakMemory() as memory: ...``; then ``memory.peak``: the most bytes of new tensor storage alive at once.

    What autograd saves counts until it is released; temporary buffers inside one operation do not.  Slows small operations
    down, so that times are to be taken without it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._see(leaf.untyped_storage())
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.known:
            self.known.add(key)
            weakref.finalize(storage, self._release, key, size)
            self.alive += size
            self.peak = max(self.peak, self.alive)

    def _release(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.alive -= size
