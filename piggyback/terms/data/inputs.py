"""What data terms are made of: numbers, or tensors that may be learned."""

from __future__ import annotations

import torch
from torch import Tensor

from piggyback.forward.base import kept
from piggyback.types import Primal
from piggyback.values import (
    require_finite,
    require_number,
)


def value_range(values: float | Tensor) -> tuple[float, float]:
    """Smallest and largest value (NaN if there is one; synchronises)."""
    if not isinstance(values, Tensor):
        return values, values
    if values.numel() == 0:
        return 1.0, 1.0
    low, high = values.detach().aminmax()
    return float(low), float(high)


def one_value(name: str, value: float | Tensor) -> float | Tensor:
    """``value`` as a number or a tensor of shape ``()``, copied unless learned.

    Raises ``ValueError`` for several values, and for what is no real number.
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
    """The value of a number or of a tensor of shape ``()`` (synchronises)."""
    return float(value.detach()) if isinstance(value, Tensor) else value


def tensors_among(**values: float | Tensor) -> dict[str, Tensor]:
    """Those that are tensors."""
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, Tensor)
    }


def kept_centre(centre: float | Tensor) -> float | Tensor:
    """What a ridge pulls to, in its own precision, copied unless it is learned."""
    return kept(centre) if isinstance(centre, Tensor) else centre


def whole_centre(name: str, given: float | Tensor, like: Primal) -> Primal:
    """What a ridge pulls to, one value per pixel of the images ``like``.

    Raises ``ValueError`` for what is no real number or tensor, does not
    broadcast against ``like``, or is not finite.
    """
    if isinstance(given, Tensor):
        sides = zip(reversed(given.shape), reversed(like.shape), strict=False)
        if (
            given.is_complex()
            or given.dim() > like.dim()
            or any(c not in (1, n) for c, n in sides)
        ):
            raise ValueError(
                f"{name} has shape {tuple(given.shape)} in {given.dtype}, "
                f"which does not fit images {tuple(like.shape)}"
            )
    else:
        require_number(name, given)
    centre = torch.as_tensor(
        given, dtype=like.dtype, device=like.device
    ).expand_as(like)
    require_finite(name, centre)
    return centre


def select_centre(
    given: float | Tensor, whole: Tensor, index: Tensor
) -> float | Tensor:
    """The ``given`` centre of the chosen samples, ``whole`` being what it was
    broadcast to."""
    if (
        isinstance(given, Tensor)
        and given.dim() == whole.dim()
        and given.shape[0] == whole.shape[0]
    ):
        return given[index]
    return given
