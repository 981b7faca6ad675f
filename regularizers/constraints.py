"""How parameters stay admissible: bases and positive reparametrisations."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=32)
def zero_mean_basis(size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Orthonormal basis ``(size^2 - 1, size, size)`` of the zero-mean ``size x size`` filters: the DCT without its constant.

    Orthonormal, so coefficients and filters have equal norms, and a bound for one is a bound for the other.
    Ordered by frequency, lowest first.
    """
    n = torch.arange(size, dtype=torch.float64)
    table = torch.cos(math.pi * (n + 0.5) * n.unsqueeze(-1) / size) * math.sqrt(2 / size)
    table[0] /= math.sqrt(2)
    basis = torch.einsum("ai,bj->abij", table, table).reshape(size * size, size, size)
    order = sorted(range(1, size * size), key=lambda index: (index // size + index % size, index))
    return basis[order].to(dtype)


def positive(raw: Tensor, floor: float) -> Tensor:
    """``floor + exp(raw)``: positive for every ``raw``, never below ``floor``."""
    return raw.exp() + floor
