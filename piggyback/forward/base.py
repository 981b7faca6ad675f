"""Linear forward operators ``B``: images in, observations out; anything with
``A`` and ``A_adjoint`` is one.

The names are those of deepinv's physics, whose linear operators fit as they
are. All operators of this room work on ``(batch, channels, height, width)``,
each channel for itself, in the dtype and on the device of their argument.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from piggyback.copies import snapshot
from piggyback.types import Primal


@runtime_checkable
class ForwardOperator(Protocol):
    """A linear map ``A`` of batches and its exact adjoint (up to rounding).

    Three more members are optional; they are looked for by name:

    - ``norm_bound``, a number or a method without arguments: at least
      ``||B||``, by proof. Without it nothing is certified.
    - ``pilot(y)``: what an observation looks like as an image, for weights that
      adapt.
    - ``symbol(like)``: positive multipliers ``(height, width/2 + 1)`` of the
      frequencies near ``B^T B``; they speed up solvers.
    """

    def A(self, x: Primal, /) -> Tensor:
        """``B x``.

        Args:
            x: images ``(batch, ...)``.

        Returns:
            Observations ``(batch, ...)``, real or complex.
        """
        ...

    def A_adjoint(self, y: Tensor, /) -> Primal:
        """``B^T y``.

        Args:
            y: of the shape of observations.

        Returns:
            Images ``(batch, ...)``.
        """
        ...


def stated_norm(operator: ForwardOperator) -> Any:
    """The optional ``norm_bound`` of an operator, attribute or method; None if
    it has none.

    Args:
        operator: that of the user, not an adapter around it.
    """
    # a property of our own operators, a method of some other libraries'
    stated: Any = getattr(operator, "norm_bound", None)
    return stated() if callable(stated) else stated


def stated_pilot(operator: ForwardOperator, y: Tensor) -> Primal | None:
    """What the optional ``pilot`` of an operator makes of observations; None if
    it has none.

    Args:
        operator: that of the user, not an adapter around it.
        y: observations, as the operator takes them.
    """
    pilot: Any = getattr(operator, "pilot", None)
    return None if pilot is None else pilot(y)


def stated_symbol(operator: ForwardOperator, like: Primal) -> Tensor | None:
    """The optional ``symbol`` of an operator; None if it has none.

    Args:
        operator: that of the user, not an adapter around it.
        like: images; their shape, dtype and device matter.
    """
    symbol: Any = getattr(operator, "symbol", None)
    return None if symbol is None else symbol(like)


def operator_tensors(operator: ForwardOperator) -> dict[str, Tensor]:
    """What the operator holds, by name: parameters and buffers of a module,
    attributes of another object.

    Args:
        operator: that of the user, not an adapter around it.
    """
    held = getattr(operator, "__dict__", {})
    found = {
        name: value for name, value in held.items() if isinstance(value, Tensor)
    }
    # a module keeps its tensors, and those of its parts, in places of its own
    if isinstance(operator, nn.Module):
        found |= dict(operator.named_parameters())
        found |= dict(operator.named_buffers())
    return found


def kept(values: Tensor) -> Tensor:
    """What an operator keeps of a tensor that it is made of.

    A leaf that is learned stays itself: every use sees its present values, as
    with the weights of a module. Anything else is copied, with its graph, so
    that a change in place does not matter later.

    Args:
        values: what the user gave.
    """
    if values.requires_grad:
        return values if values.is_leaf else values.clone()
    return snapshot(values)


def numbers(name: str, values: Tensor) -> Tensor:
    """Masks and kernels as real floating-point numbers, whole numbers and truth
    values converted.

    Args:
        name: what messages call them.
        values: what the user gave.

    Raises:
        ValueError: for complex, NaN or infinite ones, and for bytes beyond 1,
            which are grey values of a picture.
    """
    if values.is_complex():
        raise ValueError(f"{name} is {values.dtype}: real numbers are needed")
    # 0 and 1 in bytes are truth values; anything else was meant to be scaled
    is_bytes = values.dtype == torch.uint8 and values.numel() > 0
    if is_bytes and int(values.max()) > 1:
        raise ValueError(
            f"{name} has bytes up to {int(values.max())}: give the numbers "
            "to multiply by, as floats"
        )
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"{name} has NaN or infinite entries")
    return values if values.is_floating_point() else values.double()
