"""What data terms are made of: numbers, or tensors that may be learned."""

from __future__ import annotations

import torch
from torch import Tensor

from piggyback.forward.base import kept
from piggyback.types import Primal
from piggyback.values import require_finite, require_number


def one_value(name: str, value: float | Tensor) -> float | Tensor:
    """A number, or a tensor of shape ``()``, copied unless it is learned.

    Args:
        name: what messages call it.
        value: a number or a tensor of one value.

    Raises:
        ValueError: for several values, and for what is no real number.
    """
    if not isinstance(value, Tensor):
        require_number(f"the {name}", value)
        return value
    if value.numel() != 1:
        raise ValueError(
            f"the {name} must be one value, got a tensor of shape {tuple(value.shape)}"
        )
    return kept(value).reshape(())


def number(value: float | Tensor) -> float:
    """The value of a number or of a tensor of shape ``()`` (synchronises).

    Args:
        value: either.
    """
    return float(value.detach()) if isinstance(value, Tensor) else value


def value_range(values: float | Tensor) -> tuple[float, float]:
    """Smallest and largest value; NaN if there is one (synchronises).

    Args:
        values: a number, or any tensor; 1 stands for an empty one.
    """
    if not isinstance(values, Tensor):
        return values, values
    # of no samples: a modulus is asked for all the same
    if values.numel() == 0:
        return 1.0, 1.0
    low, high = values.detach().aminmax()
    return float(low), float(high)


def tensors_among(**values: float | Tensor) -> dict[str, Tensor]:
    """Those of the named values that are tensors."""
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, Tensor)
    }


def kept_centre(centre: float | Tensor) -> float | Tensor:
    """What a ridge pulls to, in its own precision, copied unless it is learned.

    Args:
        centre: a number or a tensor, in grey values.
    """
    return kept(centre) if isinstance(centre, Tensor) else centre


def whole_centre(name: str, given: float | Tensor, like: Primal) -> Primal:
    """What a ridge pulls to, one value per pixel of the images.

    Args:
        name: what messages call it.
        given: a number, or a tensor that broadcasts against the images.
        like: ``(batch, ...)``; shape, dtype and device matter.

    Raises:
        ValueError: for what is no real number or tensor, does not broadcast, or
            is not finite.
    """
    if isinstance(given, Tensor):
        _require_broadcastable(name, given, like)
    else:
        require_number(name, given)
    centre = torch.as_tensor(given, dtype=like.dtype, device=like.device)
    centre = centre.expand_as(like)
    require_finite(name, centre)
    return centre


def _require_broadcastable(name: str, given: Tensor, like: Primal) -> None:
    # from the last axis on, as broadcasting goes
    sides = zip(reversed(given.shape), reversed(like.shape), strict=False)
    fits = all(c in (1, n) for c, n in sides)
    if given.is_complex() or given.dim() > like.dim() or not fits:
        raise ValueError(
            f"{name} has shape {tuple(given.shape)} in {given.dtype}, "
            f"which does not fit images {tuple(like.shape)}"
        )
