"""What rounding may hide from a certificate, and how bounds allow for it."""

from __future__ import annotations

import torch
from torch import Tensor

from piggyback.batched import ROUNDING_TERMS
from piggyback.terms.data.base import DataTerm
from piggyback.types import PerSample


def defined(bound: Tensor) -> Tensor:
    """Infinity where an infinite constant met a zero factor, or a bound
    overflowed.

    Args:
        bound: any shape; NaN says that nothing is known.

    Returns:
        The same numbers without NaN.
    """
    return bound.nan_to_num(nan=torch.inf, posinf=torch.inf)


def inflate(bound: Tensor) -> Tensor:
    """Widen a computed bound by the rounding, and the underflow, of the few
    thousand positive terms it was summed from.

    Args:
        bound: non-negative, any shape.

    Returns:
        Numbers that are no smaller than the bound in exact arithmetic.
    """
    kind = torch.finfo(bound.dtype)
    # relative rounding is no help where a term has underflowed to zero: each
    # may have lost the smallest normal number
    underflow = ROUNDING_TERMS * kind.tiny
    return bound * (1 + ROUNDING_TERMS * kind.eps) + underflow


def sum_allowance(size: PerSample) -> PerSample:
    """What summing numbers of absolute sum ``size`` may lose.

    Args:
        size: ``(batch,)``, in the dtype of the summation.
    """
    return ROUNDING_TERMS * torch.finfo(size.dtype).eps * size


def rounding_unit(data: DataTerm, dtype: torch.dtype) -> float:
    """Rounding of a residual over the size of the numbers it is computed from.

    Args:
        data: its own products may be rounded more coarsely than by ``dtype``.
        dtype: of the pair.
    """
    return ROUNDING_TERMS * data.unit_roundoff(dtype)
