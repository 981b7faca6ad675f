"""Linear forward operators ``B``: images in, observations out; anything with
``A`` and ``A_adjoint`` is one.

The names are those of deepinv's physics, whose linear operators fit as they
are. All operators here work on ``(batch, channels, height, width)``, each
channel for itself, in the dtype and on the device of their argument.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from piggyback.copies import snapshot
from piggyback.types import Primal


@runtime_checkable
class ForwardOperator(Protocol):
    """A linear map ``A`` of batches and its exact adjoint (up to rounding)."""

    def A(self, x: Primal, /) -> Tensor:
        """``B x``, ``(batch, ...)``."""
        ...

    def A_adjoint(self, y: Tensor, /) -> Primal:
        """``B^T y``."""
        ...


def operator_tensors(operator: ForwardOperator) -> dict[str, Tensor]:
    """What the operator holds, by name: parameters and buffers of a module,
    attributes of another object."""
    held = getattr(operator, "__dict__", {})
    found = {
        name: value for name, value in held.items() if isinstance(value, Tensor)
    }
    if isinstance(operator, nn.Module):
        found |= dict(operator.named_parameters()) | dict(
            operator.named_buffers()
        )
    return found


def kept(values: Tensor) -> Tensor:
    """What an operator keeps of a tensor that it is made of.

    A leaf that is learned stays itself: every use sees its present values, as
    with the weights of a module. Anything else is copied, with its graph, so
    that a change in place does not matter later.
    """
    if values.requires_grad:
        return values if values.is_leaf else values.clone()
    return snapshot(values)


def numbers(name: str, values: Tensor) -> Tensor:
    """Masks and kernels as real floating-point numbers, whole numbers and truth
    values converted.

    Raises ``ValueError`` for complex, NaN or infinite ones, and for bytes
    beyond 1, which are grey values of a picture.
    """
    if values.is_complex():
        raise ValueError(f"{name} is {values.dtype}: real numbers are needed")
    if (
        values.dtype == torch.uint8
        and values.numel() > 0
        and int(values.max()) > 1
    ):
        raise ValueError(
            f"{name} has bytes up to {int(values.max())}: give the numbers "
            "to multiply by, as floats"
        )
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"{name} has NaN or infinite entries")
    return values if values.is_floating_point() else values.double()
